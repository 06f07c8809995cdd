"""Trainable parameters, their precision, their moving average, and the memory of training."""
