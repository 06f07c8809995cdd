"""Single-copy CPU simulators in worker processes."""
