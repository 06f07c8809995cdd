"""Training on several ranks, one process for each accelerator, started by torchrun."""
