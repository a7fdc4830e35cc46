"""The platform in containers: secrets, provisioning the stores, health checks, Spark's daemons."""
