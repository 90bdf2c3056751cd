"""Measure all checkpoints with one instrument in one compiled program.

Checkpoints are stacked along a leading axis. The program maps `Instrument.measure` over this axis.
The axis is sharded over the devices. The program is compiled once, for any number of checkpoints
and runs. Device memory limits the number of stacked checkpoints. The program returns one outcome
per example, or sums of outcomes if sums need less memory (see `sums.py`). The host then computes
group means and confidence intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from jax.sharding import NamedSharding, PartitionSpec

from implicit_reasoning.analysis.aggregate import aggregate
from implicit_reasoning.analysis.instrument import EXAMPLE, SEED, Examples, Instrument
from implicit_reasoning.analysis.labels import check_labels
from implicit_reasoning.analysis.storage import attributes_of, identity_of
from implicit_reasoning.analysis.subject import Subject, tree_rows
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
    single_threaded_lapack,
)
from implicit_reasoning.runtime.mapping import map_over_axis
from implicit_reasoning.runtime.progress import ProgressBar

_MAX_AT_ONCE = 8  # checkpoints per call and device; a small number keeps the progress bar moving


class DeviceInputs(NamedTuple):
    """Inputs of the compiled program, as arrays on the devices.

    Attributes:
      inputs: the argument `inputs` of `Instrument.measure`.
      key: the random key for `Instrument.measure`.
      pairs: the (group, cluster) pair of each example, for outputs that are summed on the device;
        None if no output is summed.
      layout: the static description of the sums; None if no output is summed.
    """

    inputs: Any
    key: Any
    pairs: GroupClusterPairs | None
    layout: SumsLayout | None


class Runner:
    """An instrument that is compiled for models of one shape.

    A runner is called with stacked checkpoints, and returns the outputs of the instrument.
    """

    def __init__(self, instrument: Instrument, model: Transformer, *, together: int | None = None):
        """Prepare the runner without compiling.

        Args:
          instrument: the instrument to run.
          model: the model of all checkpoints.
          together: number of checkpoints that a device computes in one `vmap`. If the intermediate
            values do not fit into memory, the number is halved. The default is 1 on a CPU, where
            batched products of small matrices are slow. On an accelerator, the default is the
            maximum number of checkpoints per call.
        """
        self.instrument, self.model = instrument, model
        self.mesh = sharding.make_mesh({"trial": -1, "data": 1, "model": 1})
        alone = jax.default_backend() == "cpu"
        self.together = together or (1 if alone else _MAX_AT_ONCE)
        self.traces = 0
        self._compiled: dict[Any, jax.stages.Compiled] = {}

    def at_once(self, count: int) -> int:
        """Return the number of checkpoints to stack for one call.

        The number is a multiple of the number of devices. On each device, the stacked parameters
        need at most half of `memory_per_program`. At least one checkpoint per device is stacked,
        even if one checkpoint needs more memory.

        Args:
          count: number of checkpoints to measure in all calls.
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
        """Copy the inputs of the instrument to all devices, once for all calls of the runner.

        Args:
          examples: the examples to measure.
          sizes: size of each dimension. Large outputs are summed on the device (see
            `outputs_to_sum`). None means that no output is summed.
          reference: parameters of the last checkpoint, for an instrument with `reference = True`.
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
        """The sharding that divides stacked checkpoints equally between the devices."""
        return NamedSharding(self.mesh, PartitionSpec("trial"))

    def __call__(
        self, params: Params, material: DeviceInputs
    ) -> dict[str, np.ndarray | DeviceSums]:
        """Measure stacked checkpoints.

        Args:
          params: stacked parameters. The number of checkpoints must be a multiple of the number of
            devices (see `at_once`).
          material: the inputs that `place` returned.

        Returns:
          The outputs by name. Each output has a leading axis of checkpoints.
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
        """Compile the program. `together` is halved until the intermediate values fit in memory."""
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
        """Return the function that the runner compiles.

        The arguments of the function are stacked parameters, inputs, a key and (group, cluster)
        pairs.

        Args:
          layout: the static description of the sums. None means that no output is summed. The
            function then ignores the pairs.
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
    """Measure the checkpoints of one subject with one instrument.

    Args:
      instrument: the instrument to run.
      subject: the run, or the weights in memory, to measure.
      steps: steps of the checkpoints; default: all.
      runner: a runner for `instrument` and for models of the same shape as `subject.model`. The
        compiled program of the runner is reused. The default is a new runner.
      progress: whether to show a progress bar on standard error.

    Returns:
      A dataset with the dimension `step` and the dimensions that the instrument declares. In
      averaged outputs, the dimension `group` replaces the dimension "example".

    Raises:
      NotApplicable: the instrument cannot be used for this task.
      InputError: the outputs of the instrument differ from the declared outputs, or a step has no
        checkpoint.
    """
    model, dataset = subject.model, subject.dataset
    check_tokens(dataset.tokens, model.spec.d_vocab)
    steps = tuple(subject.steps if steps is None else steps)
    runner = runner or Runner(instrument, model)
    examples = instrument.examples(model, dataset)
    identity = identity_of(instrument, subject)  # training may continue during the measurement
    coords = {**instrument.coords(model, dataset), **examples.coords}
    instrument.check_nulls(coords)
    dims = {dim for dims in instrument.outputs.values() for dim in dims} - {EXAMPLE}
    check_labels(instrument.name, coords, dims, examples.groups)
    about = attributes_of(instrument, identity) | {
        "sites": list(instrument.sites(model)),
        "groups": list(examples.groups),
    }
    sizes = {dim: len(labels) for dim, labels in coords.items()} | {EXAMPLE: len(examples.group)}

    last = None
    if instrument.reference:
        last = tree_rows(subject.params([identity["reference"]]), 0)
    material = runner.place(examples, sizes, last)
    at_once = runner.at_once(len(steps))
    found: list[xr.Dataset] = []
    with ProgressBar(len(steps), title=instrument.name, unit="ckpt", shown=progress) as bar:
        for start in range(0, len(steps), at_once):
            part = steps[start : start + at_once]
            # Pad the last chunk, so that every call has the compiled shape.
            filled = (*part, *[part[-1]] * (at_once - len(part)))
            params = subject.params(filled, runner.stacked)
            outputs = runner(params, material)
            outputs = _first(len(part), outputs)
            instrument.check(_shapes(outputs, sizes), sizes)
            found.append(aggregate(instrument, outputs, examples, coords, part))
            bar.advance(len(part))
    result = xr.concat(found, dim="step", data_vars="minimal") if len(found) > 1 else found[0]
    return result.assign_attrs(about)


def _first(count: int, outputs: dict[str, Any]) -> dict[str, Any]:
    """Return the outputs of the first `count` checkpoints. The later checkpoints are padding."""
    first: dict[str, Any] = jax.tree.map(lambda leaf: leaf[:count], outputs)
    return first


def _shapes(outputs: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return, for every output, an object with the shape of the outcomes of one checkpoint.

    For a summed output, this is the shape that the outcomes had before they were summed.
    """
    n_examples = sizes[EXAMPLE]
    return {
        name: jax.ShapeDtypeStruct((*value.sums.shape[1:-1], n_examples), bool)
        if isinstance(value, DeviceSums)
        else value[0]
        for name, value in outputs.items()
    }


def chunk_size(count: int, most: int = _MAX_AT_ONCE) -> int:
    """Return the number of checkpoints per call that causes the least padding.

    All calls measure the same number of checkpoints, so the last call can need padding.

    Args:
      count: number of checkpoints to measure in all calls.
      most: maximum number of checkpoints per call.

    Returns:
      A number from `most // 2 + 1` to `most`. If `count` is at most `most`, `count` is returned.
    """
    if count <= most:
        return max(1, count)
    return min(range(most, most // 2, -1), key=lambda size: -count % size)
