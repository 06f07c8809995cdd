"""Pictures of a LIBERO scene, drawn by MuJoCo off screen with the settings of robosuite.

Letters: Y, X image pixels.
"""
