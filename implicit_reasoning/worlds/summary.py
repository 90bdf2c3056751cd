"""A dataset in words and numbers, for a person at a terminal."""

from __future__ import annotations

from implicit_reasoning.worlds.dataset import Dataset
from implicit_reasoning.worlds.shortcuts import coverage, distinct_states, shortcuts


def describe(dataset: Dataset) -> str:
    """Sizes, coverage, distinct states, and what answers the test splits without composing."""
    lines = [
        f"{len(dataset):,} rows of up to {dataset.n_ctx} tokens, {dataset.n_vocab:,} tokens",
        "",
    ]
    lines += _split_table(dataset)
    if dataset.world is not None:
        lines += ["", f"{dataset.world.n_facts:,} facts; training chains cover"]
        lines[-1] += f" {coverage(dataset):.0%} of the in-distribution ones"
    states = ", ".join(f"{n:,} at {position}" for position, n in distinct_states(dataset).items())
    lines += [f"distinct states: {states}", "", "accuracy of shortcuts, which compose nothing:"]
    return "\n".join(lines + _shortcut_table(dataset))


def _split_table(dataset: Dataset) -> list[str]:
    lines = [f"{'split':<16}{'rows':>10}{'probes':>8}"]
    for split, size in dataset.sizes().items():
        trained = "  trained on" if size and dataset.rows(split)[0] < dataset.n_train else ""
        lines.append(f"{split:<16}{size:>10,}{len(dataset.probes(split)):>8,}{trained}")
    return lines


def _shortcut_table(dataset: Dataset) -> list[str]:
    rules = shortcuts(dataset)
    splits = next(iter(rules.values()))
    lines = [f"{'':<16}" + "".join(f"{split:>10}" for split in splits)]
    for rule, accuracy in rules.items():
        lines.append(f"{rule:<16}" + "".join(f"{accuracy[split]:>10.3f}" for split in splits))
    return lines
