"""Tables of `reasoning_or_shortcut.py`: the answers that its decision rules give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from reasoning_or_shortcut_accuracy import SHOWN, accuracy_tables, runs_table
from reasoning_or_shortcut_arms import (
    FEWEST,
    HALF,
    IMPLICIT,
    MOST,
    RUNGS,
    Arm,
    by_count,
    ladders,
    last_of,
    over_worlds,
)
from reasoning_or_shortcut_instruments import instruments

from implicit_reasoning.statistics import mean_over_seeds
from implicit_reasoning.survival import SurvivalCurve, kaplan_meier, log_rank

COUNTS = (1, 2, 4)
TAUGHT = (0, 0.05, 0.25, 0.5, 1)  # shown shares of the steps of further training
_PERMUTATIONS = 9999


def write_tables(out: Path, arms: Mapping[str, Arm]) -> None:
    """Write `accuracy.md`, `answers.md` and `runs.md`."""
    makers = {"accuracy": accuracy_tables, "answers": answers, "runs": runs_table}
    for name, make in makers.items():
        (out / f"{name}.md").write_text(make(arms), encoding="utf-8")


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
        ("7. Memorize-only phase", memorise_only),
        ("8. The gap of the second hop", second_hop),
        ("9. Teaching cold facts later", taught),
    ]
    taught_arms = {name: arm for name, arm in arms.items() if "taught" in arm.parts}
    measured = {name: arm for name, arm in arms.items() if name not in taught_arms}
    text = (
        "The rules are in the docstring of `experiments/reasoning_or_shortcut.py`. A cell with an "
        "accuracy or a difference has the mean over runs, the 95% t interval over worlds in square "
        "brackets, and in round brackets the lowest and the highest run and the number of runs. "
        "With one run, the number 1 is in round brackets. `runs.md` has the intervals of every "
        "run, clustered by bridge.\n"
    )
    sections = [
        f"## {title}\n\n" + "\n".join(make(taught_arms if make is taught else measured)) + "\n"
        for title, make in parts
    ]
    return "\n".join([text, *sections])


def verdicts(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 1."""
    lines = [
        "Numbers of runs. The training chains of `ladder_chain_of_thought` state the bridges of "
        "cold facts, so the rule does not show for this arm that single facts are used.",
        "",
        "| arm | stage | grounded | not grounded | open | the arm is grounded |",
        "|---" * 6 + "|",
    ]
    for name, arm in ladders(arms).items():
        stages = arm.parts["stages"]
        for stage in stages["stage"].values:
            at = stages.sel(stage=stage)
            there = np.isfinite(at["reached"].values)
            verdict = at["grounded"].values[there]
            true, false = int((verdict == 1).sum()), int((verdict == 0).sum())
            result = by_count(true, false, len(arm.worlds))
            open_ = int(there.sum()) - true - false
            lines.append(f"| {name} | {stage} | {true} | {false} | {open_} | {result} |")
    return lines


