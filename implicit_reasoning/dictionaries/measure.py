"""Measure a set of dictionaries: how well, with how few, for what, and whether the model goes on.

Of every dictionary, on distinct states of prefixes that it was not trained on: reconstruction and
sparsity (`metrics.py`). With its output in place of the true one, answers by split: cross-entropy,
KL and accuracy, beside those of the clean model and of one whose site is set to its mean or to
zero. For every truth variable how well its best feature stands for each value (`matching.py`). And
of autoencoders of residuals whether the model goes on with a bridge's feature (`use.py`).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from implicit_reasoning.analysis.facts import known_at
from implicit_reasoning.analysis.instrument import NotApplicable
from implicit_reasoning.analysis.rest import final_logits
from implicit_reasoning.analysis.states import (
    chain_splits,
    chain_variables,
    choose_rows,
    prompts,
)
from implicit_reasoning.dictionaries.dictionary import Finished
from implicit_reasoning.dictionaries.matching import match, match_null
from implicit_reasoning.dictionaries.metrics import Quality, answers, quality, recovered
from implicit_reasoning.dictionaries.splice import Sites, ablations, edits
from implicit_reasoning.dictionaries.states import Places, distinct_places, split_places, states
from implicit_reasoning.dictionaries.store import Dictionaries, Files
from implicit_reasoning.dictionaries.use import (
    OUTCOMES,
    RULES,
    bridge_position,
    by_pair,
    swap_bridges,
    use_inputs,
)
from implicit_reasoning.machine import provenance
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.runs import Run, load_arrays, save_arrays
from implicit_reasoning.statistics import ClusterBootstrap
from implicit_reasoning.worlds import Dataset

_MOST_STATES = 4000  # to match truth with, at each position
_MOST_QUESTIONS = 300  # of a split
_PERMUTATIONS = 20
_SEED = 0
MODELS = ("clean", "spliced", "mean", "zero")


class Questions(NamedTuple):
    """Prompts to answer with a dictionary spliced in."""

    tokens: Int[np.ndarray, "question pos"]
    answer: Int[np.ndarray, "question"]
    group: Int[np.ndarray, "question"]
    splits: tuple[str, ...]


class Concept(NamedTuple):
    """Values of a truth variable at one position, and the states that have them.

    Attributes:
      variable: its name.
      pos: name of the position.
      chosen: numbers of states, among the places.
      values: int [chosen].
      second: which half they are in.
      n_values: values are below it.
    """

    variable: str
    pos: str
    chosen: Int[np.ndarray, "state"]
    values: Int[np.ndarray, "state"]
    second: Bool[np.ndarray, "state"]
    n_values: int


def measured(run: Run, made: Dictionaries) -> xr.Dataset:
    """What was found of dictionaries; measured now, and kept beside them, if that was not done."""
    path = Files.of(run, made.config.name).measured
    if not path.exists():
        save_arrays(path, measure_dictionaries(run, made, progress=made.config.progress))
    return load_arrays(path)


def measure_dictionaries(run: Run, made: Dictionaries, *, progress: bool = True) -> xr.Dataset:
    """Measure all of them.

    Returns:
      Labelled arrays by `member` (with the coordinates step, site, sparsity, seed), `split`,
      `concept` (variable and position) and `value`; attributes say what is what.
    """
    places = all_places(run, made)
    held_out = split_places(run.dataset, places)
    questions, concepts = choose_questions(run.dataset), choose_concepts(run.dataset, places)
    where = np.isin(
        np.arange(len(run.dataset.positions)),
        [run.dataset.positions.index(name) for name in made.config.positions]
        or range(len(run.dataset.positions)),
    )
    swaps = _swaps(run, made, where)
    program = _program(
        run.model, made.finished, places, held_out, questions, concepts, where, swaps
    )
    found: dict[int, dict[str, Any]] = {}
    with tqdm(total=len(made), desc="measuring", unit="dictionary", disable=not progress) as bar:
        for (step, sites), numbers in made.groups.items():
            params = jax.tree.map(lambda leaf: leaf[0], run.params([step]))
            those = jax.tree.map(lambda leaf, n=tuple(numbers): leaf[np.array(n)], made.params)
            outputs = jax.device_get(program(params, those, sites))
            for place, number in enumerate(numbers):
                found[number] = jax.tree.map(lambda leaf, p=place: leaf[p], outputs)
            bar.update(len(numbers))
    stacked = jax.tree.map(lambda *parts: np.stack(parts), *(found[n] for n in range(len(made))))
    return _labelled(made, stacked, questions, concepts, held_out, swaps)


class Uses(NamedTuple):
    """What `use.py` needs: its inputs, the position, the number of entities."""

    inputs: dict[str, Any]
    pos: int
    n_values: int


def _swaps(run: Run, made: Dictionaries, where: Bool[np.ndarray, "pos"]) -> Uses | None:
    """For autoencoders of residuals, in tasks of two hops, where they know the bridge."""
    residuals = all(member.site in run.model.resid_sites[1:] for member in made.members)
    if not residuals or run.dataset.hops != 2 or run.dataset.world is None:
        return None
    try:
        pos = bridge_position(run.dataset)
        inputs = use_inputs(run.dataset) if where[pos] else None
    except (NotApplicable, ValueError):
        return None
    return None if inputs is None else Uses(inputs, pos, run.dataset.world.n_entities)


def all_places(run: Run, made: Dictionaries) -> Places:
    """Every distinct prefix of the dataset's rows, of the positions that were trained on."""
    return distinct_places(run.dataset, np.arange(len(run.dataset)), made.config.positions)


