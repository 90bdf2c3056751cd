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

from implicit_reasoning.analysis.instrument import NotApplicable
from implicit_reasoning.analysis.rest import final_logits
from implicit_reasoning.analysis.states import chain_splits, choose_rows, prompts
from implicit_reasoning.dictionaries import labelled
from implicit_reasoning.dictionaries.concepts import Concept, choose_concepts, matched
from implicit_reasoning.dictionaries.dictionary import Finished
from implicit_reasoning.dictionaries.metrics import activity, answers, quality
from implicit_reasoning.dictionaries.splice import Sites, ablations, edits
from implicit_reasoning.dictionaries.states import Split, split_states, states
from implicit_reasoning.dictionaries.store import ALL, Dictionaries, Files
from implicit_reasoning.dictionaries.use import bridge_position, swap_bridges, use_inputs
from implicit_reasoning.machine import provenance
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.runs import Run, load_arrays, save_arrays
from implicit_reasoning.worlds import Dataset

_MOST_QUESTIONS = 300  # of a split


class Questions(NamedTuple):
    """Prompts to answer with a dictionary spliced in.

    Attributes:
      tokens: int [question, pos].
      answer: int [question].
      group: int [question], a number of `splits`.
      splits: their names.
      where: bool [pos], where the dictionary writes.
    """

    tokens: Int[np.ndarray, "question pos"]
    answer: Int[np.ndarray, "question"]
    group: Int[np.ndarray, "question"]
    splits: tuple[str, ...]
    where: Bool[np.ndarray, "pos"]


class Uses(NamedTuple):
    """What `use.py` needs: its inputs, the position, the number of entities."""

    inputs: dict[str, Any]
    pos: int
    n_values: int


class Exam(NamedTuple):
    """What dictionaries of a run are measured on.

    Attributes:
      split: the states, of which some are held out.
      concepts: to match features with; none for tasks that are not of chains.
      questions: None for such tasks, and for crosscoders, which no single model has a place for.
      uses: None but for autoencoders of residuals that know the bridge of two hops.
    """

    split: Split
    concepts: list[Concept]
    questions: Questions | None
    uses: Uses | None


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
    exam = choose_exam(run, made)
    program = _program(run.model, made.finished, exam)
    found: dict[int, dict[str, Any]] = {}
    with tqdm(total=len(made), desc="measuring", unit="dictionary", disable=not progress) as bar:
        for (steps, sites), numbers in made.groups.items():
            outputs = program(run.params(steps), made.params_of(np.array(numbers)), sites)
            outputs = jax.device_get(outputs)
            for place, number in enumerate(numbers):
                found[number] = jax.tree.map(lambda leaf, p=place: leaf[p], outputs)
            bar.update(len(numbers))
    stacked = jax.tree.map(lambda *parts: np.stack(parts), *(found[n] for n in range(len(made))))
    variables, coords = labelled.of_members(made.members, stacked)
    if exam.questions is not None:
        asked = exam.questions
        more, labels = labelled.by_split(stacked["answers"], asked.group, asked.splits)
        variables, coords = variables | more, coords | labels
    if exam.concepts:
        more, labels = labelled.by_concept(stacked, exam.concepts)
        variables, coords = variables | more, coords | labels
    if exam.uses is not None:
        more, labels = labelled.by_rule(stacked["use"], exam.uses.inputs["pair"])
        variables, coords = variables | more, coords | labels
    return xr.Dataset(variables, coords, _about(exam))


def _about(exam: Exam) -> dict[str, Any]:
    return {
        "n_states": int(exam.split.held_out.sum()),
        "n_trained": int(exam.split.trained.sum()),
        "definition": " ".join((__doc__ or "").split()),
        "made_with": provenance(),
    }


def choose_exam(run: Run, made: Dictionaries) -> Exam:
    """What there is to measure on: every distinct prefix of the rows, and what the task allows."""
    dataset, asked = run.dataset, made.config.positions
    split = split_states(dataset, asked)
    try:
        concepts = choose_concepts(dataset, split.places)
    except NotApplicable:
        return Exam(split, [], None, None)
    if any(member.step == ALL for member in made.members):
        return Exam(split, concepts, None, None)
    where = np.array([not asked or name in asked for name in dataset.positions])
    questions = _choose_questions(dataset, where)
    return Exam(split, concepts, questions, _choose_uses(run, made, where))


def _choose_questions(dataset: Dataset, where: Bool[np.ndarray, "pos"]) -> Questions:
    """Probes of every split of chains."""
    splits = chain_splits(dataset)
    rows, group = choose_rows(dataset, splits, _MOST_QUESTIONS)
    return Questions(prompts(dataset, rows), dataset.truth["answer"][rows], group, splits, where)


def _choose_uses(run: Run, made: Dictionaries, where: Bool[np.ndarray, "pos"]) -> Uses | None:
    dataset, residuals = run.dataset, run.model.resid_sites[1:]
    if dataset.hops != 2 or not all(member.site in residuals for member in made.members):
        return None
    pos = bridge_position(dataset)
    if not where[pos] or dataset.world is None:
        return None
    return Uses(use_inputs(dataset), pos, dataset.world.n_entities)


def _program(model: Transformer, finished: Finished, exam: Exam) -> Any:
    """Compiled: everything of the dictionaries of one source, stacked."""
    (places, trained, held_out), concepts, questions, uses = exam
    train, test = np.flatnonzero(trained), np.flatnonzero(held_out)

    @partial(jax.jit, static_argnums=2)
    def program(params: Params, dictionaries: Params, sites: Sites) -> dict[str, Any]:
        x, y = (states(model, places, params, names) for names in (sites.read, sites.write))
        mean = y[train].mean(0)
        first = jax.tree.map(lambda leaf: leaf[0], params)  # of all but crosscoders the only one

        def one(dictionary: Params) -> dict[str, Any]:
            acts = finished.encode(dictionary, x)
            found: dict[str, Any] = {
                "quality": quality(finished, dictionary, x[test], y[test])._asdict(),
                "activity": activity(acts)._asdict(),
            }
            if questions is not None:
                with_it = edits(finished, dictionary, sites, jnp.asarray(questions.where))
                found["answers"] = _answers(model, first, questions, sites, with_it, mean)
            for concept in concepts:
                found[concept.name] = matched(acts[concept.chosen], concept)
            if uses is not None:
                layer = model.resid_sites.index(sites.write[0])
                where = {"layer": layer, "pos": uses.pos, "n_values": uses.n_values}
                found["use"] = swap_bridges(
                    model, first, finished, dictionary, uses.inputs, **where
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
) -> Float[Array, "measure model question"]:
    """Cross-entropy, KL and correctness of all `labelled.MODELS`."""
    tokens, right = jnp.asarray(questions.tokens), jnp.asarray(questions.answer)
    clean, here = final_logits(model, params, tokens), jnp.asarray(questions.where)
    changed = [with_it, ablations(mean, sites, here), ablations(jnp.zeros(()), sites, here)]
    logits = [clean, *(model.forward(params, tokens, edits=e)[0][:, -1] for e in changed)]
    each = [jnp.stack(answers(one, clean, right)) for one in logits]
    return jnp.stack(each, axis=1)
