"""Measures for the task `cue_conflict`: which of two contradictory cues the answers follow.

The cues concern the tail of a fact. The atomic triple of the fact teaches one tail. Training chains
that contain the fact teach a different tail.
"""

from __future__ import annotations

from implicit_reasoning.worlds import Dataset

OTHER = "other"
"""Name of a column: `other/test_s1` is the share of answers that follow neither of the two cues."""

CUES = ("chains", "fact")


def cue_splits(dataset: Dataset) -> dict[str, list[str]]:
    """Return a pair of splits for each number of training chains of the task `cue_conflict`.

    For example, the key `test_s1` has the splits `test_s1_chains` and `test_s1_fact`. The prompts
    of both splits are equal. In the first split, the answers agree with the training chains. In the
    second split, the answers agree with the atomic triples. Pairs without probe rows are omitted.
    For tasks other than `cue_conflict`, the result is empty.
    """
    if "decoy_answer" not in dataset.truth:
        return {}
    names = [name.removesuffix("_fact") for name in dataset.splits if name.endswith("_fact")]
    return {
        name: [f"{name}_{cue}" for cue in CUES]
        for name in names
        if len(dataset.probes(f"{name}_fact"))
    }
