"""The folder of a run: its lock, its checkpoints, its metrics and its beginning."""
