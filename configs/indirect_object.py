"""Successor."""

from ml_collections import ConfigDict

from implicit_reasoning.config import choose
from implicit_reasoning.runs import default_config


def get_config(scale: str = "pocket") -> ConfigDict:
    """Return the configuration at a scale: `pocket`, `desk` or `paper` (not published)."""
    config = default_config("indirect_object")
    config.model.d_model = 64
    config.model.d_mlp = 256
    config.optimizer.weight_decay = 0.1
    choose(scale, {"pocket": pocket, "desk": desk})(config)
    return config


def pocket(config: ConfigDict) -> None:
    config.steps = 3_000
    config.batch_size = 128


def desk(config: ConfigDict) -> None:
    config.steps = 10_000
