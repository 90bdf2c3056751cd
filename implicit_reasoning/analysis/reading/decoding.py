"""Decodable, and usable: Ye et al.'s two ways to read a fact off the state after (e1, r1).

*Immediate probing* unembeds S[layer, r1] itself. *Full-run probing* puts it into the same layer of
another prompt and lets the remaining layers decode it there, at r1. Both are Ye et al. 2025's (the
decoding table); corrected: the state goes in at the layer that it came from (theirs one block
later), with and without the final norm, and what counts for OOD facts is counted over OOD facts.

In most tasks the prompt (e1, r1) is itself trained on, so that its last layer decodes to what was
taught by construction; `by_construction` says where.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Int, Key

from implicit_reasoning.analysis.claims import Claim, claimed
from implicit_reasoning.analysis.drawing import curves, heat_maps, some_steps
from implicit_reasoning.analysis.facts import fact_rows, taught_alone
from implicit_reasoning.analysis.instrument import Examples, Instrument, NotApplicable
from implicit_reasoning.analysis.reading.ranking import ranks
from implicit_reasoning.analysis.states import chain_variables, prompts, residuals
from implicit_reasoning.figures import GREY, Figure
from implicit_reasoning.model import Edit, Params, Taps, Transformer, mask
from implicit_reasoning.worlds import Dataset

READINGS = ("immediate", "immediate, no norm", "full run")
TRUTHS = ("true", "another's", "recipient's")
_MOST = 2000  # facts; in larger worlds all those of some bridges
_DECODED = 0.9  # top-1 by immediate probing with the final norm, lower end of the interval
_CHANCE = 3.0  # times the null (another fact's tail)


class Decoding(Instrument):
    """See the module."""

    name = "decoding"
    definition = (
        "top1: share of facts (e1, r1) whose tail is the strict top-1 among all tokens when "
        "S[layer, r1] is read. immediate: unembed(norm(S)), or without the norm; full run: S is "
        "put in at the same layer and position of another fact's prompt (of another e1 and tail), "
        "and the remaining layers decode at r1 (Ye et al. 2025, with their off-by-one corrected). "
        "truth: the fact's tail; another fact's, drawn at random (null); the recipient prompt's. "
        "by_construction: training supervises this very prompt with this very tail, at that layer."
    )
    outputs = {
        "top1": ("reading", "truth", "variable", "layer", "example"),
        "by_construction": ("variable", "layer", "group"),
    }
    nulls = {"another fact's tail": {"truth": TRUTHS[1]}}

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """The prompts (e1, r1) of facts that are first hops, each with a recipient."""
        facts = fact_rows(dataset, _MOST)
        if tuple(dataset.positions[:2]) != ("e1", "r1"):
            raise NotApplicable(
                "decoding reads the prompt (e1, r1) that chains begin with; in this task prompts "
                f"are {', '.join(dataset.positions)} (task.order)"
            )
        variables = chain_variables(dataset, facts.rows)
        wanted = [i for i, name in enumerate(variables.names) if name in ("e2", "decoy")]
        tails = variables.tokens[wanted]
        e1 = variables.values[variables.names.index("e1")]
        recipient = _other(np.stack([e1, *tails]), np.flatnonzero(facts.group == 0), seed=0)
        another = _other(tails, np.arange(len(e1)), seed=1)
        tokens = prompts(dataset, facts.rows)[:, :2]
        inputs = {
            "tokens": tokens,
            "recipients": tokens[recipient],
            "wanted": np.stack([tails, tails[:, another], tails[:, recipient]]),
            "by_construction": _by_construction(model, dataset, facts, tails),
        }
        return Examples(
            inputs,
            groups=facts.groups,
            group=facts.group,
            clusters=dataset.truth["fact1"][facts.rows],
            coords={
                "reading": READINGS,
                "truth": TRUTHS,
                "variable": [variables.names[i] for i in wanted],
                "group": facts.groups,
            },
        )

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Outcomes of every fact."""
        network, wanted = model.bind(params), jnp.asarray(inputs["wanted"])
        states = residuals(model, params, inputs["tokens"])[:, :, 1]
        at_r1 = jnp.array([False, True])[None, :, None]

        def full_run(site: str, state: Array) -> Array:
            edit = Edit(mask, (at_r1, state[:, None]))
            return model.forward(params, inputs["recipients"], edits={site: edit})[0][:, 1]

        by_layer = [
            jnp.stack(
                [
                    ranks(network.readout(state, Taps()), wanted),
                    ranks(network.unembedding(state), wanted),
                    ranks(full_run(site, state), wanted),
                ]
            )
            for site, state in zip(model.resid_sites, states, strict=True)
        ]
        return {
            "top1": jnp.stack(by_layer, axis=3) == 0,
            "by_construction": jnp.asarray(inputs["by_construction"]),
        }

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """Decodable where immediate probing with the final norm finds most tails."""
        best = result.isel(group=0).sel(reading=READINGS[0])
        low, null = best["top1_low"].sel(truth=TRUTHS[0]), best["top1"].sel(truth=TRUTHS[1])
        there = (low >= _DECODED) & (low >= _CHANCE * null)
        return claimed("decodable", there.drop_vars("group").expand_dims(pos=["r1"]))

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Curves over training for every reading and group; the table at some checkpoints."""
        return [_over_training(result), _table(result)]


def _other(
    values: Int[np.ndarray, "variable row"], among: Int[np.ndarray, " chosen"], seed: int
) -> Int[np.ndarray, " row"]:
    """For each row another one at random that differs from it in every variable."""
    random = np.random.default_rng(seed)
    chosen = random.choice(among, values.shape[1])
    for _ in range(1000):
        alike = np.flatnonzero((values[:, chosen] == values).any(0))
        if not len(alike):
            return chosen
        chosen[alike] = random.choice(among, len(alike))
    raise NotApplicable(
        "this world is too small: for some fact there is none with another e1 and e2"
    )


def _by_construction(model: Transformer, dataset: Dataset, facts: Any, tails: Any) -> np.ndarray:
    """bool [variable, layer, group]: the last layer, where most of a group is taught so."""
    shape = (len(tails), model.spec.depth + 1, len(facts.groups))
    found = np.zeros(shape, bool)
    for variable, values in enumerate(tails):  # an entity's number is its token
        taught = taught_alone(dataset, facts.rows, values)
        for group in range(len(facts.groups)):
            found[variable, -1, group] = taught[facts.group == group].mean() > 0.5
    return found


def _over_training(result: xr.Dataset) -> Figure:
    panels = {
        f"{reading}, {group} facts": {"reading": reading, "group": group}
        for group in result.group.values
        for reading in READINGS
    }
    drawing = curves(
        result,
        "top1",
        panels,
        select={"truth": TRUTHS[0], "variable": "e2"},
        nulls={"another fact's tail": ({"truth": TRUTHS[1], "variable": "e2"}, GREY)},
        label="share of facts whose tail is top-1",
        ncols=len(READINGS),
    )
    caption = (
        "How often the state after (e1, r1) gives the fact's tail e2: unembedded as it is "
        "(immediate), or put into another prompt and decoded by the layers that follow (full run). "
        f"A layer counts the blocks before the state. Shading: 95% interval over facts "
        f"({_counts(result)}). Grey: another fact's tail, highest layer. {_construction(result)}"
    )
    return Figure("decoding", "Immediate and full-run decoding of e2", caption, drawing)


def _table(result: xr.Dataset) -> Figure:
    tails = result["top1"].sel(truth=TRUTHS[0])
    maps = {
        f"{variable}, {group} facts,\nstep {step:,}": tails.sel(
            step=step, group=group, variable=variable
        )
        for variable in result["variable"].values
        for group in result.group.values
        for step in some_steps(result)
    }
    short = [reading.replace(", ", ",\n").replace(" run", "\nrun") for reading in READINGS]
    maps = {title: values.assign_coords(reading=short) for title, values in maps.items()}
    last = result.isel(step=-1, group=0).sel(truth=TRUTHS[1], variable="e2")["top1"]
    maps["another fact's tail,\nlast step"] = last.assign_coords(reading=short)
    drawing = heat_maps(
        maps, "share of facts", columns="reading", ncols=len(some_steps(result)), width=0.75
    )
    caption = (
        "Ye et al.'s decoding table at every layer: share of facts whose tail e2 (and, where the "
        "prompt (e1, r1) is taught another answer, that decoy) is top-1, by "
        f"reading, at some checkpoints ({_counts(result)}). {_construction(result)}"
    )
    return Figure("decoding_table", "Decodable and usable, by layer", caption, drawing)


def _counts(result: xr.Dataset) -> str:
    return ", ".join(f"{int(result['n_states'].sel(group=g))} {g}" for g in result.group.values)


def _construction(result: xr.Dataset) -> str:
    there = result["by_construction"].isel(step=-1).any("layer").to_series()
    taught = [f"{variable} of {group} facts" for (variable, group), so in there.items() if so]
    if not taught:
        return "Nothing here is true by construction: training never asks for (e1, r1) by itself."
    return (
        "True by construction, because it is what training teaches after (e1, r1): "
        f"{', '.join(taught)} at the last layer, with the final norm and in the full run."
    )
