"""Tables of `circuit_formation.py`, made from its saved arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from circuit_formation_rules import (
    ACDC_AGREES,
    EXACT,
    acdc_overlap,
    agreement,
    all_edges,
    answered,
    checked,
    checks,
    cold_facts,
    fine_tuning,
    formation,
    memorizing,
    route,
    same_circuit,
    sizes,
    sparse,
)
from components_rules import STAGES, at_stage, enough, over, reliability
from components_tables import steps_of, table, write_answers
from reasoning_or_shortcut_arms import FEWEST, MOST, Arm, number, over_worlds

from implicit_reasoning.analysis.circuits.scores import ESTIMATES

CLAIMS = ("composition", "ladder", "ladder_early", "scrambled")
"""Arms that support claims; the others are shown as curves."""

LADDERS = ("ladder", "ladder_early")
NULL = "random, grown"
TAUGHT, BEFORE = "ladder_taught", "ladder"


def write_tables(out: Path, arms: Mapping[str, Arm]) -> None:
    """Write `answers.md`, with one section for each question, and `runs.md`, with every run."""
    text = [
        "The answers by the decision rules of `experiments/circuit_formation.py`. A number is a "
        "mean over runs. In square brackets is its 95% t interval over worlds, and in round "
        "brackets are the lowest and the highest run and the number of runs. With one run, the "
        "number 1 is in round brackets. Beside an answer are the number of runs in which the rule "
        "holds and the number of all runs. `runs.md` has the numbers of every run, with intervals "
        "and numbers of clusters."
    ]
    sections: Mapping[str, Callable[[Mapping[str, Arm]], list[str]]] = {
        "1. Is the circuit sparse at the end?": sparsity,
        "2. When does the route through r1 form?": forming,
        "3. Does the memorizing circuit shrink, or is it bypassed?": routes,
        "4. Are cold facts answered by the circuit of other chains?": cold,
        "5. Which estimates agree with exact scores?": estimates,
        "6. Does further training enhance the circuit that is there?": taught,
        "7. Is the circuit complete, minimal and stable at the end?": checking,
    }
    write_answers(out, text, sections, arms)
    (out / "runs.md").write_text(runs_table(arms), encoding="utf-8")


def with_node(arms: Mapping[str, Arm], node: str) -> dict[str, Arm]:
    """Return the arms with results of an instrument; those that support claims come first."""
    names = [*(name for name in CLAIMS if name in arms), *(n for n in arms if n not in CLAIMS)]
    return {name: arms[name] for name in names if node in arms[name].parts}


def answer(name: str, said: object) -> str:
    """Return an answer; arms that support no claim have none."""
    return str(said) if name in CLAIMS else "(curves)"


def sparsity(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 1."""
    rows = [
        [
            name,
            f"{all_edges(arm):.0f}",
            *(steps_of(sizes(arm, "end", order)) for order in (EXACT, "EAP, grown", NULL)),
            answer(name, sparse(arm)),
        ]
        for name, arm in with_node(arms, "discovery").items()
    ]
    columns = ("arm", "edges that can matter", "size, exact scores", "size, EAP", "size, random")
    return table([*columns, "sparse"], rows)


