"""FAST: action chunks as tokens that the vision-language model predicts one after another."""
