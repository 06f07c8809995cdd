"""The JSON and statistics files of lerobot's checkpoints, each honored or rejected by name."""
