"""Is a run healthy? Each logged metric has a range, a meaning and an advice.

The trainer warns from this table, `pitune inspect` prints it, and the tables in docs/ are generated
from it (`python -m pitune.experiments.health.markdown`).
"""
