"""Measure whether states of facts with the same bridge (e2) are similar.

The cosine lens of Ye et al. 2025 has two measures. ID facts are facts that occur in training
chains. The centroid of a bridge e2 is the mean state of the ID facts whose tail is e2. ID cohesion
is the mean cosine between states of ID facts and the centroid of their bridge. OOD alignment is the
mean cosine between states of OOD facts and the centroid of their bridge. This module adds four
measures:

- Cosines with centroids that exclude the compared state.
- Cosines with the centroids of all other bridges, as a control.
- Cosines of centered states, from which the mean of the ID states is subtracted. Without this step,
  all states are similar, because the mean is large.
- Retrieval, the share of states whose nearest centroid belongs to their own bridge.

Attribute enrichment at e1 (Geva et al. 2023) is measured with the unembedded state at e1. If the
facts of e1 have m different tails, attribute enrichment is the share of these tails among the m
entities with the highest logits. The module also projects the states of some bridges to two
dimensions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float, Int, Key

from implicit_reasoning.analysis.claims import MIN_LOWER_BOUND, Claim, above_chance, claimed
from implicit_reasoning.analysis.drawing import curves, heat_maps, scatters, some_steps
from implicit_reasoning.analysis.facts import (
    FactRows,
    fact_rows,
    first_known_position,
    first_occurrences,
)
from implicit_reasoning.analysis.instrument import Examples, Instrument, NotApplicable
from implicit_reasoning.analysis.reading.attributes import WHOSE, tail_shares, tails_of
from implicit_reasoning.analysis.states import prompts, residuals, state_keys
from implicit_reasoning.figures import GREY, ORANGE, Figure
from implicit_reasoning.model import HookContext, Params, Transformer
from implicit_reasoning.runtime.lapack import one_at_a_time
from implicit_reasoning.worlds import Dataset

TRUTHS = ("true", "shuffled")
CENTRINGS = ("as they are", "mean removed")
CENTROIDS = ("with itself", "without itself", "of other bridges")
PROJECTIONS = ("PCA", "MDS of cosine distances")
_MAX_FACTS = 4000  # maximum number of facts; larger worlds use all facts of some bridges
_PICTURED, _EACH = 5, 12  # number of bridges in the projections, and maximum states per bridge


class Geometry(Instrument):
    """Instrument that measures whether states of facts with the same bridge (e2) are similar.

    The centroid of a bridge is the mean state of its ID facts, which occur in training chains. The
    instrument computes cosines between states and centroids, and the nearest centroid of each
    state. The instrument also decodes tails of e1 from the state at e1, and projects states to two
    dimensions.
    """

    name = "geometry"
    definition = (
        "cosine: cosine of S[layer, pos] with a centroid, the mean of the ID states of the "
        "same bridge e2. The mean over the group id is ID cohesion, and the mean over the "
        "group ood is OOD alignment (Ye et al. 2025, but averaged over states, not over "
        "bridges). centroid: the centroid with the state itself, the centroid without the "
        "state itself, or the average over the centroids of all other bridges. centring: "
        "states as they are, or minus the mean of all ID states at this layer and position. "
        "retrieval: whether the nearest centroid (without the state itself) is that of the "
        "state's own bridge, among n_bridges; a tie is wrong. attributes: share of the m "
        "entities that unembed(norm(S)) ranks highest at e1 that are tails of e1 (own), or of "
        "another entity; m is the number of those tails (Geva et al. 2023). picture: two "
        "coordinates of states at the position where e2 is first known, from a PCA of centered "
        "states or from classical MDS of cosine distances. Null: bridges shuffled between "
        "states. Layer 0 is a further null, because a state at layer 0 is the embedding of its "
        "token."
    )
    outputs = {
        "cosine": ("truth", "centring", "centroid", "layer", "pos", "example"),
        "retrieval": ("truth", "centring", "layer", "pos", "example"),
        "attributes": ("whose", "layer", "example"),
        "picture": ("projection", "layer", "point", "axis"),
        "n_bridges": (),
    }
    nulls = {
        "shuffled bridges": {"truth": "shuffled"},
        "other bridges' centroids": {"centroid": CENTROIDS[2]},
        "tails of another entity": {"whose": "another's"},
    }

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose one chain for each first fact.

        A fact is dropped if its tail is the tail of fewer than two facts of the first group. The
        first group usually contains the ID facts, which occur in training chains.
        """
        facts = fact_rows(dataset, _MAX_FACTS)
        if "e1" not in dataset.positions:
            raise NotApplicable(
                "geometry needs prompts with the position e1, but prompts of this task have the "
                f"positions {', '.join(dataset.positions)}"
            )
        facts, bridge = _of_common_bridges(facts, dataset.truth["e2"])
        leads = facts.group == 0
        shuffled = bridge.copy()
        for part in (leads, ~leads):
            shuffled[part] = np.random.default_rng(0).permutation(bridge[part])
        keys = state_keys(dataset, facts.rows)
        # A state counts once for each bridge of its facts. For example, if two relations of e1 lead
        # to the same bridge, the state at e1 counts once for both facts.
        prefixes = np.stack([np.unique(line, return_inverse=True)[1] for line in keys])
        counted = first_occurrences(prefixes * (bridge.max() + 1) + bridge)
        position = dataset.positions.index(first_known_position("e2", dataset.positions))
        points = _pictured(bridge, leads, counted[position])
        names = [f"e2={dataset.truth['e2'][facts.rows[i]]}" for i in points]
        inputs = {
            "tokens": prompts(dataset, facts.rows),
            "bridge": np.stack([bridge, shuffled]).astype(np.int32),
            "weight": (counted & leads).astype(np.float32),
            "bridges": np.arange(bridge.max() + 1, dtype=np.int32),
            "points": points,
            "known": np.int32(position),
            "e1": np.int32(dataset.positions.index("e1")),
            "tails": tails_of(dataset, dataset.truth["e1"][facts.rows]),
        }
        groups = [facts.groups[group] for group in facts.group[points]]
        return Examples(
            inputs,
            groups=facts.groups,
            group=facts.group,
            clusters=np.where(counted, keys, -1),
            cluster_dim="pos",
            coords={
                "truth": TRUTHS,
                "centring": CENTRINGS,
                "centroid": CENTROIDS,
                "whose": WHOSE,
                "projection": PROJECTIONS,
                "point": [f"{name} {group}" for name, group in zip(names, groups, strict=True)],
                "axis": (1, 2),
            },
        )

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute cosines, retrieval, attribute enrichment and projections of the states."""
        states = jnp.swapaxes(residuals(model, params, inputs["tokens"]), 1, 2)
        bridge, bridges = jnp.asarray(inputs["bridge"]), jnp.asarray(inputs["bridges"])

        def place(cell: tuple[Array, Array]) -> _Near:
            state, weight = cell
            mean = (state * weight[:, None]).sum(0) / weight.sum()
            both = [
                [_nearness(x, one, weight, bridges) for x in (state, state - mean[None])]
                for one in bridge
            ]
            return jax.tree.map(
                lambda *parts: jnp.stack(parts).reshape(
                    len(TRUTHS), len(CENTRINGS), *parts[0].shape
                ),
                *[near for of_truth in both for near in of_truth],
            )

        weights = jnp.asarray(inputs["weight"])
        near = jax.lax.map(lambda layer: jax.lax.map(place, (layer, weights)), states)
        network = model.bind(params)
        attributes = jax.lax.map(
            lambda state: tail_shares(
                network.readout(state, HookContext()), jnp.asarray(inputs["tails"])
            ),
            states[:, inputs["e1"]],
        )
        pictured = states[:, inputs["known"]][:, jnp.asarray(inputs["points"])]
        return {
            "cosine": jnp.moveaxis(near.cosine, (0, 1), (3, 4)),
            "retrieval": jnp.moveaxis(near.retrieved, (0, 1), (2, 3)),
            "attributes": jnp.moveaxis(attributes, 0, 1),
            "picture": jnp.stack([jax.lax.map(way, pictured) for way in (pca, mds)]),
            "n_bridges": jnp.asarray(len(inputs["bridges"])),
        }

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """Claim "decodable" for e2 where most states are nearest to the centroid of their bridge.

        The centroid of a bridge is the mean state of its ID facts, without the compared state. ID
        facts are facts that occur in training chains. The share of states must also be above the
        null control, in which bridges are shuffled.
        """
        best = result.isel(group=0).sel(centring=CENTRINGS[1])
        by_chance = {"truth": ("true", "shuffled")}
        there = above_chance(best, "retrieval", by_chance, least=MIN_LOWER_BOUND)
        return claimed("decodable", there.drop_vars("group").expand_dims(variable=["e2"]))

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw cosines over training, retrieval, attribute enrichment and projections."""
        return [_cosines(result), _retrieval(result), _enrichment(result), _picture(result)]


