"""Decode the tail of a fact (e1, r1) -> e2 from the state at r1, by three methods.

- *Immediate probing* unembeds the state S[layer, r1], with and without the final norm.
- *Full-run probing* patches S[layer, r1] into the same layer and position of another prompt, the
  recipient prompt. The later layers of the forward pass decode the state.
- *Bottleneck probing* is full-run probing of a projection of the state. The projection keeps at
  most 32 dimensions, in which the class means by e2 differ most. The projection is fitted without
  the decoded fact. The projection therefore keeps only information that is common to facts with the
  same e2.

The first two methods are those of Ye et al. 2025, with two corrections. The state is patched into
the layer from which it is taken, and not one block later. Results for OOD facts are means over OOD
facts only.

Some results are no evidence that the state represents e2:

- In most tasks, e2 is the training target of the prompt (e1, r1). The last layer then decodes e2 by
  construction. The output `by_construction` marks these cases.
- From layer 1 on, the state at r1 can contain e1 and r1. The later layers can compute e2 from them,
  as in the prompt (e1, r1). A patch of the state after a block has the same effect as a patch of
  the state before the MLP of this block, because the MLP then computes the same. Full-run probing
  therefore shows that the prefix has reached the state, and nothing more. The output
  `full_run_by_construction` marks these layers. Claims use the bottleneck instead.

The bottleneck has two controls: classes that are shuffled between facts, and random directions. If
the controls also decode e2, the bottleneck is inconclusive. The projection then keeps so much of
the state that the later layers may compute e2 from e1 and r1. In this case, claims also require
that immediate probing decodes e2.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float, Int, Key

from implicit_reasoning.analysis.claims import MIN_CLUSTERS, Claim, claimed
from implicit_reasoning.analysis.drawing import curves, heat_maps, some_steps
from implicit_reasoning.analysis.facts import FactRows, fact_rows, is_taught_atomic
from implicit_reasoning.analysis.instrument import Examples, Instrument, NotApplicable
from implicit_reasoning.analysis.reading.ranking import ranks
from implicit_reasoning.analysis.states import chain_variables, prompts, residuals
from implicit_reasoning.analysis.variables.subspaces import (
    bottleneck,
    class_means,
    random_bottleneck,
)
from implicit_reasoning.figures import GREY, ORANGE, VERMILION, Figure
from implicit_reasoning.model import Edit, HookContext, Params, Transformer, mask
from implicit_reasoning.worlds import Dataset

BOTTLENECKS = ("bottleneck", "bottleneck, shuffled", "bottleneck, random")
READINGS = ("immediate", "immediate, no norm", "full run", *BOTTLENECKS)
WIDTH = 32
"""Maximum number of dimensions of the bottleneck."""

TRUTHS = ("true", "another's", "recipient's")
_MAX_FACTS = 2000  # maximum number of facts; larger worlds use all facts of some bridges
_FOLDS = 4  # a bottleneck is fitted to three folds of facts, and used on the fourth fold
_DECODED = 0.9  # minimum lower end of top-1, for the bottleneck and for immediate probing
_CHANCE = 3.0  # minimum ratio of immediate probing to its null control (the tail of another fact)
_SHOWN = READINGS[:4]
_FULL_RUN = (
    "From layer 1 on, the full run shows only that the prefix (e1, r1) has reached the state, and "
    "not that the state represents e2: the later layers can compute e2 from e1 and r1. Claims use "
    "the bottleneck."
)
_CONTROL = 0.5  # maximum upper end of top-1 for the controls of the bottleneck


class Decoding(Instrument):
    """Instrument that decodes the tail of a fact (e1, r1) -> e2 from the state at r1.

    The methods are immediate probing (unembed the state), full-run probing (patch the state into
    another prompt) and bottleneck probing (patch a projection of the state).
    """

    name = "decoding"
    definition = (
        "top1: share of facts (e1, r1) for which the token of the tail has the highest logit "
        "of all tokens, without a tie, when S[layer, r1] is read. There are three methods. "
        "Immediate: unembed(norm(S)), or unembed(S). Full run: S replaces the state at the "
        "same layer and position of another fact's prompt, which has a different e1 and tail, "
        "and the later layers decode S at r1 (Ye et al. 2025, with their off-by-one "
        "corrected); from layer 1 on, this shows only that the prefix has reached S. "
        "Bottleneck: the full run after a projection of S onto at most 32 directions in which "
        "the class means by tail differ most, around the mean of the class means. The "
        "directions are fitted to three quarters of the facts of the first group, without the "
        "fact itself. Nulls of the bottleneck: tails shuffled among those facts, and equally "
        "many random directions. "
        "counted: whether the fact's tail is also the tail of a fact in those quarters; only "
        "these facts count for bottlenecks. truth: the tail of the fact; the tail of another "
        "fact, drawn at random (null); the tail of the recipient prompt. by_construction: "
        "whether training teaches the tails of most facts of the group as answers to (e1, r1), "
        "so that the last layer decodes them."
    )
    version = 2
    outputs = {
        "top1": ("reading", "truth", "variable", "layer", "example"),
        "counted": ("reading", "variable", "example"),
        "by_construction": ("variable", "layer", "group"),
        "full_run_by_construction": ("layer",),
        "width": ("variable", "layer", "fold"),
    }
    given = {"top1": "counted"}
    nulls = {
        "another fact's tail": {"truth": TRUTHS[1]},
        "bottleneck of shuffled tails": {"reading": BOTTLENECKS[1]},
        "bottleneck of random directions": {"reading": BOTTLENECKS[2]},
    }

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose facts (e1, r1) -> e2, and a recipient prompt for each fact.

        The facts are first facts of chains. The recipient prompt, into which states are patched, is
        the prompt of another fact with a different e1 and a different tail.
        """
        facts = fact_rows(dataset, _MAX_FACTS)
        if tuple(dataset.positions[:2]) != ("e1", "r1"):
            raise NotApplicable(
                "decoding needs prompts that begin with e1, r1, but prompts of this task have the "
                f"positions {', '.join(dataset.positions)} (see task.order)"
            )
        variables = chain_variables(dataset, facts.rows)
        wanted = [i for i, name in enumerate(variables.names) if name in ("e2", "decoy")]
        tails = variables.tokens[wanted]
        e1 = variables.values[variables.names.index("e1")]
        recipient = _other(np.stack([e1, *tails]), np.flatnonzero(facts.group == 0), seed=0)
        another = _other(tails, np.arange(len(e1)), seed=1)
        tokens = prompts(dataset, facts.rows)[:, :2]
        fold, classes = _folds(facts, tails)
        inputs = {
            "tokens": tokens,
            "fold": fold,
            "classes": classes,
            "counted": _in_other_folds(fold, tails, classes[:, 0]),
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
                "fold": range(_FOLDS),
            },
        )

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute whether each method decodes the tail of each fact, for every layer."""
        network, wanted = model.bind(params), jnp.asarray(inputs["wanted"])
        states = residuals(model, params, inputs["tokens"])[:, :, 1]
        at_r1 = jnp.array([False, True])[None, :, None]

        def full_run(site: str, state: Array) -> Array:
            edit = Edit(mask, (at_r1, state[:, None]))
            return model.forward(params, inputs["recipients"], edits={site: edit})[0][:, 1]

        by_layer, widths = [], []
        for layer, (site, state) in enumerate(zip(model.resid_sites, states, strict=True)):
            narrow, width = _through_bottlenecks(
                state, inputs, model.spec.d_vocab, jax.random.fold_in(key, layer)
            )
            put_in = jnp.concatenate([state[None], narrow])
            decoded = jax.lax.map(partial(full_run, site), put_in)
            whole = [network.readout(state, HookContext()), network.unembedding(state), decoded[0]]
            # Each bottleneck is fitted to one variable, and only this variable is decoded from it.
            through = decoded[1:].reshape(wanted.shape[1], len(BOTTLENECKS), *decoded.shape[1:])
            of_variable = [
                jnp.stack([ranks(logits, wanted[:, index : index + 1]) for logits in one])
                for index, one in enumerate(through)
            ]
            found = [
                jnp.stack([ranks(logits, wanted) for logits in whole]),
                jnp.concatenate(of_variable, axis=2),
            ]
            by_layer.append(jnp.concatenate(found))
            widths.append(width)
        narrow_only = jnp.arange(len(READINGS)) >= READINGS.index(BOTTLENECKS[0])
        return {
            "top1": jnp.stack(by_layer, axis=3) == 0,
            "counted": jnp.asarray(inputs["counted"])[None] | ~narrow_only[:, None, None],
            "by_construction": jnp.asarray(inputs["by_construction"]),
            "full_run_by_construction": jnp.arange(model.spec.depth + 1) >= 1,
            "width": jnp.stack(widths, axis=1),
        }

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """Claim "decodable" where bottleneck probing decodes most tails.

        In addition, a claim needs one of two conditions. The first condition is that both controls
        of the bottleneck decode at most half of the tails. The second condition is that immediate
        probing with the final norm also decodes most tails. Full-run probing supports no claims,
        because it is correct by construction.
        """
        first = result.isel(group=0, drop=True)
        true, another = (first.sel(truth=truth, drop=True) for truth in TRUTHS[:2])
        narrow = true.sel(reading=BOTTLENECKS[0], drop=True)
        others = true["top1_high"].sel(reading=list(BOTTLENECKS[1:]))
        only_there = (others <= _CONTROL).all("reading")
        low, null = (
            values.sel(reading=READINGS[0], drop=True)
            for values in (true["top1_low"], another["top1"])
        )
        unembedded = (low >= _DECODED) & (low >= _CHANCE * null)
        there = (narrow["top1_low"] >= _DECODED) & (narrow["top1_n"] >= MIN_CLUSTERS)
        there &= only_there | unembedded
        return claimed("decodable", there.expand_dims(pos=["r1"]))

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the decoding accuracy over training, and tables of all layers at some steps."""
        return [_over_training(result), _bottleneck_over_training(result), _table(result)]


