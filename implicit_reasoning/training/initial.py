"""Initial parameters from a checkpoint of a previous run: the configuration group `init_from`.

Only the parameters come from the checkpoint. The moments of the optimizer start at 0, and the
learning rate schedule starts at step 0.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.runs import Run

LAST = -1
"""The value of `init_from.step` that means the last checkpoint."""


class Initial(NamedTuple):
    """Initial parameters that were read from a checkpoint, and the origin of the parameters.

    Attributes:
      params: the parameters as numpy arrays.
      source: run directory, step and fingerprint of the checkpoint, for `provenance.json`.
    """

    params: Params
    source: dict[str, str | int]


def read_initial(config: ConfigDict, model: Transformer) -> Initial | None:
    """Read the initial parameters from the checkpoint that `init_from` names.

    Args:
      config: the configuration of the run to train.
      model: the model to train.

    Returns:
      The initial parameters, or None if `init_from.workdir` is empty.

    Raises:
      InputError: the run or the checkpoint does not exist, or the shapes of the parameters do not
        fit the model.
    """
    workdir, step = config.init_from.workdir, config.init_from.step
    if not workdir:
        return None
    run = Run(workdir)
    if not run.steps:
        raise InputError(
            f"init_from.workdir is {workdir}, which contains no checkpoint; choose a run with a "
            "checkpoint"
        )
    step = run.steps[-1] if step == LAST else step
    if step not in run.steps:
        raise InputError(
            f"init_from.step is {step}, but {workdir} contains no checkpoint of this step; choose "
            f"one of the steps {', '.join(map(str, run.steps))}"
        )
    params = run.store.params(step)
    _check_shapes(workdir, params, jax.eval_shape(model.init, jax.random.key(0)))
    return Initial(
        params, {"workdir": str(workdir), "step": step, "fingerprint": run.fingerprint(step)}
    )


def _check_shapes(workdir: str, params: Params, like: Params) -> None:
    """Check that parameters have the names and shapes that a model needs.

    Args:
      workdir: the directory of the run that the parameters come from, for the message.
      params: the parameters.
      like: the shapes of the parameters of the model to train.

    Raises:
      InputError: a parameter is missing, unknown or has the wrong shape.
    """
    found, wanted = _shapes(params), _shapes(like)
    for name in dict.fromkeys([*wanted, *found]):
        if found.get(name) != wanted.get(name):
            raise InputError(
                f"init_from.workdir is {workdir}, whose parameters do not fit the model: {name} "
                f"has shape {found.get(name, 'none')} in the checkpoint and "
                f"{wanted.get(name, 'none')} in the model; choose a run with equal fields of "
                "`model` and equal numbers of tokens and positions"
            )


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x.shape for path, x in leaves}
