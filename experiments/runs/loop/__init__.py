"""Parts of a run's loop."""
