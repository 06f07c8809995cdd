"""Flow matching and its likelihoods: mathematics only, independent of robots and of learning."""
