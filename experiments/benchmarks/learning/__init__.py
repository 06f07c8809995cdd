"""Learning benchmarks: algorithms on the same recorded data."""
