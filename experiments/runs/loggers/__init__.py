"""Programs that show the metrics of a run besides its metrics.csv."""
