"""LeRobot datasets: reading, streaming and recording."""
