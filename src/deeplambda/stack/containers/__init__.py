"""The platform in containers: secrets, the stores' first provision, signs of life, Spark's daemons."""
