"""The tuned lens, which applies a learned affine map to each state before the unembedding.

For every (layer, position), a map `h -> h + A h + b` is learned (Belrose et al. 2023). The loss is
the KL divergence between the final prediction of the model and the prediction of the lens, at the
same position. The initial map comes from a ridge regression, which predicts the difference between
the final state and `h`. Adam then optimizes the map. The lens is scored on held-out prefixes.

A correct prediction does not show that the state represents the answer. The state may represent
only the prefix, and the learned map may compute the answer from the prefix.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Bool, Float, Key

from implicit_reasoning.analysis.claims import MIN_LOWER_BOUND, Claim, above_chance, claimed
from implicit_reasoning.analysis.drawing import curves
from implicit_reasoning.analysis.facts import (
    fact_rows,
    first_known_position,
    first_occurrences,
    is_training_prefix,
    state_folds,
)
from implicit_reasoning.analysis.instrument import Examples, Instrument
from implicit_reasoning.analysis.patching.outcomes import divergence
from implicit_reasoning.analysis.reading.ranking import ranks
from implicit_reasoning.analysis.reading.ridge import affine
from implicit_reasoning.analysis.states import (
    chain_variables,
    prompts,
    residuals,
    state_keys,
)
from implicit_reasoning.figures import GREY, Figure
from implicit_reasoning.model import HookContext, Network, Params, Transformer
from implicit_reasoning.worlds import Dataset

LENSES = ("logit lens", "tuned lens")
TRUTHS = ("true", "shuffled")
_FOLDS = 4  # one fold is held out
_MAX_FACTS = 4000  # maximum number of facts; larger worlds use all facts of some bridges
_STEPS, _RATE = 100, 1e-3  # steps and learning rate of Adam


class TunedLens(Instrument):
    """Instrument that ranks the tokens of variables such as e2 by the logits of a tuned lens."""

    name = "tuned_lens"
    version = 2
    default = False  # the instrument trains a map for every (layer, position), which is slow
    definition = (
        "Rank of a truth variable's token in unembed(norm(h + A h + b)), where h = S[layer, "
        "pos] (Belrose et al. 2023). A and b are fitted by a ridge regression, and then by "
        f"{_STEPS} steps of Adam with learning rate {_RATE:g} on KL(final logits || lens). The "
        "prefixes are those of one chain per first fact. A quarter of the prefixes is held out "
        "and scored, whether they occur in training or not. The lens is fitted to the other "
        "prefixes that occur in training. At layer 0, where a state is the embedding of its "
        "token, a quarter of the tokens is held out instead. At the last layer, the lens is "
        "the identity. top1: whether the rank is 0; a tie counts against the token. "
        "reciprocal_rank: 1 / (1 + rank). kl: KL(final logits || lens), in nats. The logit "
        "lens is measured on the same states. Null: the truth of another state, drawn at "
        "random."
    )
    outputs = {
        **{
            name: ("lens", "truth", "variable", "layer", "pos", "example")
            for name in ("top1", "reciprocal_rank")
        },
        "kl": ("lens", "layer", "pos", "example"),
        "scored": ("layer", "pos", "example"),
    }
    # The held-out examples differ between layer 0 and the other layers.
    given = {name: "scored" for name in ("top1", "reciprocal_rank", "kl")}
    nulls = {"shuffled truth": {"truth": "shuffled"}}

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose one chain for each first fact, and hold out a quarter of the states.

        States are held out separately for each (layer, position).
        """
        facts = fact_rows(dataset, _MAX_FACTS)
        variables = chain_variables(dataset, facts.rows)
        tokens, prefixes = prompts(dataset, facts.rows), state_keys(dataset, facts.rows)
        counted = first_occurrences(prefixes)
        folds = state_folds(tokens.T, prefixes, model.spec.depth + 1, _FOLDS)
        shuffled = np.random.default_rng(0).permutation(len(facts.rows))
        fitted = (folds != 0) & counted & is_training_prefix(dataset, facts.rows)
        # If a (layer, position) has no states to fit a lens to, there is no lens to score.
        scored = (folds == 0) & counted & fitted.any(-1, keepdims=True)
        inputs = {
            "tokens": tokens,
            "fitted": fitted,
            "scored": scored,
            "wanted": np.stack([variables.tokens, variables.tokens[:, shuffled]]),
        }
        return Examples(
            inputs,
            groups=facts.groups,
            group=facts.group,
            clusters=np.where(scored.any(0), prefixes, -1),
            cluster_dim="pos",
            coords={"lens": LENSES, "truth": TRUTHS, "variable": variables.names},
        )

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Fit the lenses, and compute ranks and KL divergences for every state.

        The output `scored` marks the held-out states.
        """
        network, wanted = model.bind(params), jnp.asarray(inputs["wanted"])
        states = jnp.swapaxes(residuals(model, params, inputs["tokens"]), 1, 2)
        final = states[-1]

        def outcomes(cell: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            """Return ranks [lens, truth, variable, row] and KL [lens, row] at a (layer, pos)."""
            state, last, fitted = cell
            said = network.readout(last, HookContext())
            # At the last layer the target of the ridge regression is 0, so the lens is the
            # identity.
            lenses = [
                network.readout(state, HookContext()),
                network.readout(_tuned(network, state, last, said, fitted), HookContext()),
            ]
            rank = jnp.stack([ranks(lens, wanted) for lens in lenses])
            return rank, jnp.stack([divergence(lens, said) for lens in lenses])

        def layer(cells: tuple[Array, Array]) -> tuple[Array, Array]:
            found: tuple[Array, Array] = jax.lax.map(outcomes, (cells[0], final, cells[1]))
            return found

        rank, kl = jax.lax.map(layer, (states, jnp.asarray(inputs["fitted"])))
        rank = jnp.moveaxis(rank, (0, 1), (3, 4))
        return {
            "top1": rank == 0,
            "reciprocal_rank": 1 / (1 + rank),
            "kl": jnp.moveaxis(kl, 2, 0),
            "scored": jnp.asarray(inputs["scored"]),
        }

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """Claim "decodable" where the lens ranks the true token first in most held-out states.

        The share of states must also be above the null control, in which the truth is shuffled.
        """
        best = result.isel(group=0).sel(lens="tuned lens")
        by_chance = {"truth": ("true", "shuffled")}
        return claimed("decodable", above_chance(best, "top1", by_chance, least=MIN_LOWER_BOUND))

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the top-1 share of each lens, and the KL divergence of each lens.

        The top-1 share is drawn for e2 and for the answer, at the first position whose prefix
        determines the variable. The KL divergence is from the final logits to the lens.
        """
        return [_top1(result), _distance(result)]


