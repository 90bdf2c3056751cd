"""Measure the model's answers when a dictionary's output replaces the activations of a site.

The instrument measures cross-entropy, KL divergence and accuracy on each split of the dataset. Four
models are compared: the clean model, the model with the dictionary spliced in, the model with the
site set to its mean over training states, and the model with the site set to zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.analysis.instrument import EXAMPLE, Examples
from implicit_reasoning.analysis.states import chain_splits, choose_rows, prompts
from implicit_reasoning.analysis.suffix import final_logits
from implicit_reasoning.dictionaries.instrument import (
    DictionaryInstrument,
    DictionarySubject,
    EncodedStates,
    ExampleSource,
)
from implicit_reasoning.dictionaries.measures.metrics import answers, recovered
from implicit_reasoning.dictionaries.splice import ablations, edits
from implicit_reasoning.worlds.clusters import clusters_of

MODELS = ("clean", "spliced", "mean", "zero")
_MAX_QUESTIONS = 300  # per split


class AnswerQueries(NamedTuple):
    """Questions for the model, and the positions at which activations are replaced.

    Attributes:
      tokens: int [question, pos], the prompts of the questions.
      answer: int [question], tokens of the right answers.
      where: bool [pos], whether activations at each position are replaced.
      trained: int [state], indices of the training states in `Split.places`. Mean ablation uses the
        mean of these states.
    """

    tokens: Int[np.ndarray, "question pos"]
    answer: Int[np.ndarray, " question"]
    where: Bool[np.ndarray, " pos"]
    trained: Int[np.ndarray, " state"]


class Spliced(DictionaryInstrument):
    """Compares the model's answers with and without the dictionary spliced in."""

    name = "answers"
    definition = (
        "For probes of every split of chains: cross-entropy of the right answer in nats (ce), "
        "KL(clean model || this one) in nats (kl) and accuracy (correct) of the clean model, "
        "and of the model with the site replaced by the dictionary's output (spliced), by its "
        "mean over training states (mean) or by 0 (zero). ce_loss_score, ce_loss_score_mean and "
        "kl_div_score: the share of the loss added by zero ablation (mean ablation, zero "
        "ablation) that the dictionary recovers; nan where ablation adds less than .01 nats."
    )
    outputs = {name: ("model", EXAMPLE) for name in ("ce", "kl", "correct")}
    nulls = {
        "mean": {"model": "mean"},
        "zero": {"model": "zero"},
    }
    group = "split"
    needs_model = True

    def examples(self, source: ExampleSource) -> Examples:
        """Choose evaluation prompts from every split of the dataset that contains chains.

        The prompts are clustered by bridge (intermediate entity).
        """
        dataset = source.run.dataset
        splits = chain_splits(dataset)
        rows, group = choose_rows(dataset, splits, _MAX_QUESTIONS)
        trained = np.flatnonzero(source.split.trained)
        inputs = AnswerQueries(
            prompts(dataset, rows), dataset.truth["answer"][rows], source.where, trained
        )
        clusters = clusters_of(dataset, rows)
        return Examples(inputs, splits, group, clusters, coords={"model": MODELS})

    def shared(self, subject: DictionarySubject, inputs: AnswerQueries) -> dict[str, Any]:
        """Compute the logits of the clean model and of the model with the site ablated."""
        clean = final_logits(subject.model, subject.params, jnp.asarray(inputs.tokens))
        where = jnp.asarray(inputs.where)
        mean = subject.y[inputs.trained].mean(0)
        ablated = {"mean": mean, "zero": jnp.zeros(())}
        return {"clean": clean} | {
            name: _logits(subject, inputs, ablations(value, subject.sites, where))
            for name, value in ablated.items()
        }

    def measure(
        self,
        subject: DictionarySubject,
        shared: Mapping[str, Any],
        encoded: EncodedStates,
        inputs: AnswerQueries,
    ) -> dict[str, Array]:
        """Compute cross-entropy, KL divergence and correctness of the answers.

        Each of these outputs has the dimensions [model, question].
        """
        where = jnp.asarray(inputs.where)
        with_it = edits(encoded.dictionary, encoded.params, subject.sites, where)
        logits = {**shared, "spliced": _logits(subject, inputs, with_it)}
        right = jnp.asarray(inputs.answer)
        each = [answers(logits[name], shared["clean"], right) for name in MODELS]
        return {name: jnp.stack([getattr(one, name) for one in each]) for name in self.outputs}

    def derived(self, result: xr.Dataset, examples: Examples) -> xr.Dataset:
        """Add the share of the ablation loss that the dictionary recovers.

        The new variables are `ce_loss_score`, `ce_loss_score_mean` and `kl_div_score`.
        """
        ce, kl = ({m: result[name].sel(model=m) for m in MODELS} for name in ("ce", "kl"))
        scores = {
            "ce_loss_score": (ce["spliced"], ce["clean"], ce["zero"]),
            "ce_loss_score_mean": (ce["spliced"], ce["clean"], ce["mean"]),
            "kl_div_score": (kl["spliced"], kl["clean"], kl["zero"]),
        }
        return result.assign(
            {
                name: (spliced.dims, recovered(spliced.values, clean.values, ablated.values))
                for name, (spliced, clean, ablated) in scores.items()
            }
        )


def _logits(
    subject: DictionarySubject, inputs: AnswerQueries, changed: dict[str, Any]
) -> Float[Array, "question d_vocab"]:
    tokens = jnp.asarray(inputs.tokens)
    logits, _ = subject.model.forward(subject.params, tokens, edits=changed)
    last: Array = logits[:, -1]
    return last
