"""The recent views: what Kafka says, kept in MySQL within milliseconds."""
