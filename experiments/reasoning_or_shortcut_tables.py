"""Tables of `reasoning_or_shortcut.py`: the answers that its decision rules give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from archive import read
from scipy.stats import spearmanr

from implicit_reasoning.statistics import mean_over_seeds
from implicit_reasoning.survival import kaplan_meier, log_rank

RUNGS = ("test_c0", "test_c1", "test_c2")
SHOWN = (
    "train_ii",
    "test_ii",
    "test_c2",
    "test_c1",
    "test_c0",
    "test_oi",
    "test_io",
    "test_private",
)
MOST, FEWEST = 7, 1  # of eight runs
IMPLICIT = "ladder"
COUNTS = (1, 2, 4)
HALF = 0.5
_PERMUTATIONS = 9999


class Arm(NamedTuple):
    """The results of one arm.

    Attributes:
      parts: arrays by node of the arm's file, with the leading dimension `run`.
      worlds: world seed of each run.
      inits: initialization seed of each run.
    """

    parts: dict[str, xr.Dataset]
    worlds: np.ndarray
    inits: np.ndarray

    def accuracy(self, split: str, stage: str = "end") -> np.ndarray:
        """Return the accuracy of every run at a stage; nan if a run does not reach the stage."""
        stages = self.parts["stages"]
        if split not in stages["split"]:
            return np.full(len(self.worlds), np.nan)
        return np.asarray(stages["accuracy"].sel(split=split, stage=stage).values, float)

    def times(self, split: str, level: float = HALF) -> tuple[np.ndarray, np.ndarray]:
        """Return the step at which every run reaches an accuracy, and whether it does.

        The step of a run that does not reach the accuracy is its last step.
        """
        curve = self.parts["training"]["accuracy"].sel(split=split).transpose("run", ...)
        steps = curve["evaluation"].values
        reached = np.asarray(curve.values >= level)
        ever = np.asarray(reached.any(1))
        return np.where(ever, steps[reached.argmax(1)], steps[-1]), ever


def read_arms(out: Path) -> dict[str, Arm]:
    """Load the results of all arms that have a file, by arm."""
    arms = {}
    for path in sorted(out.glob("*.nc")):
        tree = read(path)
        parts = {str(name): node.to_dataset(inherit=False) for name, node in tree.children.items()}
        top = tree.to_dataset()
        arms[path.stem] = Arm(parts, top["world"].values, top["init"].values)
    return arms


def write_tables(out: Path, arms: Mapping[str, Arm]) -> None:
    """Write `accuracy.md` and `answers.md`."""
    for name, make in (("accuracy", accuracy_table), ("answers", answers)):
        (out / f"{name}.md").write_text(make(arms), encoding="utf-8")


def over_worlds(values: np.ndarray, worlds: np.ndarray) -> str:
    """Format values of runs as `mean [low, high] (lowest - highest; n)`, t interval over worlds."""
    found = mean_over_seeds(np.asarray(values, float), worlds)
    if not found.n_clusters:
        return "-"
    n = int(np.isfinite(values).sum())
    text = f"{found.mean:.2f}"
    if found.n_clusters > 1:
        text += f" [{found.low:.2f}, {found.high:.2f}]"
    return f"{text} ({np.nanmin(values):.2f} - {np.nanmax(values):.2f}; {n})"


def accuracy_table(arms: Mapping[str, Arm]) -> str:
    """Return Markdown: accuracies by arm, stage and split, and the best rule."""
    lines = [
        "Each cell is the mean over runs, its 95% interval (t interval over worlds, in square "
        "brackets), and in round brackets the lowest and the highest run and the number of runs. "
        "`memorised` is the first checkpoint with train_ii at least .99, `half` the first with "
        "test_ii at least .5. The rows `best rule` are accuracies of the best shortcut.",
        "",
        "| arm | stage | step | " + " | ".join(SHOWN) + " |",
        "|---|---|---|" + "---|" * len(SHOWN),
    ]
    for name, arm in arms.items():
        if "stages" not in arm.parts:
            continue
        stages = arm.parts["stages"]
        for stage in stages["stage"].values:
            steps = np.asarray(stages["reached"].sel(stage=stage).values, float)
            reached = steps[np.isfinite(steps)]
            at = f"{np.median(reached):,.0f}" if len(reached) else "-"
            cells = [over_worlds(arm.accuracy(split, stage), arm.worlds) for split in SHOWN]
            lines.append(f"| {name} | {stage} | {at} | {' | '.join(cells)} |")
        rules = arm.parts["training"]["shortcut"]
        cells = [
            over_worlds(rules.sel(split=split).values, arm.worlds)
            if split in rules["split"]
            else "-"
            for split in SHOWN
        ]
        lines.append(f"| {name} | best rule | | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def answers(arms: Mapping[str, Arm]) -> str:
    """Return Markdown: what each decision rule says, with its numbers."""
    parts: list[tuple[str, Callable[[Mapping[str, Arm]], list[str]]]] = [
        ("1. Grounded", verdicts),
        ("2. Evidence", evidence),
        ("3. Instruments", instruments),
        ("4. Cue conflict", cues),
        ("5. Grokking and grounding", together),
        ("6. Compared with the implicit arm", compared),
        ("6. Cost of a step", cost),
        ("6. Parts of a chain of thought", spoken),
        ("7. Memorise-only phase", memorise_only),
        ("8. The gap of the second hop", second_hop),
        ("9. Teaching cold facts later", taught),
    ]
    taught_arms = {name: arm for name, arm in arms.items() if "taught" in arm.parts}
    measured = {name: arm for name, arm in arms.items() if name not in taught_arms}
    sections = [
        f"## {title}\n\n" + "\n".join(make(taught_arms if make is taught else measured)) + "\n"
        for title, make in parts
    ]
    return "\n".join(sections)


def _ladders(arms: Mapping[str, Arm]) -> dict[str, Arm]:
    return {name: arm for name, arm in arms.items() if "test_c0" in arm.parts["stages"]["split"]}


def _by_count(true: int, false: int, runs: int) -> str:
    if runs < MOST + FEWEST:
        return f"too few runs ({runs})"
    return "yes" if true >= MOST else "no" if false >= MOST else "open"


def verdicts(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 1."""
    lines = [
        "| arm | stage | grounded | not grounded | open | the arm is grounded |",
        "|---" * 6 + "|",
    ]
    for name, arm in _ladders(arms).items():
        stages = arm.parts["stages"]
        for stage in stages["stage"].values:
            at = stages.sel(stage=stage)
            there = np.isfinite(at["reached"].values)
            verdict = at["grounded"].values[there]
            true, false = int((verdict == 1).sum()), int((verdict == 0).sum())
            result = _by_count(true, false, len(arm.worlds))
            open_ = int(there.sum()) - true - false
            lines.append(f"| {name} | {stage} | {true} | {false} | {open_} | {result} |")
    return lines


