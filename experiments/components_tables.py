"""Tables of `components.py`, made from its saved arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from components_rules import (
    COMPLETE,
    COST,
    FIRST_DIRECTION,
    STAGES,
    agreement,
    at_stage,
    bump,
    circuit_first,
    compared,
    enough,
    enrichment,
    fact_keys,
    incompleteness,
    known,
    movers,
    over,
    overlap,
    reliability,
    shared_code,
    steered,
    steers,
    stored,
    too_few,
    waiting,
)
from reasoning_or_shortcut_arms import Arm, number, over_worlds

from implicit_reasoning.analysis.components.estimates import ESTIMATES
from implicit_reasoning.analysis.components.fourier_figures import phase_ends

LEARNED = STAGES[1:]
CLAIMS = ("composition", "ladder", "ladder_early", "in_context_by_doubling")
"""Arms that support claims; the others are shown as curves."""

KINDS = ("states", "parts", "projections")
PUBLISHED = ("published (p = 113, 40,000 steps)", "1,400", "9,400", "14,000", "yes", "-", "-", "-")


def write_tables(out: Path, arms: Mapping[str, Arm]) -> None:
    """Write `answers.md`, with one section for each question, and `runs.md`, with every run."""
    text = [
        "The answers by the decision rules of `experiments/components.py`. A number is a mean over "
        "runs. In square brackets is its 95% t interval over worlds, and in round brackets are the "
        "lowest and the highest run and the number of runs. With one run, the number 1 is in round "
        "brackets. Beside an answer are the number of runs in which the rule holds and the number "
        "of all runs. `runs.md` has the numbers of every run, with intervals and numbers of "
        "distinct states."
    ]
    sections: Mapping[str, Callable[[Mapping[str, Arm]], list[str]]] = {
        "1. The induction bump": bumps,
        "2. Modular addition": phases,
        "3. One store for both hops?": stores,
        "4. Where do gradients mislead?": gradients,
        "5. Which heads move what, and when?": heads,
        "6. Neurons that store facts": neurons,
        "7. Enrichment at e1": enriched,
        "8. Composition through a shared code": codes,
        "9. Steering": directions,
    }
    write_answers(out, text, sections, arms)
    (out / "runs.md").write_text(runs_table(arms), encoding="utf-8")


def write_answers(
    out: Path,
    text: Sequence[str],
    sections: Mapping[str, Callable[[Mapping[str, Arm]], list[str]]],
    arms: Mapping[str, Arm],
) -> None:
    """Write `answers.md`: some text, and a section for each question, made from the arms."""
    parts = [f"## {title}\n\n" + "\n".join(make(arms)) for title, make in sections.items()]
    (out / "answers.md").write_text("\n\n".join([*text, *parts]) + "\n", encoding="utf-8")


def having(arms: Mapping[str, Arm], node: str, *, claims: bool = False) -> dict[str, Arm]:
    """Return the arms with results of an instrument, optionally only those that support claims."""
    return {
        name: arm
        for name, arm in arms.items()
        if node in arm.parts and (not claims or name in CLAIMS)
    }


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return a Markdown table; `-` if there are no rows."""
    if not rows:
        return ["There are no results yet."]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return [*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)]


def answer(name: str, arm: Arm, said: object) -> str:
    """Return an answer; arms that support no claim have none."""
    return str(said) if name in CLAIMS else "(curves)"


def said_of(name: str, arm: Arm, said: str) -> str:
    """Return an answer to write after a number; empty for arms and runs that support none."""
    return f": {said}" if name in CLAIMS and enough(arm) else ""


