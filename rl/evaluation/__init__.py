"""Success rates and their statistics."""
