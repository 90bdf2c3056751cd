"""A configuration whose dictionaries train in seconds."""

from implicit_reasoning.config import apply_overrides, load_config

DEFAULTS = "implicit_reasoning.dictionaries.defaults"
SITE = "blocks.0.hook_resid_post"
SMALL = {
    "sparsities": (2.0, 3.0),
    "width": 24,
    "checkpoints": 2,
    "progress": False,
    "baselines": False,
    "log_every": 10,
    "resume_every": 20,
    "training.steps": 40,
    "training.batch_size": 64,
    "training.warmup_steps": 5,
    "training.decay_steps": 10,
    "training.dead_after": 100,
    "training.learning_rate": 0.01,
}


def config(architecture="autoencoder", **changes):
    chosen = {name.replace("__", "."): value for name, value in changes.items()}
    return apply_overrides(load_config(f"{DEFAULTS}:{architecture}"), SMALL | chosen)
