"""Topics, the records on them and their checks, and the horizon between the two views."""
