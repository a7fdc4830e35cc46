"""One file for each outside system; each translates its vendor's exceptions once."""