def _folds(
    facts: FactRows, tails: Int[np.ndarray, "variable row"]
) -> tuple[Int[np.ndarray, " row"], Int[np.ndarray, "variable two row"]]:
    """Return the fold of each fact, and the classes that bottlenecks are fitted to.

    The facts of each bridge are distributed evenly over the folds. Facts of the first group have a
    class, and all other facts have class -1. Bottlenecks are thus fitted without OOD facts.

    Returns:
      The folds [row], and the classes [variable, 2, row]. The first class is the tail of the fact.
      The second class is shuffled between facts, for the null control.
    """
    random = np.random.default_rng(2)
    order = random.permutation(len(facts.group))
    order = order[np.lexsort((tails[0][order], facts.group[order]))]
    fold = np.empty(len(order), np.int32)
    fold[order] = np.arange(len(order)) % _FOLDS
    first = facts.group == 0
    classes = np.stack([tails, tails], axis=1)
    classes[:, :, ~first] = -1
    for line in classes[:, 1]:
        line[first] = random.permutation(line[first])
    return fold, classes


def _in_other_folds(
    fold: Int[np.ndarray, " row"],
    tails: Int[np.ndarray, "variable row"],
    classes: Int[np.ndarray, "variable row"],
) -> Bool[np.ndarray, "variable row"]:
    """Return whether a bottleneck is fitted to a fact with the tail of the row.

    The bottleneck of a row is fitted to the facts that have a class and are in different folds.
    """
    other = fold[:, None] != fold[None]  # [row, fact]
    same = tails[:, :, None] == classes[:, None]
    found: np.ndarray = (same & other).any(-1)
    return found


