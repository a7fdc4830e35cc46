"""The real-time view: predictions from Kafka, in MySQL within milliseconds; beside it the metrics of all layers."""
