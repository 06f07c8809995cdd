"""`pitune evaluate`: success rates, comparisons and sweeps, with rows that outlive a kill."""
