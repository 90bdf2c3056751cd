"""The default configuration of dictionaries.

    python -m implicit_reasoning dictionaries --workdir=runs/pocket
    python -m implicit_reasoning dictionaries --workdir=runs/pocket \
        --config=implicit_reasoning.dictionaries.defaults:transcoder --config.sparsities=4,8

The default trains autoencoders on the residual stream after every block, at three sparsities and
four checkpoints. For the `pocket` run this makes 24 dictionaries. With the argument `transcoder` it
trains transcoders of every MLP instead.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from implicit_reasoning.config import make_config
from implicit_reasoning.dictionaries.fields import FIELDS

ARGUMENTS = ("autoencoder", "transcoder", "skip_transcoder", "cross_layer", "crosscoder")


def get_config(architecture: str = "autoencoder") -> ConfigDict:
    """Return a new, unlocked configuration.

    Args:
      architecture: the architecture of the dictionaries; one of `ARGUMENTS`.
    """
    config = make_config(FIELDS)
    config.name = config.architecture = architecture
    return config
