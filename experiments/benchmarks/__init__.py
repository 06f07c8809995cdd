"""Benchmarks of time, memory and learning."""