def _through_bottlenecks(
    states: Float[Array, "row d_model"], inputs: Any, n_classes: int, key: Key[Array, ""]
) -> tuple[Float[Array, "run row d_model"], Float[Array, "variable fold"]]:
    """Project states through the bottlenecks of each variable, in the order of `BOTTLENECKS`.

    Returns:
      states: [variable * bottleneck, row, d_model], the projected states. The bottleneck of a state
        is fitted without the fold of this state.
      width: [variable, fold], number of dimensions of the bottlenecks.
    """
    fold = jnp.asarray(inputs["fold"])

    def of_fold(
        classes: Int[Array, "two row"], number: Array
    ) -> tuple[Float[Array, "three row d_model"], Array]:
        weight = jnp.where(fold == number, 0.0, 1.0)
        true, shuffled = (
            bottleneck(class_means(states, of_rows, weight, n_classes), WIDTH)
            for of_rows in classes
        )
        random = random_bottleneck(true, jax.random.fold_in(key, number))
        return jnp.stack([one(states) for one in (true, shuffled, random)]), true.width()

    def of_variable(classes: Int[Array, "two row"]) -> tuple[Array, Array]:
        found, width = jax.lax.map(partial(of_fold, classes), jnp.arange(_FOLDS))
        own = jnp.take_along_axis(found, fold[None, None, :, None], axis=0)[0]
        return own, width

    found, width = jax.lax.map(of_variable, jnp.asarray(inputs["classes"]))
    return found.reshape(-1, *states.shape), width


