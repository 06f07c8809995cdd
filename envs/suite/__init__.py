"""Suites: several tasks of one adapter as one environment with instructions."""
