"""`mujoco/<task>`: the embedded tabletop simulator."""
