"""What was measured of dictionaries, as labelled arrays: means by split, intervals by pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from implicit_reasoning.dictionaries.concepts import Concept
from implicit_reasoning.dictionaries.metrics import recovered
from implicit_reasoning.dictionaries.store import Member
from implicit_reasoning.dictionaries.use import OUTCOMES, RULES, all_of_pair
from implicit_reasoning.statistics import ClusterBootstrap

MODELS = ("clean", "spliced", "mean", "zero")

Found = tuple[dict[str, Any], dict[str, Any]]
"""Variables and coordinates of a dataset."""


def of_members(members: Sequence[Member], outputs: dict[str, Any]) -> Found:
    """Numbers by dictionary, and what tells them apart."""
    numbers = {**outputs["quality"], **outputs["activity"]}
    density = (("member", "feature"), numbers.pop("density"))
    variables: dict[str, Any] = {name: ("member", value) for name, value in numbers.items()}
    variables["density"] = density
    names = ("step", "site", "sparsity", "seed")
    return variables, {n: ("member", [getattr(member, n) for member in members]) for n in names}


def by_split(
    outcomes: Float[np.ndarray, "member measure model question"],
    group: Int[np.ndarray, "question"],
    splits: Sequence[str],
) -> Found:
    """Means by split, and the share of what ablation loses that comes back."""
    by_split = np.stack(
        [outcomes[..., group == n].mean(-1) for n in range(len(splits))],
        axis=1,
    )  # [member, split, measure, model]
    dims = ("member", "split", "model")
    ce, kl, correct = np.moveaxis(by_split, 2, 0)
    clean, spliced, mean, zero = np.moveaxis(ce, -1, 0)
    variables = {
        "ce": (dims, ce),
        "kl": (dims, kl),
        "correct": (dims, correct),
        "ce_loss_score": (dims[:2], np.asarray(recovered(spliced, clean, zero))),
        "ce_loss_score_mean": (dims[:2], np.asarray(recovered(spliced, clean, mean))),
        "kl_div_score": (dims[:2], np.asarray(recovered(kl[..., 1], kl[..., 0], kl[..., 3]))),
    }
    return variables, {"split": list(splits), "model": list(MODELS)}


def by_rule(
    outcome: Bool[np.ndarray, "member rule outcome case"], pair: Int[np.ndarray, "case"]
) -> Found:
    """Shares of swaps, intervals clustered by pair; and of pairs all of whose answers move."""
    found = ClusterBootstrap(pair).interval(outcome)
    all_of = all_of_pair(outcome[:, :, 0], pair)
    whole = ClusterBootstrap(np.arange(all_of.shape[-1])).interval(all_of)
    dims = ("member", "rule", "outcome")
    ends = {"": "mean", "_low": "low", "_high": "high"}
    made: dict[str, Any] = {
        f"swap{end}": (dims, getattr(found, name)) for end, name in ends.items()
    }
    made |= {f"swap_all{end}": (dims[:2], getattr(whole, name)) for end, name in ends.items()}
    made |= {"swap_pairs": ((), all_of.shape[-1]), "swap_cases": ((), len(pair))}
    return made, {"rule": list(RULES), "outcome": list(OUTCOMES)}


def by_concept(outputs: dict[str, Any], concepts: Sequence[Concept]) -> Found:
    """Padded to the variable with most values."""
    most = max(concept.n_values for concept in concepts)
    parts = [outputs[concept.name] for concept in concepts]

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
    variables = {
        "f1": (dims, padded("f1", np.nan)),
        "average_precision": (dims, padded("precision", np.nan)),
        "best_feature": (dims, padded("feature", -1.0).astype(np.int32)),
        "f1_null": (("member", "concept", "draw"), null[..., 0]),
        "average_precision_null": (("member", "concept", "draw"), null[..., 1]),
    }
    return variables, {"concept": [concept.name for concept in concepts]}
