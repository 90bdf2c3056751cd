"""Launchers run the trials of a sweep on machines: `vmap`, `local`, `ray` and `slurm`."""
