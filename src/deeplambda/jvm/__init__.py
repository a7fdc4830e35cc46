"""What Java programs need: jars, their lock, compiled sources, class-data sharing, command lines."""
