"""`mock/<name>`: environments for tests."""
