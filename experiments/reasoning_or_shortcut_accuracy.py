"""Tables of accuracies of `reasoning_or_shortcut.py`: by arm and stage, of every run, and lags."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from reasoning_or_shortcut_arms import Arm, ladders, number, over_worlds
from reasoning_or_shortcut_instruments import FOLLOWED, claims_of

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


def accuracy_tables(arms: Mapping[str, Arm]) -> str:
    """Return Markdown: accuracies by arm, stage and split, the best rule, and lags."""
    return "\n".join([*accuracies(arms), "", *lags(arms)]) + "\n"


def accuracies(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of accuracies by arm, stage and split, and of the best rule."""
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
        cells = [over_worlds(arm.rule(split), arm.worlds) for split in SHOWN]
        lines.append(f"| {name} | best rule | | {' | '.join(cells)} |")
    return lines


def lags(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of test_ii at train_ii .99, and of lags between equal thresholds."""
    pairs = [(0.5, 0.5), (0.95, 0.95), (0.99, 0.99), (0.99, 0.95)]
    titles = [f"train_ii {one:.2g} to test_ii {other:.2g}" for one, other in pairs]
    lines = [
        "The lag is the number of steps from the first evaluation at which train_ii reaches a "
        "threshold to the first at which test_ii reaches a threshold. A cell has the median, the "
        "range, and the number of runs that reach both thresholds. The median and the range are of "
        "these runs only. The last column has different thresholds for the two splits, as the lag "
        "in the reports of runs.",
        "",
        "| arm | test_ii at train_ii .99 | " + " | ".join(titles) + " |",
        "|---" * (2 + len(titles)) + "|",
    ]
    for name, arm in arms.items():
        if "stages" not in arm.parts:
            continue
        cells = [over_worlds(arm.accuracy("test_ii", "memorised"), arm.worlds)]
        for one, other in pairs:
            (begun, there), (ended, reached) = (
                arm.times("train_ii", one),
                arm.times("test_ii", other),
            )
            cells.append(_range((ended - begun)[there & reached], len(there)))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _range(values: np.ndarray, runs: int) -> str:
    """Format steps as `median (lowest to highest; n of runs)`."""
    if not len(values):
        return f"- (0 of {runs})"
    if len(values) == 1:
        return f"{values[0]:,} (1 of {runs})"
    median, low, high = np.median(values), values.min(), values.max()
    return f"{median:,.0f} ({low:,} to {high:,}; {len(values)} of {runs})"


def runs_table(arms: Mapping[str, Arm]) -> str:
    """Return Markdown: every run at every stage, with intervals clustered by bridge."""
    columns = ("test_ii", "test_c2", "test_c1", "test_c0", "test_oi")
    lines = [
        "Every run of the ladder at every stage. A cell has the accuracy of the run, its 95% "
        "interval clustered by bridge, and the number of bridges. `best rule` is the accuracy of "
        "the best shortcut on c0, the null. `answers` is the verdict of the rule of question 1. "
        "The last columns say whether an instrument makes the claim `grounded`.",
        "",
        f"| arm | world | init | stage | step | {' | '.join(columns)} | best rule | answers | "
        f"{' | '.join(FOLLOWED)} |",
        "|---" * (7 + len(columns) + len(FOLLOWED)) + "|",
    ]
    for name, arm in ladders(arms).items():
        stages = arm.parts["stages"]
        for run, (world, init) in enumerate(zip(arm.worlds, arm.inits, strict=True)):
            for stage in map(str, stages["stage"].values):
                step = float(stages["reached"].sel(stage=stage)[run])
                if np.isnan(step):
                    continue
                cells = [_of_run(arm, split, stage, run) for split in columns]
                cells.append(number(arm.rule("test_c0")[run]))
                cells.append(_said(float(stages["grounded"].sel(stage=stage)[run]), "open"))
                for instrument in FOLLOWED:
                    claimed = claims_of(arm, instrument, "grounded", stage)
                    cells.append(_said(claimed[run], "-"))
                start = f"| {name} | {world} | {init} | {stage} | {step:,.0f} |"
                lines.append(f"{start} {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _of_run(arm: Arm, split: str, stage: str, run: int) -> str:
    ends = ("accuracy", "accuracy_low", "accuracy_high", "accuracy_clusters")
    mean, low, high, bridges = (arm.at(split, stage, end)[run] for end in ends)
    return f"{number(mean)} [{number(low)}, {number(high)}] ({bridges:.0f})"


def _said(value: float, unknown: str) -> str:
    return unknown if np.isnan(value) else "yes" if value else "no"
