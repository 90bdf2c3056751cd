"""The default configuration of dictionaries.

    python -m implicit_reasoning dictionaries --workdir=runs/pocket
    python -m implicit_reasoning dictionaries --workdir=runs/pocket \
        --config=implicit_reasoning.dictionaries.defaults:transcoder --config.sparsities=4,8

The default trains autoencoders on the residual stream after every block, at three sparsities and
four checkpoints. For the `pocket` run, the default trains 24 dictionaries. The argument
`transcoder` selects transcoders of every MLP instead.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from implicit_reasoning.config import make_config
from implicit_reasoning.dictionaries.fields import FIELDS

ARGUMENTS = ("autoencoder", "transcoder", "skip_transcoder", "cross_layer", "crosscoder")


def get_config(architecture: str = "autoencoder") -> ConfigDict:
    """Return a new, unlocked configuration of dictionaries with default values.

    Args:
      architecture: architecture of the dictionaries, which is one of `ARGUMENTS`.
    """
    config = make_config(FIELDS)
    config.name = config.architecture = architecture
    return config