def choose_questions(dataset: Dataset) -> Questions | None:
    """Probes of every split of chains; None for other tasks."""
    try:
        splits = chain_splits(dataset)
    except NotApplicable:
        return None
    rows, group = choose_rows(dataset, splits, _MOST_QUESTIONS)
    return Questions(prompts(dataset, rows), dataset.truth["answer"][rows], group, splits)


def choose_concepts(dataset: Dataset, places: Places) -> list[Concept]:
    """Every variable from the position on where it is first known; none for other tasks.

    Halves are drawn by state: a state is one prefix, and none is in both.
    """
    try:
        chains = np.flatnonzero(dataset.truth[f"fact{dataset.hops}"][places.rows] >= 0)
        variables = chain_variables(dataset, places.rows[chains[:1]])
    except (NotApplicable, KeyError):
        return []
    random = np.random.default_rng(_SEED)
    concepts = []
    positions = list(dataset.positions)
    for name, kind in zip(variables.names, variables.kinds, strict=True):
        known = positions.index(known_at(name, positions))
        for pos in range(known, len(positions)):
            values = dataset.truth[name][places.rows[places.row]]
            there = np.flatnonzero((places.pos == pos) & (values >= 0))
            there = np.sort(random.permutation(there)[:_MOST_STATES])
            # Where a value has one state each, there is nothing to generalise over.
            if len(there) < 2 * len(np.unique(values[there])):
                continue
            concepts.append(
                Concept(
                    name,
                    positions[pos],
                    there,
                    values[there],
                    random.permutation(len(there)) % 2 == 1,
                    variables.sizes[kind],
                )
            )
    return concepts


def _program(
    model: Transformer,
    finished: Finished,
    places: Places,
    held_out: Bool[np.ndarray, "state"],
    questions: Questions | None,
    concepts: list[Concept],
    where: Bool[np.ndarray, "pos"],
    uses: Uses | None,
) -> Any:
    """Compiled: everything of the dictionaries of one checkpoint and site, stacked."""
    test = np.flatnonzero(held_out)

    @partial(jax.jit, static_argnums=2)
    def program(params: Params, dictionaries: Params, sites: Sites) -> dict[str, Any]:
        x, y = (
            jnp.concatenate(list(states(model, params, places, names)), axis=-1)
            for names in (sites.read, sites.write)
        )
        mean = y[np.flatnonzero(~held_out)].mean(0)

        def one(dictionary: Params) -> dict[str, Any]:
            acts = finished.encode(dictionary, x)
            found: dict[str, Any] = {
                "quality": quality(finished, dictionary, x[test], y[test]),
                "density": (acts > 0).mean(0),
            }
            if questions is not None:
                with_it = edits(finished, dictionary, sites, jnp.asarray(where))
                found["answers"] = _answers(model, params, questions, sites, with_it, mean, where)
            for concept in concepts:
                name = f"{concept.variable}@{concept.pos}"
                found[name] = _matched(acts[concept.chosen], concept)
            if uses is not None:
                found["use"] = swap_bridges(
                    model,
                    params,
                    finished,
                    dictionary,
                    uses.inputs,
                    layer=model.resid_sites.index(sites.write[0]),
                    pos=uses.pos,
                    n_values=uses.n_values,
                )["outcome"]
            return found

        found: dict[str, Any] = jax.lax.map(one, dictionaries)
        return found

    return program


def _answers(
    model: Transformer,
    params: Params,
    questions: Questions,
    sites: Sites,
    with_it: dict[str, Any],
    mean: Float[Array, "d_out"],
    where: Bool[np.ndarray, "pos"],
) -> Float[Array, "measure model question"]:
    """Cross-entropy, KL and correctness of all `MODELS`."""
    tokens, right = jnp.asarray(questions.tokens), jnp.asarray(questions.answer)
    clean = final_logits(model, params, tokens)
    here = jnp.asarray(where)
    changed = [with_it, ablations(mean, sites, here), ablations(jnp.zeros(()), sites, here)]
    logits = [clean, *(model.forward(params, tokens, edits=e)[0][:, -1] for e in changed)]
    each = [jnp.stack(answers(one, clean, right)) for one in logits]
    return jnp.stack(each, axis=1)


