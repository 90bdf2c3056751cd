"""Measure: what the model answers with a dictionary's output in place of the true state.

Cross-entropy, KL and accuracy by split, beside those of the clean model and of one whose site is
set to its mean over training states, or to zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.analysis.instrument import NotApplicable
from implicit_reasoning.analysis.rest import final_logits
from implicit_reasoning.analysis.states import chain_splits, choose_rows, prompts
from implicit_reasoning.dictionaries.measures.base import Asked, Coded, Found, Measure, Subject
from implicit_reasoning.dictionaries.measures.metrics import answers, recovered
from implicit_reasoning.dictionaries.splice import ablations, edits

MODELS = ("clean", "spliced", "mean", "zero")
_MOST_QUESTIONS = 300  # of a split


@dataclass(frozen=True, eq=False)
class Spliced(Measure):
    """See the module.

    Attributes:
      tokens: int [question, pos].
      answer: int [question].
      group: int [question], a number of `splits`.
      splits: their names.
      where: bool [pos], where the dictionary writes.
      trained: int [state], whose mean is written instead.
    """

    tokens: Int[np.ndarray, "question pos"]
    answer: Int[np.ndarray, " question"]
    group: Int[np.ndarray, " question"]
    splits: tuple[str, ...]
    where: Bool[np.ndarray, " pos"]
    trained: Int[np.ndarray, " state"]

    name: ClassVar[str] = "answers"
    needs_model: ClassVar[bool] = True

    @classmethod
    def choose(cls, asked: Asked) -> Measure | None:
        """Probes of every split of chains; None for other tasks."""
        dataset = asked.run.dataset
        try:
            splits = chain_splits(dataset)
        except NotApplicable:
            return None
        rows, group = choose_rows(dataset, splits, _MOST_QUESTIONS)
        answer = dataset.truth["answer"][rows]
        trained = np.flatnonzero(asked.split.trained)
        return cls(prompts(dataset, rows), answer, group, splits, asked.where, trained)

    def shared(self, subject: Subject) -> dict[str, Any]:
        """Logits of the clean model, and what it answers without the site."""
        model, params, sites = subject.model, subject.params, subject.sites
        clean = final_logits(model, params, jnp.asarray(self.tokens))
        mean = subject.y[self.trained].mean(0)
        return {
            "clean": clean,
            "mean": self._with(subject, ablations(mean, sites, jnp.asarray(self.where))),
            "zero": self._with(subject, ablations(jnp.zeros(()), sites, jnp.asarray(self.where))),
        }

    def of_one(self, subject: Subject, shared: dict[str, Any], coded: Coded) -> dict[str, Array]:
        """Cross-entropy, KL and correctness, [measure, model, question]."""
        where = jnp.asarray(self.where)
        with_it = edits(coded.finished, coded.params, subject.sites, where)
        logits = {**shared, "spliced": self._with(subject, with_it)}
        right = jnp.asarray(self.answer)
        each = [jnp.stack(answers(logits[name], shared["clean"], right)) for name in MODELS]
        return {"outcomes": jnp.stack(each, axis=1)}

    def labelled(self, outputs: dict[str, np.ndarray]) -> Found:
        """Means by split, and the share of what ablation loses that comes back."""
        outcomes = outputs["outcomes"]
        of_split = [outcomes[..., self.group == n].mean(-1) for n in range(len(self.splits))]
        ce, kl, correct = np.moveaxis(np.stack(of_split, axis=1), 2, 0)  # [member, split, model]
        clean, spliced, mean, zero = np.moveaxis(ce, -1, 0)
        dims = ("member", "split", "model")
        variables = {
            "ce": (dims, ce),
            "kl": (dims, kl),
            "correct": (dims, correct),
            "ce_loss_score": (dims[:2], np.asarray(recovered(spliced, clean, zero))),
            "ce_loss_score_mean": (dims[:2], np.asarray(recovered(spliced, clean, mean))),
            "kl_div_score": (dims[:2], np.asarray(recovered(kl[..., 1], kl[..., 0], kl[..., 3]))),
        }
        return variables, {"split": list(self.splits), "model": list(MODELS)}

    def _with(self, subject: Subject, changed: dict[str, Any]) -> Float[Array, "question d_vocab"]:
        logits, _ = subject.model.forward(subject.params, jnp.asarray(self.tokens), edits=changed)
        last: Array = logits[:, -1]
        return last