class _Near(NamedTuple):
    """Similarity of each state to centroids.

    Attributes:
      cosine: cosine with each of `CENTROIDS`.
      retrieved: whether the nearest centroid is that of the state's own bridge.
    """

    cosine: Float[Array, "centroid row"]
    retrieved: Bool[Array, " row"]


def _of_common_bridges(
    facts: FactRows, e2: Int[np.ndarray, "any"]
) -> tuple[FactRows, Int[np.ndarray, " row"]]:
    """Return the facts whose bridge has at least two facts of the leading group.

    Returns:
      The facts, and the number of each fact's bridge. Bridges are numbered 0, 1, ...

    Raises:
      NotApplicable: no bridge has two facts of the leading group.
    """
    values = e2[facts.rows]
    many, count = np.unique(values[facts.group == 0], return_counts=True)
    kept = np.isin(values, many[count >= 2])
    if not kept.any():
        raise NotApplicable(
            "geometry compares facts with the same tail, but no two facts of the group "
            f"{facts.groups[0]!r} have the same tail"
        )
    bridge = np.unique(values[kept], return_inverse=True)[1]
    return FactRows(facts.rows[kept], facts.groups, facts.group[kept]), bridge


def _pictured(
    bridge: Int[np.ndarray, " row"],
    leads: Bool[np.ndarray, " row"],
    counted: Bool[np.ndarray, " row"],
) -> Int[np.ndarray, " point"]:
    """Choose the rows that are drawn.

    They are rows of the bridges with the most facts outside of the leading group. Between bridges
    with equally many such facts, the bridge with more facts in total is chosen.
    """
    outside = np.bincount(bridge[~leads & counted], minlength=bridge.max() + 1)
    total = np.bincount(bridge[counted], minlength=bridge.max() + 1)
    chosen = np.lexsort((-total, -outside))[:_PICTURED]
    rows = []
    for one in chosen:
        there = np.flatnonzero((bridge == one) & counted)
        rows.append(there[np.argsort(leads[there], kind="stable")][:_EACH])
    return np.concatenate(rows).astype(np.int32)


