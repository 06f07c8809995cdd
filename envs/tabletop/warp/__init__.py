"""The tabletop on MuJoCo Warp: state, observations, rewards and resets stay on the device."""
