"""The stream: events from Kafka through the model service to predictions, by Spark Structured Streaming."""
