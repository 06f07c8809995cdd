"""Commands that combine policy, environment and algorithm: `pitune NAME`.

No package imports them, so that the packages do not depend on how they are combined.
"""