def bumps(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 1."""
    rows = []
    for name, arm in having(arms, "head_scores").items():
        found = bump(arm)
        last = found.attention
        rows.append(
            [
                name,
                over_worlds(last["attention"].values, arm.worlds),
                over_worlds(last["other_keys"].values, arm.worlds),
                *(steps_of(found.times[at]) for at in ("previous token", "induction", "accuracy")),
                *map(str, (found.together, found.loss_drops, found.previous_first)),
            ]
        )
    return table(
        [
            *("arm", "attention of the induction head at the end", "null: other keys"),
            *(f"half-time of {name} (steps)" for name in ("previous token", "induction")),
            "half-time of the accuracy (steps)",
            *("forms with the accuracy", "loss drops with it", "previous token first"),
        ],
        rows,
    )


def steps_of(values: np.ndarray) -> str:
    """Format steps of runs as `median (lowest - highest; n)`."""
    there = values[np.isfinite(values)]
    if not len(there):
        return "-"
    ends = f"{there.min():,.0f} - {there.max():,.0f}; " if len(there) > 1 else ""
    return f"{np.median(there):,.0f} ({ends}{len(there)})"


def phases(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 2, with one row for each run."""
    rows: list[Sequence[object]] = [PUBLISHED]
    for name, arm in having(arms, "fourier_progress").items():
        part = arm.parts["fourier_progress"]
        for place, (world, init) in enumerate(zip(arm.worlds, arm.inits, strict=True)):
            run = part.isel(run=place).dropna("step", how="all")
            ends = phase_ends(run)
            steps = run["step"].values
            test = run["full_loss"].sel(group="test_pairs").values
            restricted = run["restricted_loss"].sel(group="all_pairs").values
            null = run["null_restricted_loss"].sel(group="all_pairs").mean("draw").values
            key = [f"{int(k)}" for k in run["frequency"].values[run["is_key"].values[-1] > 0]]
            fallen = [last_half(steps, values) for values in (restricted, test, null)]
            rows.append(
                [
                    f"{name} w{world} i{init}",
                    *(f"{ends[at]:,}" if at in ends else "-" for at in _PHASES),
                    "yes" if fallen[0] < fallen[1] else "no",
                    *(f"{step:,}" for step in fallen),
                ]
            )
            rows[-1] = [*rows[-1], ", ".join(key)]
    rows[0] = [*PUBLISHED, "14, 35, 41, 42, 52"]
    text = (
        "Ends of the phases, as steps. Rules choose them (see `fourier_figures.py`). The paper "
        "chose them by eye. The last columns are the first checkpoints from which on a loss stays "
        "below half of its maximum. The null is the restricted loss with as many other frequencies "
        "(mean of 20 draws). There are three runs at most, so nothing is claimed."
    )
    columns = [
        *("run", *(f"end of {name}" for name in _PHASES)),
        *("restricted falls before test", "restricted loss halved", "test loss halved"),
        *("null halved", "key frequencies"),
    ]
    return [text, "", *table(columns, rows)]


_PHASES = ("memorization", "circuit formation", "cleanup")


def last_half(steps: np.ndarray, values: np.ndarray) -> int:
    """Return the first step from which on a curve stays below half of its maximum."""
    high = np.flatnonzero(values >= values.max() / 2)
    place = min(high[-1] + 1, len(steps) - 1)
    return int(steps[place])


def stores(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 3."""
    rows = []
    for name, arm in having(arms, "fact_neurons").items():
        for stage in LEARNED:
            own, null, said = overlap(arm, stage)
            part = at_stage(arm, "fact_neurons", stage).isel(group=0, drop=True)
            needed = [
                over_worlds(known(part, "needed").sel(hop=hop).values, arm.worlds)
                for hop in part["hop"].values
            ]
            values = (own.values, null.values, (own - null).values)
            cells = [over_worlds(one, arm.worlds) for one in values]
            rows.append([name, stage, *cells, *needed, answer(name, arm, said)])
    columns = (
        *("arm", "stage", "overlap", "null: another fact", "overlap - null"),
        *("neurons needed, first hop", "neurons needed, last hop", "the store is"),
    )
    return table(columns, rows)


def gradients(arms: Mapping[str, Arm]) -> list[str]:
    """Return the tables of question 4: rank correlations, and completeness."""
    rows, complete = [], []
    for name, arm in having(arms, "attribution").items():
        for kind in KINDS:
            for estimate in ESTIMATES:
                values = {stage: agreement(arm, stage, estimate, kind) for stage in STAGES}
                cells = [
                    over_worlds(found, arm.worlds) + said_of(name, arm, reliability(found, arm))
                    for found in values.values()
                ]
                change = values["half"] - values["end"]
                more = "too few runs" if not enough(arm) else number_sign(change, arm)
                cells += [over_worlds(change, arm.worlds), answer(name, arm, more)]
                rows.append([name, kind, estimate, *cells])
        for stage in STAGES:
            values_at = incompleteness(arm, stage)
            said = too_few(arm)
            if enough(arm):
                said = "yes" if over(values_at, arm).high <= COMPLETE else "no"
            cells = [over_worlds(100 * values_at, arm.worlds), answer(name, arm, said)]
            complete.append([name, stage, *cells])
    columns = ("arm", "cells", "estimate", *STAGES, "half - end", "misleads more at half")
    text = (
        "Mean rank correlation (Spearman) with exact patching over pairs, by stage. It is 0 for an "
        "estimate that is unrelated to the effects. Arms with eight runs have an answer after the "
        "number."
    )
    second = (
        "Integrated gradients: mean difference between the sum of effects of a layer and the whole "
        f"difference, in percent of it, at the worst layer. Complete: at most {100 * COMPLETE:.0f}."
    )
    return [
        *(text, "", *table(columns, rows), "", second, ""),
        *table(("arm", "stage", "incompleteness (%)", "complete"), complete),
    ]


def number_sign(values: np.ndarray, arm: Arm) -> str:
    """Return whether the interval over worlds is below 0, above 0 or contains 0."""
    found = over(values, arm)
    return "yes" if found.high < 0 else "no, less" if found.low > 0 else "open"


def heads(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 5."""
    rows = []
    for name, arm in having(arms, "claims").items():
        found = movers(arm)
        rules = [*found.moved.values(), found.bridge, found.used, found.before]
        cells = [answer(name, arm, f"{one}") for one in rules]
        half = arm.parts["stages"]["reached"].sel(stage="half").values
        rows.append([name, *cells, steps_of(found.first), steps_of(half), found.untrained])
    first = next(iter(having(arms, "claims").values()), None)
    variables = [] if first is None else first.parts["claims"]["variable"].values.tolist()
    columns = [
        *("arm", *(f"moves {name}" for name in variables), "moves the bridge or its cluster"),
        *("that head is used", "before the answers", "first claim about the bridge (steps)"),
        *("test_ii reaches .5 (steps)", "claims at step 0 (null)"),
    ]
    return table(columns, rows)


def neurons(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 6."""
    rows = []
    for name, arm in having(arms, "neuron_keys").items():
        for stage in STAGES:
            own, null = (over_worlds(x.values, arm.worlds) for x in fact_keys(arm, stage))
            claims = over_worlds(at_stage(arm, "claims", stage)["stores"].values, arm.worlds)
            said = answer(name, arm, stored(arm)) if stage == "end" else ""
            rows.append([name, stage, own, null, claims, said])
    columns = (
        *("arm", "stage", "share of neurons with a fact as key", "null: permuted facts"),
        *("claims that a neuron stores a fact", "facts are stored"),
    )
    return table(columns, rows)


def enriched(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 7."""
    rows = []
    for name, arm in having(arms, "enrichment").items():
        part = at_stage(arm, "enrichment", "end").isel(group=0, drop=True)
        part, most = part.sel(off="MLPs", drop=True), int(part["n_off"].values[-1])
        shares = part["attributes"].sel(layer=1)
        pairs = (("own", 0), ("another's", 0), ("own", 1), ("another's", 1))
        values = [shares.sel(whose=whose, n_off=n).values for whose, n in pairs]
        values += [part["chain_right"].sel(n_off=n).values for n in (0, most)]
        said = [answer(name, arm, one) for one in enrichment(arm)]
        rows.append([name, *(over_worlds(one, arm.worlds) for one in values), *said])
    columns = (
        *("arm", "tails of e1 at S[1, e1]", "null: another entity"),
        *("first MLP off", "null, first MLP off", "right chains", "right chains, all MLPs off"),
        *("enriched", "the first MLP writes them", "answers need the MLPs at e1"),
    )
    return table(columns, rows)


def codes(arms: Mapping[str, Arm]) -> list[str]:
    """Return the tables of question 8: accuracies by stage, and the rules over training."""
    rows, over_time = [], []
    for name, arm in having(arms, "composition_progress").items():
        for stage in LEARNED:
            part = at_stage(arm, "composition_progress", stage)["correct"].sel(group="test_ii")
            cells = [
                over_worlds(part.sel(state=state).values, arm.worlds)
                for state in part["state"].values
            ]
            said = [answer(name, arm, one) for one in shared_code(arm, stage)]
            rows.append([name, stage, *cells, *said])
        gap = waiting(arm)
        cells, waits = ["-", "-"], "-"
        if gap is not None:
            waits = too_few(arm)
            if enough(arm):
                waits = "yes" if over(gap, arm).low > MIN_GAP else "no"
            cells = [over_worlds(gap, arm.worlds), answer(name, arm, waits)]
        over_time.append([name, answer(name, arm, circuit_first(arm)), *cells])
    states = ("own", "restricted", "excluded", "null: other bridge", "null: other bridge removed")
    columns = ("arm", "stage", *states, "through the code", "needs the code")
    second = (
        *("arm", "the circuit is there before the answers"),
        *("restricted - own on test_c0 at the end", "the second hop waits for the fact"),
    )
    text = "Accuracy on test_ii with the edited state S[1, r1]."
    return [text, "", *table(columns, rows), "", *table(second, over_time)]


MIN_GAP = 0.2


def directions(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 9."""
    rows = []
    for name, arm in having(arms, "steering").items():
        shares, null = steered(arm)
        half = at_stage(arm, "steering", "end")["alpha50"].isel(group=0, drop=True)
        for direction, values in shares.items():
            said = [steers(values, null, arm)]
            base = shares[FIRST_DIRECTION]
            said.append("-" if direction == FIRST_DIRECTION else compared(base, values, arm))
            alphas = half.sel(direction=direction).values
            cells = [over_worlds(x, arm.worlds) for x in (values, null, base - values)]
            middle = number(float(np.median(alphas))) if len(alphas) else "-"
            rows.append(
                [name, direction, *cells, middle, *(answer(name, arm, one) for one in said)]
            )
    columns = (
        *(
            "arm",
            "direction",
            f"followed at a KL of {COST}",
            "higher null",
            "class mean - direction",
        ),
        *("median alpha50", "steers", "class means"),
    )
    return table(columns, rows)


def runs_table(arms: Mapping[str, Arm]) -> str:
    """Return the table of numbers of every run at the end, with intervals and distinct states."""
    rows: list[Sequence[object]] = []
    for name, arm in arms.items():
        for place, seeds in enumerate(zip(arm.worlds, arm.inits, strict=True)):
            for what, part, output in numbers_of(arm):
                rows.append([name, *seeds, what, *interval_cells(part.isel(run=place), output)])
    text = (
        "The main numbers of every run at the last checkpoint, with 95% intervals clustered by "
        "bridge or fact. The columns on the right are the number of clusters in the mean, and the "
        "numbers of examples and of distinct states of the group.\n\n"
    )
    columns = (
        "arm",
        "world",
        "init",
        "number",
        "mean",
        "interval",
        "clusters",
        "examples",
        "states",
    )
    return text + "\n".join(table(columns, rows)) + "\n"


def numbers_of(arm: Arm) -> list[tuple[str, xr.Dataset, str]]:
    """Return what `runs.md` shows of an arm: the name, the results at the end and the output."""
    found = []

    def end(node: str) -> xr.Dataset | None:
        return at_stage(arm, node, "end") if node in arm.parts else None

    if (part := end("head_scores")) is not None:
        at = part.isel(group=-1)
        for target in ("induction", "previous token"):
            of = at.sel(target=target)
            best = of["attention"].stack(cell=("block", "head"))
            picked = of.stack(cell=("block", "head")).isel(cell=best.argmax("cell"))
            found += [(f"highest attention, {target}", picked, "attention")]
    if (part := end("fact_neurons")) is not None:
        at = (
            part.isel(group=0).sel(count=64)
            if 64 in part["count"]
            else part.isel(group=0, count=-1)
        )
        found += [("overlap of 64 neurons", at, "overlap_by_count")]
        found += [("overlap of 64 neurons, null", at, "null_overlap_by_count")]
    if (part := end("attribution")) is not None:
        at = part.isel(group=0).sel(ranked="effect", kind="parts")
        for estimate in ESTIMATES:
            found.append((f"rank correlation, {estimate}", at.sel(estimator=estimate), "agreement"))
    if (part := end("enrichment")) is not None:
        at = part.isel(group=0).sel(off="MLPs", n_off=0, layer=1)
        found += [
            (f"tails at S[1, e1], {whose}", at.sel(whose=whose), "attributes")
            for whose in part["whose"].values
        ]
    if (part := end("composition_progress")) is not None and "test_ii" in part["group"]:
        at = part.sel(group="test_ii")
        found += [
            (f"accuracy on test_ii, {state}", at.sel(state=state), "correct")
            for state in part["state"].values
        ]
    return found


def interval_cells(part: xr.Dataset, name: str) -> list[str]:
    """Return the cells of a number of one run: mean, interval, clusters, examples and states."""

    def whole(key: str) -> str:
        values = np.asarray(part[key].values, float).ravel() if key in part else np.array([np.nan])
        return "-" if np.isnan(values).any() else f"{values.max():,.0f}"

    low, high = (float(part[f"{name}_{end}"]) for end in ("low", "high"))
    clusters = whole(f"{name}_n") if f"{name}_n" in part else whole("n_states")
    counts = (whole("n_examples"), whole("n_states"))
    return [number(float(part[name])), f"[{number(low)}, {number(high)}]", clusters, *counts]
