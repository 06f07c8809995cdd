"""The table of all parts."""
