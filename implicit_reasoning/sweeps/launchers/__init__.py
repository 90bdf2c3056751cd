"""How trials get onto machines: `vmap`, `local`, `ray`, `slurm`, a file each."""
