"""The files of a checkpoint in openpi's format."""
