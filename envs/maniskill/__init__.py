"""`maniskill/<task>`: ManiSkill 3."""