def _tuned(
    network: Network,
    state: Float[Array, "row width"],
    last: Float[Array, "row width"],
    said: Float[Array, "row token"],
    fitted: Bool[Array, " row"],
) -> Float[Array, "row width"]:
    """Fit the map of the lens to some states, and return all states after the map.

    Args:
      network: the model with its parameters.
      state: the states to map.
      last: the states before the final norm, at the same position.
      said: the final logits at the same position.
      fitted: mask of the states that the map is fitted to.
    """
    weight = fitted.astype(jnp.float32)

    def mapped(lens: tuple[Array, Array]) -> Array:
        moved = jnp.matmul(state, lens[0], precision=jax.lax.Precision.HIGHEST)
        return state + moved + lens[1][None]

    def loss(lens: tuple[Array, Array]) -> Array:
        kl = divergence(network.readout(mapped(lens), HookContext()), said)
        return (kl * weight).sum() / weight.sum()

    optimizer = optax.adam(_RATE)

    def step(_: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        lens, memory = carry
        updates, memory = optimizer.update(jax.grad(loss)(lens), memory)
        return optax.apply_updates(lens, updates), memory

    start = affine(state, last - state, weight)
    lens, _ = jax.lax.fori_loop(0, _STEPS, step, (start, optimizer.init(start)))
    better = loss(lens) < loss(start)  # false if the initial map is already exact
    return jnp.where(better, mapped(lens), mapped(start))


def _top1(result: xr.Dataset) -> Figure:
    positions, lead = list(result.pos.values), str(result.group.values[0])
    panels = {
        f"{variable} at {first_known_position(variable, positions)}, {lens}": {
            "lens": lens,
            "variable": variable,
            "pos": first_known_position(variable, positions),
        }
        for lens in LENSES
        for variable in ("e2", "answer")
    }
    drawing = curves(
        result,
        "top1",
        panels,
        select={"group": lead, "truth": "true"},
        nulls={"null: shuffled truth": ({"group": lead, "truth": "shuffled"}, GREY)},
        label="share of held-out states with the token as top-1",
        ncols=2,
    )
    n = result["kl_n"].isel(step=-1, layer=-1, lens=0).sel(group=lead)
    counts = ", ".join(f"{int(n.sel(pos=p))} at {p}" for p in positions)
    caption = (
        "Each curve shows the share of states for which the token of the bridge (e2) or of the "
        "answer is the top-1 token of a lens, for one layer. The top row uses the logit lens, "
        "and the bottom row uses a tuned lens. The states were not used to fit the tuned lens "
        f"({lead} facts; numbers of states above layer 0: {counts}). What only the tuned lens "
        "finds is represented in a basis other than that of the unembedding. The shading is the "
        "95% interval over states. The dashed line is the null: the truth of another state, as "
        "the maximum over layers. At the last layer, both lenses give the model's own output."
    )
    return Figure("tuned_lens", "Logit lens and tuned lens", caption, drawing)


def _distance(result: xr.Dataset) -> Figure:
    lead = str(result.group.values[0])
    highest = float(result["kl"].sel(group=lead).max())
    panels = {
        f"{lens}, {pos}": {"lens": lens, "pos": pos} for lens in LENSES for pos in result.pos.values
    }
    drawing = curves(
        result,
        "kl",
        panels,
        select={"group": lead},
        nulls={},
        label="KL(final logits || lens), nats",
        ncols=result.sizes["pos"],
        highest=max(highest, 1e-3),
    )
    caption = (
        "Each curve shows the mean KL divergence in nats from the model's final logits to a "
        f"lens at the same position, for one layer, on held-out {lead} states. A value of 0 "
        "means that both give the same distribution. The shading is the 95% interval over "
        "states. Before training, all values are near 0, because all logits are near 0."
    )
    return Figure(
        "tuned_lens_kl", "Difference between lenses and the final logits", caption, drawing
    )
