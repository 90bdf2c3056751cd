"""What dictionaries are trained when nothing else is asked for.

    python -m implicit_reasoning dictionaries --workdir=runs/pocket
    python -m implicit_reasoning dictionaries --workdir=runs/pocket \
        --config=implicit_reasoning.dictionaries.defaults:transcoder --config.sparsities=4,8

Residuals after every block, or with another argument transcoders of every MLP, three sparsities,
four checkpoints: at `pocket` 24 dictionaries.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from implicit_reasoning.dictionaries.fields import default_config

ARGUMENTS = ("autoencoder", "transcoder", "skip_transcoder", "cross_layer", "crosscoder")


def get_config(architecture: str = "autoencoder") -> ConfigDict:
    """The default configuration of an architecture."""
    return default_config(architecture)