def evidence(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 2."""
    lines = ["| arm | c1 - c0 | c2 - c0 | c0 - oi | accuracy goes by |", "|---" * 5 + "|"]
    for name, arm in _ladders(arms).items():
        c0, c1, c2 = (arm.accuracy(split) for split in RUNGS)
        rises, whole, beside = (
            mean_over_seeds(values, arm.worlds)
            for values in (c1 - c0, c2 - c0, c0 - arm.accuracy("test_oi"))
        )
        result = "open" if len(arm.worlds) >= MOST + FEWEST else f"too few runs ({len(c0)})"
        if (
            result == "open"
            and rises.low > 0
            and whole.low > 0
            and beside.low <= 0.1
            and beside.high >= -0.1
        ):
            result = "the evidence"
        elif result == "open" and whole.low <= 0 <= whole.high and whole.mean < 0.1:
            result = "the fact"
        cells = [
            over_worlds(v, arm.worlds) for v in (c1 - c0, c2 - c0, c0 - arm.accuracy("test_oi"))
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {result} |")
    return lines


FOLLOWED = {
    "cross_query_patching": {"outcome": "counterfactual", "expected": "true"},
    "mean_swap": {"edit": "class means"},
}
"""The selection that gives the share of answers that follow the state, by instrument."""


def followed(arm: Arm, instrument: str, stage: str) -> dict[str, np.ndarray]:
    """Return, by rung, the share of answers of each run that follow the state at S[1, r1]."""
    part = arm.parts[instrument].sel(stage=stage)
    name = "fraction" if instrument == "cross_query_patching" else "counterfactual"
    share = part[name].sel(FOLLOWED[instrument])
    groups = {str(group): group for group in share["group"].values}
    found = {}
    for rung in RUNGS:
        names = [key for key in groups if key in (rung, f"{rung.removeprefix('test_')} source")]
        if names:
            found[rung] = np.asarray(share.sel(group=names[0]).values, float)
    return found


def instruments(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 3."""
    lines = [
        "| arm | instrument | stage | share at c0 | share at c1 | share at c2 | Spearman | n |",
        "|---" * 8 + "|",
    ]
    for name, arm in _ladders(arms).items():
        for instrument in FOLLOWED:
            if instrument not in arm.parts:
                continue
            for stage in arm.parts["stages"]["stage"].values:
                share = followed(arm, instrument, stage)
                cells = [over_worlds(share[r], arm.worlds) if r in share else "-" for r in RUNGS]
                accuracy = np.concatenate([[], *(arm.accuracy(rung, stage) for rung in share)])
                values = np.concatenate([[], *share.values()])
                both = np.isfinite(accuracy) & np.isfinite(values)
                rank = spearmanr(accuracy[both], values[both])[0] if both.sum() > 2 else np.nan
                lines.append(
                    f"| {name} | {instrument} | {stage} | {' | '.join(cells)} | {rank:.2f} | "
                    f"{int(both.sum())} |"
                )
    return lines


def cues(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 4."""
    lines = [
        "| chains | stage | chains | fact | neither | chains - fact | winner |",
        "|---" * 7 + "|",
    ]
    for arm in (arm for name, arm in arms.items() if name.startswith("cue_conflict")):
        for count in COUNTS:
            for stage in arm.parts["stages"]["stage"].values:
                chains, fact = (
                    arm.accuracy(f"test_s{count}_{cue}", stage) for cue in ("chains", "fact")
                )
                neither, gap = 1 - chains - fact, mean_over_seeds(chains - fact, arm.worlds)
                winner = "chains" if gap.low > 0 else "fact" if gap.high < 0 else "open"
                winner = "neither" if mean_over_seeds(neither, arm.worlds).mean > HALF else winner
                shares = (chains, fact, neither, chains - fact)
                cells = [over_worlds(values, arm.worlds) for values in shares]
                lines.append(f"| {count} | {stage} | {' | '.join(cells)} | {winner} |")
    return lines


def together(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 5."""
    lines = [
        "The medians are Kaplan-Meier medians of the step at which the accuracy reaches .5. The "
        "log-rank test compares test_ii with c0 and is stratified by world; p is from "
        f"{_PERMUTATIONS:,} permutations within worlds.",
        "",
        "| arm | runs | test_ii, median (reached) | c0, median (reached) | within a factor of 2 | "
        "together | log-rank p |",
        "|---" * 7 + "|",
    ]
    for name, arm in _ladders(arms).items():
        found = [arm.times(split) for split in ("test_ii", "test_c0")]
        medians = [
            f"{curve.median:,.0f} ({curve.n_events})"
            for curve in (kaplan_meier(*part) for part in found)
        ]
        (held_out, there), (cold, reached) = found
        near = there & reached & (cold <= 2 * held_out)
        result = _by_count(int(near.sum()), int((~near).sum()), len(near))
        times, seen = (np.concatenate(column) for column in zip(*found, strict=True))
        group = np.repeat([0, 1], len(near))
        p = "-"
        if len(near) > 1:
            world = np.tile(arm.worlds, 2)
            test = log_rank(times, seen, group, world, n_permutations=_PERMUTATIONS)
            p = f"{test.p_permutation:.3f}"
        cells = [name, str(len(near)), *medians, str(int(near.sum())), result, p]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def compared(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 6: differences from the implicit arm, paired by seeds."""
    splits = ("test_ii", "test_c2", "test_c1", "test_c0", "test_oi", "test_io")
    lines = [
        "Each cell is the mean difference over pairs of runs with the same world and the same "
        "initialization. A star marks an interval over worlds that excludes 0. The last column is "
        "the difference of log2 of the step at which test_ii reaches .5, for pairs that both reach "
        "it.",
        "",
        "| arm | " + " | ".join(splits) + " | log2 step of .5 |",
        "|---" * (len(splits) + 2) + "|",
    ]
    base = arms.get(IMPLICIT)
    for name, arm in _ladders(arms).items():
        if base is None or name == IMPLICIT:
            continue
        here, there = _paired(arm, base)
        cells = [
            _difference(arm.accuracy(s)[here] - base.accuracy(s)[there], arm.worlds[here])
            for s in splits
        ]
        steps = []
        for one, places in ((arm, here), (base, there)):
            times, reached = one.times("test_ii")
            steps.append(np.where(reached, np.log2(np.maximum(times, 1)), np.nan)[places])
        cells.append(_difference(steps[0] - steps[1], arm.worlds[here]))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _paired(arm: Arm, base: Arm) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the runs of both arms with the same seeds, in the same order."""
    seeds = [list(zip(a.worlds.tolist(), a.inits.tolist(), strict=True)) for a in (arm, base)]
    shared = [pair for pair in seeds[0] if pair in seeds[1]]
    here, there = (np.array([part.index(pair) for pair in shared], int) for part in seeds)
    return here, there


def _difference(values: np.ndarray, worlds: np.ndarray) -> str:
    found = mean_over_seeds(values, worlds)
    star = " *" if found.low > 0 or found.high < 0 else ""
    return over_worlds(values, worlds) + star


def cost(arms: Mapping[str, Arm]) -> list[str]:
    """Return the operations of a training step, for question 6."""
    lines = ["| arm | GFLOP per step | relative to the implicit arm |", "|---" * 3 + "|"]
    flops = {
        name: float(arm.parts["training"]["flops_per_step"].mean())
        for name, arm in _ladders(arms).items()
    }
    for name, count in flops.items():
        ratio = f"{count / flops[IMPLICIT]:.2f}" if IMPLICIT in flops else "-"
        lines.append(f"| {name} | {count / 1e9:.2f} | {ratio} |")
    return lines


PARTS = ("bridge", "teacher_forced", "free_running")


def spoken(arms: Mapping[str, Arm]) -> list[str]:
    """Return the accuracy of the parts of answers with a chain of thought, for question 6."""
    lines = ["| arm | split | whole answer | " + " | ".join(PARTS) + " |", "|---" * 6 + "|"]
    for name, arm in _ladders(arms).items():
        curves = arm.parts["training"].isel(evaluation=-1)
        if PARTS[0] not in curves:
            continue
        for split in (split for split in SHOWN if split in curves["split"]):
            values = [curves[part].sel(split=split).values for part in ("accuracy", *PARTS)]
            cells = [over_worlds(value, arm.worlds) for value in values]
            lines.append(f"| {name} | {split} | {' | '.join(cells)} |")
    return lines


def memorise_only(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 7."""
    lines = [
        "| arm | test_ii at train_ii .99 | runs with at least .5 | no such phase |",
        "|---" * 4 + "|",
    ]
    for name, arm in _ladders(arms).items():
        values = arm.accuracy("test_ii", "memorised")
        high, low = int((values >= HALF).sum()), int((values < HALF).sum())
        result = _by_count(high, low, len(values))
        lines.append(f"| {name} | {over_worlds(values, arm.worlds)} | {high} | {result} |")
    return lines


def second_hop(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 8."""
    lines = ["| arm | io - test_ii at the end | the gap remains |", "|---" * 3 + "|"]
    for name, arm in _ladders(arms).items():
        gap = arm.accuracy("test_io") - arm.accuracy("test_ii")
        remains = mean_over_seeds(gap, arm.worlds).high < -0.1
        result = _by_count(MOST * int(remains), MOST * int(not remains), len(gap))
        lines.append(f"| {name} | {over_worlds(gap, arm.worlds)} | {result} |")
    return lines


def taught(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 9."""
    lines = [
        "| arm | step | c0 | c2 | test_ii | oi | runs with c0 >= .8 test_ii |",
        "|---" * 7 + "|",
    ]
    for name, arm in arms.items():
        found = arm.parts["taught"]["accuracy"]
        for step in found["step"].values:
            c0, c2, held_out, outside = (
                np.asarray(found.sel(split=split, step=step).values, float)
                for split in ("test_c0", "test_c2", "test_ii", "test_oi")
            )
            repaired = int((c0 >= 0.8 * held_out).sum())
            cells = [over_worlds(values, arm.worlds) for values in (c0, c2, held_out, outside)]
            lines.append(f"| {name} | {step:,} | {' | '.join(cells)} | {repaired} of {len(c0)} |")
    return lines
