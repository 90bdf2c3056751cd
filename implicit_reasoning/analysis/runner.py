"""The runner: an instrument, written for one model, over all checkpoints in one compiled program.

Checkpoints are stacked along a leading axis; the program maps `measure` over it, each device of the
mesh's `trial` axis its own share, and is compiled once however many checkpoints and runs there are.
How many are stacked, and how many of those a device computes at the same time, is what its memory
allows. Outcomes by example, or their sums by cluster where those are smaller (see `sums.py`), come
back to the host, which averages them within groups, with intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from implicit_reasoning.analysis.aggregate import aggregate
from implicit_reasoning.analysis.instrument import EXAMPLE, SEED, Examples, Instrument
from implicit_reasoning.analysis.labels import check_labels, plain
from implicit_reasoning.analysis.storage import identity_of
from implicit_reasoning.analysis.subject import Subject
from implicit_reasoning.analysis.sums import (
    DeviceSums,
    GroupClusterPairs,
    SumsLayout,
    find_pairs,
    outputs_to_sum,
    sum_outputs,
)
from implicit_reasoning.model import Params, Transformer, check_tokens
from implicit_reasoning.runtime import sharding
from implicit_reasoning.runtime.machine import (
    highest_precision,
    memory_per_program,
    provenance,
    single_threaded_lapack,
)
from implicit_reasoning.runtime.mapping import map_over_axis

_MAX_AT_ONCE = 8  # checkpoints in one call, on each device, so that the bar moves


class DeviceInputs(NamedTuple):
    """What an instrument looks at, on the devices.

    Attributes:
      inputs: of `Instrument.measure`.
      key: for what is drawn at random.
      pairs: which sums an example belongs to; None where no output is summed.
      layout: of the sums; static.
    """

    inputs: Any
    key: Any
    pairs: GroupClusterPairs | None
    layout: SumsLayout | None


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
        self.together = together or (1 if alone else _MAX_AT_ONCE)
        self.traces = 0
        self._compiled: dict[Any, jax.stages.Compiled] = {}

    def at_once(self, count: int) -> int:
        """How many of `count` checkpoints to stack in a call: as many for each device, if it can.

        Few enough for their parameters to take half of a device's memory.
        """
        shapes = jax.eval_shape(self.model.init, jax.random.key(0))
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
        most = max(1, min(_MAX_AT_ONCE, memory_per_program() // (2 * size)))
        devices = self.mesh.shape["trial"]
        return devices * chunk_size(-(-count // devices), most)

    def place(
        self,
        examples: Examples,
        sizes: Mapping[str, int] | None = None,
        reference: Params | None = None,
    ) -> DeviceInputs:
        """Put what an instrument looks at on all devices, once for all chunks of checkpoints.

        Args:
          examples: chosen by the instrument.
          sizes: of all dimensions, to find which outputs are better summed; None: none is.
          reference: parameters of the last checkpoint, for an instrument that compares with them.
        """
        inputs, where = examples.inputs, sharding.replicated(self.mesh)
        if reference is not None:
            inputs = inputs | {"reference": reference}
        inputs, key = jax.device_put((inputs, jax.random.key(SEED)), where)
        pairs, layout = find_pairs(examples)
        summed = outputs_to_sum(self.instrument, sizes, layout) if sizes else ()
        if not summed:
            return DeviceInputs(inputs, key, None, None)
        return DeviceInputs(
            inputs, key, jax.device_put(pairs, where), layout._replace(outputs=summed)
        )

    @property
    def stacked(self) -> NamedSharding:
        """Where stacked checkpoints have to be: an equal share on each device."""
        return NamedSharding(self.mesh, PartitionSpec("trial"))

    def __call__(
        self, params: Params, material: DeviceInputs
    ) -> dict[str, np.ndarray | DeviceSums]:
        """Measure stacked checkpoints; each output gets a leading axis of them.

        Args:
          params: of as many checkpoints as the devices can share equally; see `at_once`.
          material: what the instrument looks at, by `place`.
        """
        params = jax.device_put(params, self.stacked)
        with single_threaded_lapack():
            found = self._program(params, material)
            return jax.tree.map(np.asarray, found)

    def _program(self, params: Params, material: DeviceInputs) -> dict[str, Any]:
        shared = material.inputs, material.key, material.pairs
        shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (params, shared))
        name = (str(shapes), material.layout)
        if name not in self._compiled:
            self._compiled[name] = self._compile(params, shared, material.layout)
        found: dict[str, Any] = self._compiled[name](params, *shared)
        return found

    def _compile(
        self, params: Params, shared: tuple[Any, ...], layout: SumsLayout | None
    ) -> jax.stages.Compiled:
        """With as many models at the same time as fit."""
        program = jax.jit(self.program(layout))
        compiled = program.lower(params, *shared).compile()
        memory = compiled.memory_analysis()
        if (
            self.together == 1
            or memory is None
            or memory.temp_size_in_bytes <= memory_per_program()
        ):
            return compiled
        self.together //= 2
        return self._compile(params, shared, layout)

    def program(self, layout: SumsLayout | None = None) -> Callable[..., dict[str, Any]]:
        """The function of stacked parameters, inputs, key and pairs that is compiled.

        Without a layout there are no pairs, and no output is summed.
        """

        def run(
            params: Params, inputs: Any, key: Any, pairs: GroupClusterPairs | None = None
        ) -> Any:
            return map_over_axis(one, params, self.mesh, self.together, (inputs, key, pairs))

        @highest_precision
        def one(
            params: Params, inputs: Any, key: Any, pairs: GroupClusterPairs | None
        ) -> dict[str, Any]:
            self.traces += 1
            found = self.instrument.measure(self.model, params, inputs, key)
            if layout is None or pairs is None:
                return found
            return sum_outputs(self.instrument, found, pairs, layout)

        return run


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
    coords = {**instrument.coords(model, dataset), **examples.coords}
    instrument.check_nulls(coords)
    dims = {dim for dims in instrument.outputs.values() for dim in dims} - {EXAMPLE}
    check_labels(instrument.name, coords, dims, examples.groups)
    about = _about(instrument, subject, examples, identity)
    sizes = {dim: len(labels) for dim, labels in coords.items()} | {EXAMPLE: len(examples.group)}

    last = None
    if instrument.reference:
        last = jax.tree.map(lambda leaf: leaf[0], subject.params([identity["reference"]]))
    material = runner.place(examples, sizes, last)
    at_once = runner.at_once(len(steps))
    found: list[xr.Dataset] = []
    with tqdm(total=len(steps), desc=instrument.name, unit="ckpt", disable=not progress) as bar:
        for start in range(0, len(steps), at_once):
            part = steps[start : start + at_once]
            # The last chunk is filled up, so that every call has the shape that is compiled.
            filled = (*part, *[part[-1]] * (at_once - len(part)))
            params = subject.params(filled, runner.stacked)
            outputs = runner(params, material)
            outputs = _first(len(part), outputs)
            instrument.check(_shapes(outputs, sizes), sizes)
            found.append(aggregate(instrument, outputs, examples, coords, part))
            bar.update(len(part))
    result = xr.concat(found, dim="step", data_vars="minimal") if len(found) > 1 else found[0]
    return result.assign_attrs(about)


def _first(count: int, outputs: dict[str, Any]) -> dict[str, Any]:
    """Outputs of so many checkpoints: the rest filled up the last chunk."""
    first: dict[str, Any] = jax.tree.map(lambda leaf: leaf[:count], outputs)
    return first


def _shapes(outputs: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """One checkpoint of every output, as its shape; of sums, that of the outcomes summed."""
    n_examples = sizes[EXAMPLE]
    return {
        name: jax.ShapeDtypeStruct((*value.sums.shape[1:-1], n_examples), bool)
        if isinstance(value, DeviceSums)
        else value[0]
        for name, value in outputs.items()
    }


def chunk_size(count: int, most: int = _MAX_AT_ONCE) -> int:
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
