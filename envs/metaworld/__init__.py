"""`metaworld/<task>`: Meta-World."""
