"""The Java programs' side: jars, their lock, compiled sources, class-data sharing, command lines."""
