"""Films of chosen episodes of an evaluation."""
