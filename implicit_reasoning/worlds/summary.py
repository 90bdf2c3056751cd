"""Text summary of a dataset for the terminal."""

from __future__ import annotations

from implicit_reasoning.formatting import plural
from implicit_reasoning.worlds.dataset import Dataset
from implicit_reasoning.worlds.shortcuts import coverage, distinct_states, shortcuts


def describe(dataset: Dataset) -> str:
    """Describe a dataset: sizes, coverage, distinct states, and accuracy of shortcuts."""
    lines = [
        f"{len(dataset):,} rows of at most {dataset.n_ctx} tokens; the vocabulary has "
        f"{plural(dataset.n_vocab, 'token')}",
        "",
    ]
    lines += _split_table(dataset)
    if dataset.world is not None:
        lines += ["", f"{dataset.world.n_facts:,} facts"]
        if (share := coverage(dataset)) is not None:
            lines[-1] += f"; {share:.0%} of the in-distribution chains are training chains"
    states = ", ".join(f"{n:,} at {position}" for position, n in distinct_states(dataset).items())
    return "\n".join([*lines, f"numbers of distinct states: {states}", *_shortcut_table(dataset)])


def _split_table(dataset: Dataset) -> list[str]:
    width = max(16, *(len(split) + 1 for split in dataset.splits))
    lines = [f"{'split':<{width}}{'rows':>10}{'probes':>8}"]
    for split, size in dataset.sizes().items():
        trained = "  trained on" if size and dataset.rows(split)[0] < dataset.n_train else ""
        lines.append(f"{split:<{width}}{size:>10,}{len(dataset.probes(split)):>8,}{trained}")
    return lines


def _shortcut_table(dataset: Dataset) -> list[str]:
    rules = shortcuts(dataset)
    if not rules:
        return ["there are no shortcuts for this task"]
    splits = list(next(iter(rules.values())))
    widths = [max(10, len(split) + 2) for split in splits]
    columns = [f"{split:>{width}}" for split, width in zip(splits, widths, strict=True)]
    lines = [
        "",
        "accuracy of shortcuts, which do not compose facts, by split:",
        f"{'':<16}" + "".join(columns),
    ]
    for rule, accuracy in rules.items():
        values = [f"{accuracy[s]:>{width}.3f}" for s, width in zip(splits, widths, strict=True)]
        lines.append(f"{rule:<16}" + "".join(values))
    return lines
