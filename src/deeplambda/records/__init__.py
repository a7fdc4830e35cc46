"""What goes over Kafka, and how it is checked: topics, records, the horizon."""
