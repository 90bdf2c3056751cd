"""Launchers, which run trials on machines: `vmap`, `local`, `ray` and `slurm`, one module each."""
