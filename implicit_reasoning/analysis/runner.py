"""The runner: an instrument, written for one model, over all checkpoints in one compiled program.

Checkpoints are stacked along a leading axis; the program maps `measure` over it, each device of the
mesh's `trial` axis its own share, and is compiled once however many checkpoints and runs there are.
How many are stacked, and how many of those a device computes at the same time, is what its memory
allows. Outcomes by example come back to the host, which averages them within groups, with
intervals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr
from jax.sharding import PartitionSpec
from tqdm import tqdm

from implicit_reasoning.analysis.aggregate import aggregate
from implicit_reasoning.analysis.instrument import EXAMPLE, SEED, Examples, Instrument
from implicit_reasoning.analysis.kept import identity_of
from implicit_reasoning.analysis.labels import check_labels, plain
from implicit_reasoning.analysis.subject import Subject
from implicit_reasoning.model import Params, Transformer, check_tokens
from implicit_reasoning.runtime import sharding
from implicit_reasoning.runtime.machine import (
    highest_precision,
    memory_per_program,
    provenance,
    single_threaded_lapack,
)

_MOST_AT_ONCE = 8  # checkpoints in one call, on each device, so that the bar moves


class Runner:
    """One instrument, for models of one shape; compiled once, then called for chunks of them."""

    def __init__(self, instrument: Instrument, model: Transformer, *, together: int | None = None):
        """Prepare; nothing is compiled yet.

        Args:
          instrument: to run.
          model: of all checkpoints.
          together: models that a device computes at the same time (`vmap`), or fewer where their
            intermediate values do not fit into its memory; by default one on a CPU, whose batched
            products of small matrices are slow, and all of a chunk elsewhere.
        """
        self.instrument, self.model = instrument, model
        self.mesh = sharding.make_mesh({"trial": -1, "data": 1, "model": 1})
        alone = jax.default_backend() == "cpu"
        self.together = together or (1 if alone else _MOST_AT_ONCE)
        self.traces = 0
        self._compiled: dict[Any, jax.stages.Compiled] = {}

    def at_once(self, count: int) -> int:
        """How many of `count` checkpoints to stack in a call: as many for each device, if it can.

        Few enough for their parameters to take half of a device's memory.
        """
        shapes = jax.eval_shape(self.model.init, jax.random.key(0))
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
        most = max(1, min(_MOST_AT_ONCE, memory_per_program() // (2 * size)))
        devices = self.mesh.shape["trial"]
        return min(count, devices * chunk_size(-(-count // devices), most))

    def __call__(self, params: Params, examples: Examples) -> dict[str, np.ndarray]:
        """Measure stacked checkpoints; each output gets a leading axis of them."""
        count = jax.tree.leaves(params)[0].shape[0]
        devices = self.mesh.shape["trial"]
        padded = -(-count // devices) * devices
        params = jax.tree.map(lambda leaf: np.resize(leaf, (padded, *leaf.shape[1:])), params)
        key = jax.random.key(SEED)
        with single_threaded_lapack():
            found = self._program(params, examples.inputs, key)
            return {name: np.asarray(value)[:count] for name, value in found.items()}

    def _program(self, params: Params, inputs: Any, key: Any) -> dict[str, jax.Array]:
        shapes = jax.tree.map(lambda leaf: (np.shape(leaf), np.asarray(leaf).dtype), inputs)
        name = (jax.tree.leaves(params)[0].shape[0], str(shapes))
        if name not in self._compiled:
            self._compiled[name] = self._compile(params, inputs, key)
        found: dict[str, jax.Array] = self._compiled[name](params, inputs, key)
        return found

    def _compile(self, params: Params, inputs: Any, key: Any) -> jax.stages.Compiled:
        """With as many models at the same time as fit."""
        compiled = jax.jit(self._mapped()).lower(params, inputs, key).compile()
        memory = compiled.memory_analysis()
        if (
            self.together == 1
            or memory is None
            or memory.temp_size_in_bytes <= memory_per_program()
        ):
            return compiled
        self.together //= 2
        return self._compile(params, inputs, key)

    def _mapped(self) -> Callable[..., dict[str, jax.Array]]:
        def share(params: Params, inputs: Any, key: Any) -> dict[str, jax.Array]:
            @highest_precision
            def one(params: Params) -> dict[str, jax.Array]:
                self.traces += 1
                return self.instrument.measure(self.model, params, inputs, key)

            # `batch_size=1` would be a `vmap` over one, whose gathers are slow on a CPU.
            size = self.together if self.together > 1 else None
            found: dict[str, jax.Array] = jax.lax.map(one, params, batch_size=size)
            return found

        by_trial, whole = PartitionSpec("trial"), PartitionSpec()
        return jax.shard_map(
            share,
            mesh=self.mesh,
            in_specs=(by_trial, whole, whole),
            out_specs=by_trial,
            check_vma=False,
        )


def measure(
    instrument: Instrument,
    subject: Subject,
    steps: Sequence[int] | None = None,
    *,
    runner: Runner | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Run one instrument over the checkpoints of one subject.

    Args:
      instrument: to run.
      subject: with `model`, `dataset`, `steps` and `params`.
      steps: which checkpoints; all by default.
      runner: of an earlier call for a model of this shape, which need not be compiled again.
      progress: show a bar on standard error.

    Returns:
      Labelled arrays with the dimensions `step`, then `group` (of averaged outcomes), then those
      that the instrument declares.

    Raises:
      InputError: the instrument cannot be used here, says something else than it declares, or a
        step has no checkpoint.
    """
    model, dataset = subject.model, subject.dataset
    check_tokens(dataset.tokens, model.spec.d_vocab)
    steps = tuple(subject.steps if steps is None else steps)
    runner = runner or Runner(instrument, model)
    examples = instrument.examples(model, dataset)
    identity = identity_of(instrument, subject)  # now: training may go on while this measures
    if instrument.reference:
        last = jax.tree.map(lambda leaf: leaf[0], subject.params([identity["reference"]]))
        examples = dataclasses.replace(examples, inputs=examples.inputs | {"reference": last})
    coords = {**instrument.coords(model, dataset), **examples.coords}
    instrument.check_nulls(coords)
    dims = {dim for dims in instrument.outputs.values() for dim in dims} - {EXAMPLE}
    check_labels(instrument.name, coords, dims, examples.groups)
    about = _about(instrument, subject, examples, identity)
    sizes = {dim: len(labels) for dim, labels in coords.items()} | {EXAMPLE: len(examples.group)}

    at_once = runner.at_once(len(steps))
    found: list[xr.Dataset] = []
    with tqdm(total=len(steps), desc=instrument.name, unit="ckpt", disable=not progress) as bar:
        for start in range(0, len(steps), at_once):
            part = steps[start : start + at_once]
            # The last chunk is filled up, so that every call has the shape that is compiled.
            filled = (*part, *[part[-1]] * (at_once - len(part)))
            outputs = runner(subject.params(filled), examples)
            outputs = {name: value[: len(part)] for name, value in outputs.items()}
            instrument.check({name: value[0] for name, value in outputs.items()}, sizes)
            found.append(aggregate(instrument, outputs, examples, coords, part))
            bar.update(len(part))
    result = xr.concat(found, dim="step", data_vars="minimal") if len(found) > 1 else found[0]
    return result.assign_attrs(about)


def chunk_size(count: int, most: int = _MOST_AT_ONCE) -> int:
    """Checkpoints in a call: at most `most`, so that few are computed to fill the last."""
    if count <= most:
        return max(1, count)
    return min(range(most, most // 2, -1), key=lambda size: -count % size)


def _about(
    instrument: Instrument, subject: Subject, examples: Examples, identity: dict[str, Any]
) -> dict[str, Any]:
    return {
        **identity,
        "definition": instrument.definition,
        "found_at": instrument.found_at,
        "sites": list(instrument.sites(subject.model)),
        "nulls": plain(dict(instrument.nulls), f"the nulls of instrument {instrument.name!r}"),
        "groups": list(examples.groups),
        "made_with": provenance(),
    }
