"""Flow matching: path, transition kernels, chains, ODE solvers."""
