"""Which variable does each attention head copy to a later position?

A route leads from a source position to a later target position. On a route, a head adds the vector
`A[target, source] v[source] W_O` to the residual stream. The head copies a variable if three
conditions hold: it attends to the source, the vector is not negligible beside the residual stream,
and the vector identifies the value of the variable on held-out facts.

The state at a source can contain several variables, such as e1, r1 and e2 at r1. A vector
identifies the variable whose values it separates while the other variables vary: it is compared
with class means over other facts, which have the same value and other values of all remaining
variables. A vector that identifies e2 therefore does not identify e1 or r1. A variable that is not
used later is copied as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Int, Key

from implicit_reasoning.analysis.claims import (
    MAJORITY,
    MIN_CLUSTERS,
    MIN_LOWER_BOUND,
    Claim,
    above_chance,
    has_min_clusters,
    known_means,
)
from implicit_reasoning.analysis.components.moved_vectors import (
    identify,
    identify_pairs,
    moved_sites,
    moved_vectors,
)
from implicit_reasoning.analysis.drawing import heat_maps, some_steps
from implicit_reasoning.analysis.facts import FactRows, fact_rows, first_known_position
from implicit_reasoning.analysis.instrument import Examples, Instrument, NotApplicable
from implicit_reasoning.analysis.queries import random_matches
from implicit_reasoning.analysis.states import chain_variables, prompts, state_keys
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.model.units import Head
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.clusters import clusters_of

TRUTHS = ("true", "shuffled")
GROUPS = ("in chains", "not in chains")
"""Groups of first facts: those of training chains, and those that begin no training chain."""
PREFIX = "prefix"
CLUSTER = "cluster"

MIN_SIZE = 0.05
"""A copied vector varies by at least this share of the variation of the residual stream."""

_MAX_FACTS = 1000
_SEED = 0
_CELL = ("block", "head", "route", "example")


class HeadMoves(Instrument):
    """Instrument that finds the variable that each head copies from an earlier position."""

    name = "head_moves"
    definition = (
        "A head adds A[target, source] v[source] W_O to the residual stream at a target (vector of "
        "a route). identified: whether the vector is nearer to the mean vector of its own value "
        "of a variable than to the mean of any other value; means are over the first facts of "
        "training chains, without the fact itself, one chain per fact. A variable that the prefix "
        "of the source does not determine has no value there. The variable `prefix` is the whole "
        "prefix of the source, with means over one chain and vectors of another chain. truth: "
        "the values are true, or shuffled between facts. mass: A[target, source]. size: length of "
        "the vector minus its mean, divided by the length of the residual stream at the target "
        "after attention, minus its mean; lengths are square roots of mean squares over facts."
    )
    outputs = {
        "identified": ("variable", "truth", *_CELL),
        "known": ("variable", "route", "example"),
        "mass": _CELL,
        "size": ("block", "head", "route"),
    }
    given = {"identified": "known"}
    nulls = {"shuffled values": {"truth": "shuffled"}}
    default = False

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose one chain for each first fact.

        In confidence intervals, facts with the same tail (e2) form a cluster.

        Raises:
          NotApplicable: the task is not a chain task, or the blocks of the model are not `gpt2`.
        """
        require_gpt2(model.spec, "instrument head_moves", NotApplicable)
        facts = fact_rows(dataset, _MAX_FACTS)
        routes, values = _routes(dataset), _values(dataset, facts)
        in_chains = dataset.truth["exposure1"][facts.rows] > 0
        prefixes = _numbered(state_keys(dataset, facts.rows))[:-1]
        group = np.where(in_chains | ~in_chains.any(), 0, 1)
        random = np.random.default_rng(_SEED)
        others, has_other = _other_chains(dataset, facts.rows, random)
        shuffled = np.stack([random.permutation(line) for line in values.labels])
        inputs = {
            "tokens": prompts(dataset, facts.rows),
            "others": others,
            "source": routes.source.astype(np.int32),
            "target": routes.target.astype(np.int32),
            "labels": np.stack([values.labels, shuffled], axis=1).astype(np.int32),
            "prefixes": np.stack([prefixes, random.permuted(prefixes, axis=1)], axis=1),
            "fits": (group == 0).astype(np.float32),
            "classes": np.arange(values.labels.max() + 1, dtype=np.int32),
            "known": _known(values, routes, group == 0, has_other),
        }
        coords = {
            "variable": (*values.names, PREFIX),
            "truth": TRUTHS,
            "route": routes.names,
        }
        clusters = clusters_of(dataset, facts.rows)
        return Examples(inputs, GROUPS[: group.max() + 1], group, clusters, coords=coords)

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the labels of the blocks and heads."""
        return {"block": range(model.spec.depth), "head": range(model.spec.n_heads)}

    def sites(self, model: Transformer) -> tuple[str, ...]:
        """Return the names of the sites of patterns, values and the residual after attention."""
        return moved_sites(model)

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute the vectors of all heads and routes, and the values that they identify."""
        source, target = jnp.asarray(inputs["source"]), jnp.asarray(inputs["target"])
        moved = moved_vectors(model, params, inputs["tokens"], source, target)
        mean = moved.vectors.mean(3, keepdims=True)
        cells = (moved.vectors - mean).reshape(-1, *moved.vectors.shape[3:])
        # A prefix is identified among the vectors of other chains.
        others = jax.vmap(
            lambda tokens: moved_vectors(model, params, tokens, source, target).vectors
        )(jnp.asarray(inputs["others"]))
        own_source = others[source, :, :, jnp.arange(len(source))]  # [route, block, head, ...]
        others = (jnp.moveaxis(own_source, 0, 2) - mean).reshape(cells.shape)

        fits, classes = jnp.asarray(inputs["fits"]), jnp.asarray(inputs["classes"])

        def variable(labels: Array) -> Bool[Array, "cell row"]:
            return jax.lax.map(lambda cell: identify(cell, labels, fits, classes), cells)

        def prefix(labels: Array) -> Bool[Array, "cell row"]:
            """Identify prefixes; each route has the prefixes of its source."""
            own, of_others = (
                jnp.tile(numbers[source], (len(cells) // len(source), 1))
                for numbers in (jnp.asarray(inputs["prefixes"])[:, 0], labels)
            )
            arguments = cells, others, own, of_others
            return jax.lax.map(lambda cell: identify_pairs(*cell), arguments)

        by_variable = jax.lax.map(
            lambda both: jax.lax.map(variable, both), jnp.asarray(inputs["labels"])
        )
        by_prefix = jax.lax.map(prefix, jnp.swapaxes(jnp.asarray(inputs["prefixes"]), 0, 1))
        identified = jnp.concatenate([by_variable, by_prefix[None]])
        shape = (*identified.shape[:2], *moved.vectors.shape[:3], -1)
        return {
            "identified": identified.reshape(shape),
            "known": jnp.asarray(inputs["known"]),
            "mass": moved.mass,
            "size": moved.size,
        }

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw, for each head and route, how often the copied vector identifies each variable."""
        group = str(result.group.values[0])
        shares, null = (
            known_means(result, "identified").sel(truth=truth, group=group) for truth in TRUTHS
        )
        written = (result.mass_low >= MAJORITY) & (result["size"] >= MIN_SIZE)
        columns = [
            (str(name), str(route))
            for route in result.route.values
            for name in result.variable.values
            if shares.sel(variable=name, route=route).notnull().any()
        ]
        steps = some_steps(result, 3)

        def table(values: xr.DataArray) -> xr.DataArray:
            cells = [
                values.sel(variable=name, route=route).stack(cell=("block", "head"))
                for name, route in columns
            ]
            names = [f"a{block}.h{head}" for block, head in cells[0].cell.values]
            data = np.stack([cell.values for cell in cells], axis=1)
            titles = [f"{name}\n{route}" for name, route in columns]
            return xr.DataArray(data, {"head": names, "moved": titles}, ("head", "moved"))

        maps, nulls = (
            {f"step {step:,}": table(values.sel(step=step)) for step in steps}
            for values in (shares.where(written.sel(group=group)), null)
        )
        drawing = heat_maps(
            maps,
            "share of facts whose value is identified",
            nulls=nulls,
            ncols=len(steps),
            rows="head",
            columns="moved",
            width=0.75,
        )
        caption = (
            "A head copies a variable if the vector that it adds at the target of a route "
            "identifies the value of the variable. A column has the variable and the route "
            f"(source -> target). A cell is the share of facts of the group {group!r} whose vector "
            "is nearest to the mean vector of other facts with the same value. The number in "
            "brackets is the null: the values are shuffled between facts. Cells are white if the "
            f"attention of the target to the source is less than {MAJORITY} (lower end), if the "
            f"vector varies by less than {MIN_SIZE} of the residual stream, or if fewer than "
            f"{MIN_CLUSTERS} clusters count. A variable that is copied need not be used."
        )
        return [Figure(self.name, "Which variable does each head copy?", caption, drawing)]

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """Claim "moves" for each head and variable that fulfill the conditions on some route.

        - The lower end of `mass` is at least `MIN_LOWER_BOUND`, and `size` is at least `MIN_SIZE`.
          Uniform attention therefore supports no claim.
        - The lower end of `identified` is at least `MIN_LOWER_BOUND`, and above the null.
        - For a variable that is not a token, such as e2, the test must distinguish a code of the
          variable from a code that only training chains produce. The claim therefore needs facts
          that begin no training chain, and their vectors must identify the variable as well. If
          most of them do not (upper end at most `MAJORITY`), the claim is about the variable
          `cluster`.
        - The claim is about the variable `prefix` if the vectors identify the prefix, and identify
          no single variable better than shuffled values do.
        """
        null = {"truth": TRUTHS}
        there = above_chance(result, "identified", null, least=MIN_LOWER_BOUND)
        enough = has_min_clusters(result, "identified").sel(truth=TRUTHS[0], drop=True)
        high = result.identified_high.sel(truth=TRUTHS[0], drop=True)
        low, by_chance = (
            result[name].sel(truth=truth, drop=True)
            for name, truth in zip(("identified_low", "identified_high"), TRUTHS, strict=True)
        )
        copied = (result.mass_low >= MIN_LOWER_BOUND) & (result["size"] >= MIN_SIZE)
        first = {"group": GROUPS[0]}
        found: set[Claim] = set()

        def add(variable: str, where: xr.DataArray) -> None:
            cells = (where & copied.sel(first)).any("route").transpose("block", "head")
            found.update(
                Claim("moves", variable, Head(int(block), int(head)))
                for (block, head), value in cells.to_series().items()
                if value
            )

        variables = [name for name in result.variable.values if name != PREFIX]
        for name in variables:
            of = {"variable": name}
            in_chains = (there & enough).sel({**of, **first})
            if GROUPS[1] not in result.group:
                if _is_token(name):
                    add(name, in_chains)
                continue
            second = {**of, "group": GROUPS[1]}
            apart = enough.sel(second)
            if _is_token(name):
                add(name, in_chains & (there.sel(second) | ~apart))
            else:
                add(name, in_chains & there.sel(second) & apart)
                if name == "e2":
                    add(CLUSTER, in_chains & apart & (high.sel(second) <= MAJORITY))
        single = (low > by_chance).sel({"variable": variables, **first}).any("variable")
        add(PREFIX, (there & enough).sel({"variable": PREFIX, **first}) & ~single)
        return found


def _is_token(variable: str) -> bool:
    """Return whether a variable is a token of the prompt, and not computed from facts."""
    return variable == "e1" or variable.startswith("r")


class _Routes(NamedTuple):
    """Pairs of an earlier and a later position.

    Attributes:
      names: the names, such as "e1->r1".
      source, target: the indices of the positions.
    """

    names: tuple[str, ...]
    source: Int[np.ndarray, " route"]
    target: Int[np.ndarray, " route"]


def _routes(dataset: Dataset) -> _Routes:
    target, source = np.tril_indices(len(dataset.positions), -1)
    places = dataset.positions
    names = tuple(f"{places[s]}->{places[t]}" for s, t in zip(source, target, strict=True))
    return _Routes(names, source, target)


class _Values(NamedTuple):
    """The variables that a position before the last one determines, and their values.

    Attributes:
      names: the names of the variables.
      first: the index of the first position whose prefix determines each variable.
      labels: the value of each variable in each row, numbered from 0.
    """

    names: tuple[str, ...]
    first: Int[np.ndarray, " variable"]
    labels: Int[np.ndarray, "variable row"]


def _values(dataset: Dataset, facts: FactRows) -> _Values:
    found, positions = chain_variables(dataset, facts.rows), list(dataset.positions)
    first = np.array([positions.index(first_known_position(n, positions)) for n in found.names])
    kept = np.flatnonzero(first < len(positions) - 1)
    names = tuple(found.names[index] for index in kept)
    return _Values(names, first[kept], _numbered(found.values[kept]))


def _numbered(lines: Int[np.ndarray, "line row"]) -> Int[np.ndarray, "line row"]:
    """Number the distinct values of each line from 0."""
    numbers = [np.unique(line, return_inverse=True)[1].reshape(-1) for line in lines]
    return np.stack(numbers).astype(np.int32)


def _other_chains(
    dataset: Dataset, rows: Int[np.ndarray, " row"], random: np.random.Generator
) -> tuple[Int[np.ndarray, "source row pos"], Bool[np.ndarray, "source row"]]:
    """Return, for each source and row, another chain with the same prefix up to the source.

    Returns:
      The tokens of the chains, and whether there is such a chain. If there is none, the tokens are
      those of the row itself.
    """
    chains = np.flatnonzero(dataset.truth[f"fact{dataset.hops}"] >= 0)
    keys = state_keys(dataset, np.concatenate([rows, chains]))
    tokens, found, there = prompts(dataset, rows), [], []
    for line, later in pairwise(keys):
        own, table = np.split(_numbered(line[None])[0][:, None], [len(rows)])

        def differs(row: np.ndarray, item: np.ndarray, later: np.ndarray = later) -> np.ndarray:
            different: np.ndarray = later[row] != later[len(rows) + item]
            return different

        match = random_matches(own, table, differs, random)
        there.append(match >= 0)
        other = prompts(dataset, chains[np.maximum(match, 0)])
        found.append(np.where(there[-1][:, None], other, tokens))
    return np.stack(found), np.stack(there)


def _known(
    values: _Values,
    routes: _Routes,
    fits: Bool[np.ndarray, " row"],
    has_other: Bool[np.ndarray, "source row"],
) -> Bool[np.ndarray, "variable route row"]:
    """Return whether each row can be compared with the mean of its own value, on each route.

    The mean needs another fact with the same value. The prefix of a first position is its token, so
    the variable `prefix` has no values there.
    """
    enough = []
    for line in values.labels:
        counts = np.bincount(line[fits], minlength=line.max() + 1)
        enough.append(counts[line] - fits >= 1)
    determined = values.first[:, None] <= routes.source
    variables = determined[..., None] & np.stack(enough)[:, None]
    prefix = has_other[routes.source] & (routes.source > 0)[:, None]
    return np.concatenate([variables, prefix[None]])
