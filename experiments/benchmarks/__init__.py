"""Time and memory benchmarks."""