def _nearness(
    state: Float[Array, "row width"],
    bridge: Int[Array, " row"],
    weight: Float[Array, " row"],
    bridges: Int[Array, " bridge"],
) -> _Near:
    """Compute the cosines of each state with centroids.

    Centroids are sums instead of means, because both have the same direction.
    """
    member = (bridge[:, None] == bridges[None]).astype(jnp.float32)
    sums = _dot((member * weight[:, None]).T, state)
    cosines = _dot(_unit(state), _unit(sums).T)
    own = (cosines * member).sum(-1)
    rest = sums[bridge] - state * weight[:, None]
    without = (_unit(state) * _unit(rest)).sum(-1)
    others = (cosines * (1 - member)).sum(-1) / jnp.maximum(len(bridges) - 1, 1)
    highest = jnp.where(member > 0, -jnp.inf, cosines).max(-1)
    return _Near(jnp.stack([own, without, others]), without > highest)


def pca(states: Float[Array, "point width"]) -> Float[Array, "point axis"]:
    """Return the coordinates of states on their first two principal components."""
    centred = states - states.mean(0, keepdims=True)
    return _principal(_dot(centred, centred.T))


def mds(states: Float[Array, "point width"]) -> Float[Array, "point axis"]:
    """Return two-dimensional coordinates from classical scaling of the distances 1 - cosine.

    Source: Torgerson 1952.
    """
    unit = _unit(states)
    squared = (1 - _dot(unit, unit.T)) ** 2
    centred = squared - squared.mean(0, keepdims=True)
    return _principal(-0.5 * (centred - centred.mean(1, keepdims=True)))


def _principal(products: Float[Array, "point point"]) -> Float[Array, "point axis"]:
    """Return the two-dimensional coordinates whose inner products are nearest to `products`.

    The sign of an axis is arbitrary. It is chosen such that the coordinate of largest absolute
    value is positive.
    """
    values, vectors = one_at_a_time(jnp.linalg.eigh, products)
    values, vectors = values[-1:-3:-1], vectors[:, -1:-3:-1]
    furthest = jnp.take_along_axis(vectors, jnp.abs(vectors).argmax(0)[None], axis=0)
    return vectors * jnp.sign(furthest) * jnp.sqrt(jnp.maximum(values, 0))[None]


def _unit(x: Float[Array, "row width"]) -> Float[Array, "row width"]:
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-12)


def _dot(x: Float[Array, "a b"], y: Float[Array, "b c"]) -> Float[Array, "a c"]:
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


