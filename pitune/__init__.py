"""Reinforcement-learning fine-tuning of π0 flow-matching robot policies."""