def _matched(acts: Float[Array, "state feature"], concept: Concept) -> dict[str, Array]:
    values, second = jnp.asarray(concept.values), jnp.asarray(concept.second)
    found = match(acts, values, second, concept.n_values)
    key = jax.random.key(_SEED)
    null = match_null(acts, values, second, concept.n_values, key, _PERMUTATIONS)
    return {
        "f1": found.f1,
        "precision": found.precision,
        "feature": found.feature,
        "null": null,
    }


def _labelled(
    made: Dictionaries,
    outputs: dict[str, Any],
    questions: Questions | None,
    concepts: list[Concept],
    held_out: Bool[np.ndarray, "state"],
    uses: Uses | None,
) -> xr.Dataset:
    found: Quality = outputs["quality"]
    variables: dict[str, Any] = {
        name: ("member", value) for name, value in found._asdict().items() if name != "density"
    }
    variables["density"] = (("member", "feature"), outputs["density"])
    coords: dict[str, Any] = {
        "step": ("member", [member.step for member in made.members]),
        "site": ("member", [member.site for member in made.members]),
        "sparsity": ("member", [member.sparsity for member in made.members]),
        "seed": ("member", [member.seed for member in made.members]),
    }
    if questions is not None:
        variables |= _by_split(outputs["answers"], questions)
        coords |= {"split": list(questions.splits), "model": list(MODELS)}
    if concepts:
        variables |= _by_concept(outputs, concepts)
        coords["concept"] = [f"{c.variable}@{c.pos}" for c in concepts]
    if uses is not None:
        variables |= _of_use(outputs["use"], uses.inputs["pair"])
        coords |= {"rule": list(RULES), "outcome": list(OUTCOMES)}
    about = {
        "n_states": int(held_out.sum()),
        "n_trained": int((~held_out).sum()),
        "definition": " ".join((__doc__ or "").split()),
        "made_with": provenance(),
    }
    return xr.Dataset(variables, coords, about)


def _by_split(
    outcomes: Float[np.ndarray, "member measure model question"], questions: Questions
) -> dict[str, Any]:
    """Means by split, and the share of what ablation loses that comes back."""
    by_split = np.stack(
        [outcomes[..., questions.group == n].mean(-1) for n in range(len(questions.splits))],
        axis=1,
    )  # [member, split, measure, model]
    dims = ("member", "split", "model")
    ce, kl, correct = np.moveaxis(by_split, 2, 0)
    clean, spliced, mean, zero = np.moveaxis(ce, -1, 0)
    return {
        "ce": (dims, ce),
        "kl": (dims, kl),
        "correct": (dims, correct),
        "ce_loss_score": (dims[:2], np.asarray(recovered(spliced, clean, zero))),
        "ce_loss_score_mean": (dims[:2], np.asarray(recovered(spliced, clean, mean))),
        "kl_div_score": (dims[:2], np.asarray(recovered(kl[..., 1], kl[..., 0], kl[..., 3]))),
    }


def _of_use(
    outcome: Bool[np.ndarray, "member rule outcome case"], pair: Int[np.ndarray, "case"]
) -> dict[str, Any]:
    """Shares of swaps, intervals clustered by pair; and of pairs all of whose answers move."""
    found = ClusterBootstrap(pair).interval(outcome)
    _, all_of = by_pair(outcome[:, :, 0], pair)
    whole = ClusterBootstrap(np.arange(all_of.shape[-1])).interval(all_of)
    dims = ("member", "rule", "outcome")
    ends = {"": "mean", "_low": "low", "_high": "high"}
    made: dict[str, Any] = {
        f"swap{end}": (dims, getattr(found, name)) for end, name in ends.items()
    }
    made |= {f"swap_all{end}": (dims[:2], getattr(whole, name)) for end, name in ends.items()}
    return made | {"swap_pairs": ((), all_of.shape[-1]), "swap_cases": ((), len(pair))}


def _by_concept(outputs: dict[str, Any], concepts: list[Concept]) -> dict[str, Any]:
    """Padded to the variable with most values."""
    most = max(concept.n_values for concept in concepts)
    parts = [outputs[f"{concept.variable}@{concept.pos}"] for concept in concepts]

    def padded(name: str, fill: float) -> np.ndarray:
        return np.stack(
            [
                np.pad(
                    part[name].astype(np.float32),
                    ((0, 0), (0, most - part[name].shape[1])),
                    constant_values=fill,
                )
                for part in parts
            ],
            axis=1,
        )

    dims = ("member", "concept", "value")
    null = np.stack([part["null"] for part in parts], axis=1)  # [member, concept, draw, measure]
    return {
        "f1": (dims, padded("f1", np.nan)),
        "average_precision": (dims, padded("precision", np.nan)),
        "best_feature": (dims, padded("feature", -1.0).astype(np.int32)),
        "f1_null": (("member", "concept", "draw"), null[..., 0]),
        "average_precision_null": (("member", "concept", "draw"), null[..., 1]),
    }
