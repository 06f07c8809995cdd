"""Scripts that put policy, environment and algorithm together: `python -m experiments.NAME`.

Imported by nobody: the packages must not depend on how they are put together.
"""
