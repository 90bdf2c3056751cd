"""Many dictionaries of one shape, trained by one program: sites, sparsities, seeds, checkpoints."""

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
    """What tells one dictionary of a population from another.

    Attributes:
      pool: which pool it is trained on.
      sparsity: see its activation function.
      key: of its start, and of what is drawn.
    """

    pool: Int[Array, " member"]
    sparsity: Float[Array, " member"]
    key: Key[Array, " member"]


@dataclass(frozen=True)
class Population:
    """A program that trains all members of a population at once.

    Attributes:
      recipe: their shape, and how they are trained.
      pools: stacked.
      members: of the population.
      together: members that a device trains at the same time (`vmap`); by default one on a CPU,
        whose batched products of small matrices are slow, and all elsewhere.
      mesh: `trial` shards members, `model` the features of each; by default one device.
    """

    recipe: DictionaryRecipe
    pools: Pool
    members: Members
    together: int | None = None
    mesh: jax.sharding.Mesh | None = None

    def begin(self, params: Params | None = None) -> DictionaryState:
        """Before the first step; from stacked parameters where they are given (a warm start)."""
        return self._begin(*self._data, params)

    def advance(
        self, state: DictionaryState, start: int, count: int
    ) -> tuple[DictionaryState, StepMeans]:
        """`count` steps of every member from step `start`; `state` is donated."""
        numbers = self._put((np.int32(start), np.int32(count)))
        return self._advance(state, *self._data, *numbers)

    def put(self, state: DictionaryState) -> DictionaryState:
        """A state, from host or device, where `advance` wants it."""
        placed: DictionaryState = jax.device_put(state, self._shardings)
        return placed

    @cached_property
    def _data(self) -> tuple[Pool, Members]:
        """Pools and members on all devices, so that no call moves them."""
        with jax.ensure_compile_time_eval():  # also where shapes are all that is asked for
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
        """Members over `trial`; the axis of features, where there is one, over `model`."""
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
    """One member for each of the three, which go together; equal seeds draw alike."""
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
    """Pools of the same groups, of so many states each (default: one group); empty ones go."""
    counts = np.array([x.shape[1]]) if counts is None else counts
    first = np.cumsum(counts) - counts
    kept = counts > 0
    repeated = [np.tile(part[kept].astype(np.int32), (len(x), 1)) for part in (first, counts)]
    return Pool(x, y, *map(jnp.asarray, repeated))


def make_mesh(trial: int = -1, model: int = 1) -> jax.sharding.Mesh:
    """A mesh for `Population`: members over `trial`, features over `model`."""
    return sharding.make_mesh({"trial": trial, "data": 1, "model": model})


def _data_of(pools: Pool, member: Members) -> TrainingData:
    """What one member is trained on."""
    pool = Pool(*(part[member.pool] for part in pools))
    return TrainingData(pool, member.sparsity, member.key)
