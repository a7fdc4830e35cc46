"""The stack on one machine, without containers: parts under a supervisor."""
