"""Infrastructure for long or parallel computations: devices, processes, locks, logs, signals."""
