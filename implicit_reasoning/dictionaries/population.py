"""Train many dictionaries of one shape in one compiled program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key

from implicit_reasoning.dictionaries.steps import (
    DictionaryRecipe,
    DictionaryState,
    Pool,
    StepMeans,
    TrainingData,
)
from implicit_reasoning.model import Params
from implicit_reasoning.runtime import sharding
from implicit_reasoning.runtime.mapping import map_over_axis


class Members(NamedTuple):
    """The training inputs that differ between the dictionaries of a population.

    Attributes:
      pool: for each dictionary, the index of the pool of states to train on.
      sparsity: for each dictionary, the coefficient of the penalty or the number of active
        features.
      key: for each dictionary, the random key for initialization and batches.
    """

    pool: Int[Array, " member"]
    sparsity: Float[Array, " member"]
    key: Key[Array, " member"]


@dataclass(frozen=True)
class Population:
    """A population of dictionaries that are trained in one compiled program.

    The dictionaries are called members. Members have the same shape. Members may differ in hook
    sites, checkpoint, sparsity and seed.

    Attributes:
      recipe: the shape of the dictionaries and the training settings.
      pools: the pools of states to train on, stacked along the first axis.
      members: the pool index, sparsity and random key of each member.
      together: number of members that a device trains at the same time with `jax.vmap`. The default
        is 1 on a CPU, where batched products of small matrices are slow. On GPUs and TPUs, the
        default is all members.
      mesh: the device mesh. Members are sharded over the mesh axis `trial`. The features of a
        member are sharded over the mesh axis `model`. None means one device.
    """

    recipe: DictionaryRecipe
    pools: Pool
    members: Members
    together: int | None = None
    mesh: jax.sharding.Mesh | None = None

    def begin(self, params: Params | None = None) -> DictionaryState:
        """Return the training state before the first step.

        Args:
          params: initial parameters, stacked along the first axis. By default, random parameters
            are drawn with the members' keys.
        """
        return self._begin(*self._data, params)

    def advance(
        self, state: DictionaryState, start: int, count: int
    ) -> tuple[DictionaryState, StepMeans]:
        """Train every member for `count` steps, beginning with step `start`.

        Args:
          state: the training state of the members. The buffers are donated, so the state cannot be
            used again.
          start: number of the first step, counted from 0.
          count: number of steps.

        Returns:
          The new training state, and metrics averaged over the steps. The first axis of both
          results contains the members.
        """
        numbers = self._put((np.int32(start), np.int32(count)))
        return self._advance(state, *self._data, *numbers)

    def put(self, state: DictionaryState) -> DictionaryState:
        """Move a training state to the devices that `advance` expects."""
        placed: DictionaryState = jax.device_put(state, self._shardings)
        return placed

    @cached_property
    def _data(self) -> tuple[Pool, Members]:
        """The pools and members, which are put on all devices once and not at every call."""
        # Compile-time evaluation makes this work under `jax.eval_shape`, too.
        with jax.ensure_compile_time_eval():
            data: tuple[Pool, Members] = self._put((self.pools, self.members))
        return data

    def _put(self, tree: Any) -> Any:
        return jax.device_put(tree, None if self.mesh is None else sharding.replicated(self.mesh))

    @cached_property
    def _begin(self) -> Callable[..., DictionaryState]:
        def all_(pools: Pool, members: Members, params: Params | None) -> DictionaryState:
            return self._mapped(
                lambda item: self.recipe.begin(_data_of(pools, item[0]), item[1]), (members, params)
            )

        return jax.jit(all_, out_shardings=self._shardings)

    @cached_property
    def _advance(self) -> Callable[..., tuple[DictionaryState, StepMeans]]:
        def all_(
            state: DictionaryState, pools: Pool, members: Members, start: Array, count: Array
        ) -> tuple[DictionaryState, StepMeans]:
            def one(item: tuple[DictionaryState, Members]) -> tuple[DictionaryState, StepMeans]:
                return self.recipe.advance(item[0], _data_of(pools, item[1]), start, count)

            return self._mapped(one, (state, members))

        shardings = None if self._shardings is None else (self._shardings, None)
        return jax.jit(all_, donate_argnums=0, out_shardings=shardings)

    def _mapped(self, function: Callable[[Any], Any], items: Any) -> Any:
        return map_over_axis(function, items, self.mesh, self.together)

    @cached_property
    def _shardings(self) -> DictionaryState | None:
        """Shardings of a state: members over `trial`, and feature axes over `model`."""
        if self.mesh is None:
            return None
        mesh, architecture = self.mesh, self.recipe.dictionary.architecture
        one = jax.tree.map(lambda leaf: leaf[0], self.members)
        shapes = jax.eval_shape(lambda: self.recipe.begin(_data_of(self.pools, one)))

        def of(path: Any, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
            axes: list[str | None] = [None] * leaf.ndim
            name = path[-1].key if isinstance(path[-1], jax.tree_util.DictKey) else ""
            axis = architecture.feature_axis(name)
            if leaf.ndim and axis is not None:
                axes[axis] = "model"
            return NamedSharding(mesh, PartitionSpec("trial", *axes))

        found: DictionaryState = jax.tree_util.tree_map_with_path(of, shapes)
        return found


def make_members(
    pools: Sequence[int], sparsities: Sequence[float], seeds: Sequence[int]
) -> Members:
    """Return members with the given pool indices, sparsities and seeds.

    Entry i of each sequence describes member i. Members with equal seeds have equal random keys.
    """
    return Members(
        jax.device_put(np.asarray(pools, np.int32)),
        jax.device_put(np.asarray(sparsities, np.float32)),
        jnp.stack([jax.random.key(seed) for seed in seeds]),
    )


def stack_pools(
    x: Float[Array, "pool state d_in"],
    y: Float[Array, "pool state d_out"],
    counts: Int[np.ndarray, " group"] | None = None,
) -> Pool:
    """Make pools of training states from arrays of inputs and targets.

    All pools have the same groups of states, such as one group per position. Empty groups are
    dropped.

    Args:
      x: [pool, state, d_in] inputs. The states of each group must have consecutive indices.
      y: [pool, state, d_out] targets, in the same order as `x`.
      counts: int [group], number of states in each group. By default, there is one group.
    """
    counts = np.array([x.shape[1]]) if counts is None else counts
    first = np.cumsum(counts) - counts
    kept = counts > 0
    repeated = [np.tile(part[kept].astype(np.int32), (len(x), 1)) for part in (first, counts)]
    return Pool(x, y, *map(jnp.asarray, repeated))


def _data_of(pools: Pool, member: Members) -> TrainingData:
    """Return the pool, sparsity and key of one member."""
    pool = Pool(*(part[member.pool] for part in pools))
    return TrainingData(pool, member.sparsity, member.key)