def _cosines(result: xr.Dataset) -> Figure:
    pos = first_known_position("e2", list(result.pos.values))
    panels = {
        f"{group} states, {centring}": {"group": group, "centring": centring}
        for centring in CENTRINGS
        for group in result.group.values
    }
    at = {"truth": "true", "pos": pos}
    drawing = curves(
        result,
        "cosine",
        panels,
        select={**at, "centroid": CENTROIDS[1]},
        nulls={
            "centroid with the state\nitself (published)": (
                {**at, "centroid": CENTROIDS[0]},
                ORANGE,
            ),
            "null: centroids of\nother bridges": ({**at, "centroid": CENTROIDS[2]}, GREY),
        },
        label=f"cosine with the bridge's ID centroid at {pos}",
        ncols=result.sizes["group"],
        lowest=-0.25,
    )
    caption = (
        f"Each curve shows the mean cosine of states at {pos} with the centroid of the ID "
        f"states of the same bridge, for one layer ({_counts(result, pos)} states). The "
        "centroid is computed without the state itself. The cosine of id states is called ID "
        "cohesion, and the cosine of ood states is called OOD alignment. The shading is the 95% "
        "interval over states. The dashed lines are maxima over layers. The orange line uses "
        "the centroid with the state itself, as published. The gray line is the null and uses "
        "the centroids of other bridges. The top row uses the states as they are, as published. "
        "In the bottom row, the mean of all ID states is subtracted, because this mean makes "
        "all states look alike."
    )
    return Figure("geometry", "ID cohesion and OOD alignment", caption, drawing)


def _retrieval(result: xr.Dataset) -> Figure:
    final = result.isel(step=-1).sel(centring=CENTRINGS[1])["retrieval"]
    maps = {
        f"{group} states,\n{truth} bridges": final.sel(group=group, truth=truth)
        for group in result.group.values
        for truth in TRUTHS
    }
    drawing = heat_maps(maps, "share of states")
    bridges = int(result["n_bridges"].isel(step=-1))
    caption = (
        "A cell is the share of states whose nearest centroid is that of their own bridge, by "
        f"layer and position, at step {int(result.step[-1]):,}. A centroid is the mean of the "
        "ID states of a bridge, without the state itself. The mean of all ID states is "
        f"subtracted first. There are {bridges} bridges, so a random choice is right with "
        f"probability {1 / bridges:.3f}. The maps of shuffled bridges are the null: bridges are "
        "permuted among the states."
    )
    return Figure("geometry_retrieval", "Is the nearest cluster the right one?", caption, drawing)


def _enrichment(result: xr.Dataset) -> Figure:
    lead = str(result.group.values[0])
    drawing = curves(
        result,
        "attributes",
        {"tails of e1 at position e1": {}},
        select={"group": lead, "whose": "own"},
        nulls={"null: tails of\nanother entity": ({"group": lead, "whose": "another's"}, GREY)},
        label="share of the first m entities",
    )
    caption = (
        "The logit lens ranks all entities by the state at position e1. Each curve shows, for "
        "one layer, the share of the first m entities that are tails of e1, where m is the "
        "number of these tails. The dashed line is the null: the same with the tails of another "
        "entity, as the maximum over layers. A curve above this line means that the state has "
        "gathered the tails of e1 before the relation is known. The shading is the 95% "
        "interval, clustered by the first token of the prompt."
    )
    return Figure("geometry_attributes", "Tails of e1 that are known at e1", caption, drawing)


def _picture(result: xr.Dataset) -> Figure:
    steps, layer = some_steps(result, 3), int(result["layer"][-1])
    panels = {
        f"{projection}, step {step:,}": result["picture"].sel(
            step=step, projection=projection, layer=layer
        )
        for projection in PROJECTIONS
        for step in steps
    }
    labels = [str(label).split(" ") for label in result["point"].values]
    colors, markers = [label[0] for label in labels], [label[1] for label in labels]
    drawing = scatters(panels, colors, markers, ncols=len(steps))
    pos = first_known_position("e2", list(result.pos.values))
    caption = (
        f"Each point is a state at {pos} in layer {layer}. The shown bridges are those with the "
        f"most facts outside the group {result.group.values[0]}. The coordinates are the first "
        "two principal coordinates of the shown states of a checkpoint, from a PCA (top) or "
        "from multidimensional scaling of cosine distances (bottom). A color is a bridge. "
        "Circles are ID facts, and crosses are facts with other roles. If points of one color "
        "are close together, the bridge has the same representation whichever fact leads to it. "
        "The axes have no unit and differ between panels."
    )
    return Figure("geometry_states", "States of some bridges", caption, drawing)


def _counts(result: xr.Dataset, pos: str) -> str:
    counts = result["n_states"].sel(pos=pos)
    return ", ".join(f"{int(counts.sel(group=g))} {g}" for g in result.group.values)
