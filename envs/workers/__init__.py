"""Single CPU simulators in worker processes."""
