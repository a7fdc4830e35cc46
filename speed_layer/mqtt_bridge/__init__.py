"""The MQTT bridge: what devices publish becomes events on Kafka."""