def forming(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 2."""
    rows = []
    for name, arm in with_node(arms, "routes").items():
        found = formation(arm)
        rows.append(
            [
                name,
                *(
                    over_worlds(
                        route(arm, "through", "end", cut=cut)["faithfulness"].values, arm.worlds
                    )
                    for cut in ("own", "random edges")
                ),
                steps_of(found.half_times),
                steps_of(found.answers),
                *(answer(name, said) for said in (found.there, found.with_answers, found.suddenly)),
            ]
        )
    return table(
        [
            *("arm", "through r1 at the end", "null: random edges"),
            *("half-time of the route (steps)", "half-time of test_ii (steps)"),
            *("through r1", "with the answers", "suddenly"),
        ],
        rows,
    )


def routes(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 3."""
    rows = []
    for name, arm in with_node(arms, "routes").items():
        found = memorizing(arm)
        rows.append(
            [
                name,
                over_worlds(answered(arm, "memorised"), arm.worlds),
                *(
                    over_worlds(route(arm, "around", stage)["faithfulness"].values, arm.worlds)
                    for stage in ("memorised", "end")
                ),
                answer(name, found.bypassed),
                answer(name, found.remains),
                over_worlds(found.log_ratio, arm.worlds),
                answer(name, found.size),
            ]
        )
    return table(
        [
            *("arm", "accuracy on test_ii at `memorised`", "around r1 at `memorised`"),
            *("around r1 at the end", "bypassed", "remains"),
            *("log of size at the end / at `memorised`", "size"),
        ],
        rows,
    )


def cold(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 4."""
    rows = []
    for name in LADDERS:
        if name in arms:
            arm = arms[name]
            usual, of_cold = cold_facts(arm)
            shown = (over_worlds(values, arm.worlds) for values in (usual, of_cold))
            rows.append([name, *shown, same_circuit(of_cold - usual, arm)])
    return table(["arm", "faithfulness on test_ii", "on test_c0", "circuit of test_c0"], rows)


def estimates(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 5."""
    rows: list[Sequence[object]] = []
    for name, arm in with_node(arms, "estimates").items():
        for method in (*ESTIMATES, "magnitude"):
            shown = []
            for stage in STAGES[1:]:
                values = agreement(arm, stage, method)
                said = reliability(values, arm) if name in CLAIMS and enough(arm) else ""
                judged = f": {said}" if said and method != "magnitude" else ""
                shown.append(over_worlds(values, arm.worlds) + judged)
            label = f"{method} (null)" if method == "magnitude" else method
            rows.append([name, label, *shown])
        overlaps = []
        for stage in STAGES[1:]:
            values = acdc_overlap(arm, stage)
            said = "agrees" if over(values, arm).low > ACDC_AGREES else "open"
            known_runs = np.isfinite(values).sum() >= MOST + FEWEST
            judged = f": {said}" if name in CLAIMS and known_runs else ""
            overlaps.append(over_worlds(values, arm.worlds) + judged)
        rows.append([name, "ACDC (Jaccard index)", *overlaps])
    return table(["arm", "estimate", *STAGES[1:]], rows)


def taught(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 6."""
    if TAUGHT not in arms or BEFORE not in arms:
        return table([], [])
    arm = arms[TAUGHT]
    index, reference, said = fine_tuning(arm, arms[BEFORE])
    row = [TAUGHT, *(over_worlds(values, arm.worlds) for values in (index, reference)), said]
    return table(["arm", "Jaccard index", "reference", "the circuit"], [row])


def checking(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 7: circuits of equal size by exact scores, EAP and the nulls."""
    rows = []
    for name, arm in with_node(arms, "checks").items():
        said = checks(arm)
        size = steps_of(checked(arm, "size"))
        for order in ("exact", "EAP", "magnitude", "random"):
            numbers = ("incompleteness", "needed", "stability")
            shown = [over_worlds(checked(arm, of, order), arm.worlds) for of in numbers]
            rules = [answer(name, one) if order == "exact" else "" for one in said]
            rows.append([name, order, size, *shown, *rules])
    return table(
        [
            *("arm", "circuit by", "size", "incompleteness", "edges needed", "stability"),
            *("complete", "minimal", "stable"),
        ],
        rows,
    )


def runs_table(arms: Mapping[str, Arm]) -> str:
    """Return a table with the numbers of every run at the end."""
    rows = []
    for name, arm in with_node(arms, "discovery").items():
        columns = run_columns(arm)
        for place, (world, init) in enumerate(zip(arm.worlds, arm.inits, strict=True)):
            rows.append([name, int(world), int(init), *(of[place] for of in columns.values())])
    names = list(run_columns(next(iter(arms.values())))) if rows else []
    text = [
        "The numbers of every run at the end. Square brackets have 95% intervals clustered by "
        "bridge (or answer), and `-` is missing, also for means over fewer than 20 clusters. "
        "`kept` is the share of right answers that the circuit keeps. The correlations are those "
        "of question 5. `clusters` are those of the pairs that measure the circuit."
    ]
    return "\n".join([*text, "", *table(["arm", "world", "init", *names], rows)]) + "\n"


def run_columns(arm: Arm) -> dict[str, list[str]]:
    """Return columns of the table of runs: a text for every run, by title."""
    size, runs = sizes(arm, "end"), range(len(arm.worlds))
    part = at_stage(arm, "discovery", "end").isel(group=0, drop=True).sel(order=EXACT)
    kept = [part.isel(run=n).sel(size=size[n]) if size[n] > 0 else None for n in runs]
    missing = np.full(len(arm.worlds), np.nan)
    found = formation(arm) if "routes" in arm.parts else None
    routes_of = {
        "through r1": ("through", "own"),
        "null of through": ("through", "random edges"),
        "around r1": ("around", "own"),
    }
    times = {
        "half-time of the route": found.half_times if found else missing,
        "half-time of test_ii": found.answers if found else missing,
    }
    checks_of = ("incompleteness", "needed", "stability")
    return {
        "size": [whole(value) for value in size],
        "kept": ["-" if one is None else number(float(one["kept"])) for one in kept],
        **{
            title: [interval_of(arm, n, way, cut) if found else "-" for n in runs]
            for title, (way, cut) in routes_of.items()
        },
        **{title: [whole(value) for value in values] for title, values in times.items()},
        **{
            f"correlation of {one}": [number(value) for value in agreement(arm, "end", one)]
            for one in (*ESTIMATES, "magnitude")
        },
        **{one: [number(value) for value in checked(arm, one)] for one in checks_of},
        "clusters": [whole(float(part["faithfulness_n"].isel(run=n).max())) for n in runs],
    }


def interval_of(arm: Arm, run: int, way: str, cut: str) -> str:
    """Return the faithfulness of a route of a run at the end, with its interval."""
    at = route(arm, way, "end", cut=cut).isel(run=run)
    mean, low, high = (number(float(at[f"faithfulness{end}"])) for end in ("", "_low", "_high"))
    return mean if mean == "-" else f"{mean} [{low}, {high}]"


def whole(value: float) -> str:
    """Format a whole number; `-` for nan."""
    return "-" if np.isnan(value) else f"{value:,.0f}"
