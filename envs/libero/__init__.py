"""LIBERO's tasks of a Panda arm, in robosuite on the CPU."""