def _other(
    values: Int[np.ndarray, "variable row"], among: Int[np.ndarray, " chosen"], seed: int
) -> Int[np.ndarray, " row"]:
    """For each row, draw a random row of `among` with a different value of every variable."""
    random = np.random.default_rng(seed)
    chosen = random.choice(among, values.shape[1])
    for _ in range(1000):
        alike = np.flatnonzero((values[:, chosen] == values).any(0))
        if not len(alike):
            return chosen
        chosen[alike] = random.choice(among, len(alike))
    raise NotApplicable(
        "decoding needs, for every fact, a second fact with a different e1 and a different e2, but "
        "this world is too small"
    )


def _by_construction(model: Transformer, dataset: Dataset, facts: Any, tails: Any) -> np.ndarray:
    """Return whether decoding is correct by construction.

    Returns:
      bool [variable, layer, group]. It is true in the last layer for a group if training teaches
      the tails of most of its facts as answers to (e1, r1).
    """
    shape = (len(tails), model.spec.depth + 1, len(facts.groups))
    found = np.zeros(shape, bool)
    for variable, values in enumerate(tails):  # for entities, value and token are equal
        taught = is_taught_atomic(dataset, facts.rows, values)
        for group in range(len(facts.groups)):
            found[variable, -1, group] = taught[facts.group == group].mean() > 0.5
    return found


def _over_training(result: xr.Dataset) -> Figure:
    panels = {
        f"{reading}, {group} facts": {"reading": reading, "group": group}
        for group in result.group.values
        for reading in _SHOWN
    }
    drawing = curves(
        result,
        "top1",
        panels,
        select={"truth": TRUTHS[0], "variable": "e2"},
        nulls={"null: another fact's tail": ({"truth": TRUTHS[1], "variable": "e2"}, GREY)},
        label="share of facts whose tail is top-1",
        ncols=len(_SHOWN),
    )
    caption = (
        "Each curve shows the share of facts whose tail e2 is the top-1 token when the state "
        "after (e1, r1) is read, for one layer (the number of blocks before the state). The "
        "columns are four ways to read the state. 'Immediate' applies the unembedding to the "
        "state, with or without the final norm. 'Full run' puts the state into another prompt, "
        "and the later layers decode it. 'Bottleneck' does the same with a projection of the "
        f"state onto at most {WIDTH} dimensions. {_FULL_RUN} The shading is the 95% interval "
        f"over facts ({_counts(result)}). The dashed line is the null: the share for which "
        f"another fact's tail is top-1, as the maximum over layers. {_construction(result)}"
    )
    return Figure("decoding", "Immediate and full-run decoding of e2", caption, drawing)


