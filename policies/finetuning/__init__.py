"""Trainable parameters, precision, averages and memory."""