def evidence(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 2."""
    lines = [
        "All accuracies are those at the end. The rule says whether the accuracy rises with the "
        "evidence. The differences say by how much.",
        "",
        "| arm | c1 - c0 | c2 - c0 | c0 - oi | accuracy goes by |",
        "|---" * 5 + "|",
    ]
    for name, arm in ladders(arms).items():
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


def cues(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 4."""
    lines = [
        "Shares of answers. `rule: chains` and `rule: fact` are the shares of the best shortcut "
        "for either answer, the null.",
        "",
        "| training chains | stage | chains | fact | neither | chains - fact | rule: chains | "
        "rule: fact | winner |",
        "|---" * 9 + "|",
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
                if (runs := int(np.isfinite(neither).sum())) < MOST + FEWEST:
                    winner = f"too few runs ({runs})"
                shares = [chains, fact, neither, chains - fact]
                shares += [arm.rule(f"test_s{count}_{cue}") for cue in ("chains", "fact")]
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
    for name, arm in ladders(arms).items():
        found = [arm.times(split) for split in ("test_ii", "test_c0")]
        medians = [_median(kaplan_meier(*part)) for part in found]
        (held_out, there), (cold, reached) = found
        near = there & reached & (cold <= 2 * held_out)
        result = by_count(int(near.sum()), int((~near).sum()), len(near))
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


def _median(curve: SurvivalCurve) -> str:
    median = f"{curve.median:,.0f}" if np.isfinite(curve.median) else "not reached"
    return f"{median} ({curve.n_events} of {curve.n_runs})"


def compared(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 6: differences from the implicit arm, paired by seeds."""
    splits = ("test_ii", "test_c2", "test_c1", "test_c0", "test_oi", "test_io")
    lines = [
        "Each cell is the mean difference over pairs of runs with the same world and the same "
        "initialization. A star marks an interval over worlds that excludes 0. The last column is "
        "the log-rank test against the implicit arm, stratified by world, of the step at which "
        f"test_ii (c0) reaches .5; p is from {_PERMUTATIONS:,} permutations within worlds. The "
        "column before has the difference of log2 of the step at which test_ii reaches .5, for "
        "pairs that both reach it.",
        "",
        "| arm | " + " | ".join(splits) + " | log2 step of .5 | log-rank p: test_ii, c0 |",
        "|---" * (len(splits) + 3) + "|",
    ]
    base = arms.get(IMPLICIT)
    for name, arm in ladders(arms).items():
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
        cells.append(", ".join(_log_rank(arm, base, split) for split in ("test_ii", "test_c0")))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _log_rank(arm: Arm, base: Arm, split: str) -> str:
    """Return the p-value of the difference of the times of two arms, in the worlds of both."""
    columns = []
    for group, one in enumerate((arm, base)):
        here = np.isin(one.worlds, np.intersect1d(arm.worlds, base.worlds))
        times, reached = one.times(split)
        columns.append((times[here], reached[here], np.full(here.sum(), group), one.worlds[here]))
    times, reached, groups, worlds = (np.concatenate(part) for part in zip(*columns, strict=True))
    if min(np.bincount(groups, minlength=2)) < 2:
        return "-"
    test = log_rank(times, reached, groups, worlds, n_permutations=_PERMUTATIONS)
    return f"{test.p_permutation:.3f}"


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
        for name, arm in ladders(arms).items()
    }
    for name, count in flops.items():
        ratio = f"{count / flops[IMPLICIT]:.2f}" if IMPLICIT in flops else "-"
        lines.append(f"| {name} | {count / 1e9:.2f} | {ratio} |")
    return lines


PARTS = ("bridge", "teacher_forced", "free_running")


def spoken(arms: Mapping[str, Arm]) -> list[str]:
    """Return the accuracy of the parts of answers with a chain of thought, for question 6."""
    lines = ["| arm | split | whole answer | " + " | ".join(PARTS) + " |", "|---" * 6 + "|"]
    for name, arm in ladders(arms).items():
        curves = arm.parts["training"]
        if PARTS[0] not in curves:
            continue
        for split in (split for split in SHOWN if split in curves["split"]):
            values = [last_of(curves[part].sel(split=split)) for part in ("accuracy", *PARTS)]
            cells = [over_worlds(value, arm.worlds) for value in values]
            lines.append(f"| {name} | {split} | {' | '.join(cells)} |")
    return lines


def memorise_only(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 7."""
    lines = [
        "| arm | test_ii at train_ii .99 | runs with at least .5 | no memorize-only phase |",
        "|---" * 4 + "|",
    ]
    for name, arm in ladders(arms).items():
        values = arm.accuracy("test_ii", "memorised")
        high, low = int((values >= HALF).sum()), int((values < HALF).sum())
        result = by_count(high, low, len(values))
        lines.append(f"| {name} | {over_worlds(values, arm.worlds)} | {high} | {result} |")
    return lines


def second_hop(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 8."""
    lines = ["| arm | io - test_ii at the end | the gap remains |", "|---" * 3 + "|"]
    for name, arm in ladders(arms).items():
        gap = arm.accuracy("test_io") - arm.accuracy("test_ii")
        remains = mean_over_seeds(gap, arm.worlds).high < -0.1
        result = by_count(MOST * int(remains), MOST * int(not remains), len(gap))
        lines.append(f"| {name} | {over_worlds(gap, arm.worlds)} | {result} |")
    return lines


def taught(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 9: accuracies at some steps of the further training."""
    lines = [
        "Accuracies on chains that neither task trains on, after further training on a task in "
        "which the cold facts are ordinary facts. Step 0 is the last checkpoint of the implicit "
        "arm.",
        "",
        "| arm | step | c0 | c2 | test_ii | oi | runs with c0 >= .8 test_ii | repaired |",
        "|---" * 8 + "|",
    ]
    for name, arm in arms.items():
        found = arm.parts["taught"]["accuracy"]
        steps = found["step"].values
        shown = {int(steps[np.searchsorted(steps, part * steps[-1])]) for part in TAUGHT}
        for step in sorted(shown):
            c0, c2, held_out, outside = (
                np.asarray(found.sel(split=split, step=step).values, float)
                for split in ("test_c0", "test_c2", "test_ii", "test_oi")
            )
            repaired = int((c0 >= 0.8 * held_out).sum())
            cells = [over_worlds(values, arm.worlds) for values in (c0, c2, held_out, outside)]
            last = by_count(repaired, len(c0) - repaired, len(c0)) if step == steps[-1] else ""
            count = f"{repaired} of {len(c0)}"
            lines.append(f"| {name} | {step:,} | {' | '.join(cells)} | {count} | {last} |")
    return lines
