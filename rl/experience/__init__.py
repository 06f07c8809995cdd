"""Rollouts, replay memory and demonstrations."""