def _bottleneck_over_training(result: xr.Dataset) -> Figure:
    where: dict[str, Any] = {"truth": TRUTHS[0], "variable": "e2"}
    drawing = curves(
        result,
        "top1",
        {f"{group} facts": {"group": group} for group in result.group.values},
        select={**where, "reading": BOTTLENECKS[0]},
        nulls={
            "null: tails shuffled": ({**where, "reading": BOTTLENECKS[1]}, VERMILION),
            "null: random directions": ({**where, "reading": BOTTLENECKS[2]}, ORANGE),
            "null: another fact's tail": (
                {"truth": TRUTHS[1], "variable": "e2", "reading": BOTTLENECKS[0]},
                GREY,
            ),
        },
        label="share of facts whose tail is top-1",
    )
    widest = int(result["width"].sel(variable="e2").max())
    caption = (
        "Each curve shows how often the model answers the fact's tail e2 when a projection of "
        "the state after (e1, r1) is put into another prompt, for one layer. The projection "
        "keeps the dimensions in which the class means by e2 differ most (here at most "
        f"{widest}), and is fitted on other {result.group.values[0]} facts. The dashed lines "
        "are nulls, each as the maximum over layers: e2 is shuffled among those facts; the "
        "dimensions are as many random directions; or another fact's tail is counted. A curve "
        "is evidence for e2 only where it is above the dashed lines. The shading is the 95% "
        "interval over facts. Facts whose tail is the tail of no fact that the projection is "
        "fitted on are left out."
    )
    return Figure("decoding_bottleneck", "Decoding of e2 through a bottleneck", caption, drawing)


def _table(result: xr.Dataset) -> Figure:
    tails = result["top1"].sel(truth=TRUTHS[0], reading=list(_SHOWN))
    maps = {
        f"{variable}, {group} facts,\nstep {step:,}": tails.sel(
            step=step, group=group, variable=variable
        )
        for variable in result["variable"].values
        for group in result.group.values
        for step in some_steps(result)
    }
    short = ["immediate", "immediate,\nno norm", "full\nrun", "bottle-\nneck"]
    maps = {title: values.assign_coords(reading=short) for title, values in maps.items()}
    null = {"truth": TRUTHS[1], "variable": "e2", "reading": list(_SHOWN)}
    last = result.isel(step=-1, group=0).sel(null)["top1"]
    maps["null: another fact's\ntail, last step"] = last.assign_coords(reading=short)
    drawing = heat_maps(
        maps, "share of facts", columns="reading", ncols=len(some_steps(result)), width=0.75
    )
    caption = (
        "The figure is the decoding table of Ye et al. 2025 for every layer, at some "
        "checkpoints. A cell is the share of facts whose tail e2 is the top-1 token, for one "
        "way to read the state (column) and one layer (row). If training teaches a different "
        "answer to (e1, r1), the maps of 'decoy' show the share for this answer. The numbers of "
        f"facts are: {_counts(result)}. The last map is the null: the share for which another "
        f"fact's tail is top-1. {_FULL_RUN} {_construction(result)}"
    )
    return Figure("decoding_table", "Decoding of facts by layer", caption, drawing)


def _counts(result: xr.Dataset) -> str:
    return ", ".join(f"{int(result['n_states'].sel(group=g))} {g}" for g in result.group.values)


def _construction(result: xr.Dataset) -> str:
    there = result["by_construction"].isel(step=-1).any("layer").to_series()
    taught = [f"{variable} of {group} facts" for (variable, group), so in there.items() if so]
    if not taught:
        return (
            "Training never asks for (e1, r1) by itself, so immediate decoding is not true by "
            "construction at any layer."
        )
    return (
        "At the last layer, immediate decoding with the final norm and the full run are true by "
        f"construction for {', '.join(taught)}, because training teaches these as the answers to "
        "(e1, r1)."
    )
