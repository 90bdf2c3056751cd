"""Text and tables of the report of a run, as the context of the HTML template."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from jaxtyping import Int

from implicit_reasoning.config import to_json
from implicit_reasoning.formatting import plural, short_count
from implicit_reasoning.runs import Run, edited_from
from implicit_reasoning.training import Phases, Splits, run_phases
from implicit_reasoning.training.figures import best_shortcuts
from implicit_reasoning.training.intervals import (
    accuracy_intervals,
    is_evaluated,
    row_with_intervals,
)
from implicit_reasoning.training.unanswered import ACCURACY, MIN_BRIDGES, rows_without_shortcut
from implicit_reasoning.worlds import ROLES, Dataset, World, coverage, distinct_states, shortcuts
from implicit_reasoning.worlds.clusters import clusters_of
from implicit_reasoning.worlds.shortcuts import RULES, scored_probes

NOT_REACHED = "not reached"


def context(run: Run) -> dict[str, Any]:
    """Return the template context of `page.html`, except for figures and pages."""
    rows, dataset = run.metrics, run.dataset
    rules, left = shortcuts(dataset), rows_without_shortcut(dataset)
    parts, floors = Splits.of(dataset), best_shortcuts(rules)
    found = run_phases(run)
    answers = _final_answers(rows)
    return {
        "name": name_of(run),
        "summary": _summary(run, dataset),
        "step": rows[-1]["step"],
        "horizon": run.config.steps,
        "tiles": _tiles(found, parts, rows[-1], floors),
        "warning": _warning(parts, floors),
        "edited": edited_from(run.files),
        "splits": _split_table(dataset, rules, answers, left),
        "unanswered": _unanswered(dataset, parts.held_out, left),
        "answers_step": answers["step"],
        "missing_intervals": row_with_intervals(rows) is None,
        "unit": _unit(dataset),
        "patterns": "r2" in dataset.truth,
        "rules": {name: _first_line(RULES[name].predict) for name in rules},
        "world": _world(dataset),
        "config": _groups(to_json(run.config)),
        "config_json": json.dumps(to_json(run.config), indent=2),
        **_provenance(run),
    }


def name_of(run: Run) -> str:
    """Return the name of a run in reports, i.e. the name of its directory."""
    return run.files.workdir.absolute().name


def _summary(run: Run, dataset: Dataset) -> str:
    spec = run.config.model
    looped = f", looped {spec.n_loops} times" if spec.n_loops > 1 else ""
    text = (
        f"A transformer of {plural(spec.n_layers, 'layer')}{looped} (width {spec.d_model}, "
        f"{plural(spec.n_heads, 'head')}, {short_count(run.n_params)} parameters), trained on "
        f"{plural(dataset.n_train, 'row')} of the task “{run.config.task.name}”"
    )
    if dataset.world is not None:
        world = dataset.world
        text += f". The world has {world.n_facts:,} facts about {world.n_entities:,} entities and "
        text += plural(world.n_relations, "relation")
    trained = Splits.of(dataset).trained
    if trained:
        text += f". Of the training rows, {len(dataset.rows(trained)):,} are in the split {trained}"
    return f"{text}."


def _tiles(
    found: Phases, parts: Splits, last: dict[str, Any], floors: dict[str, tuple[float, str]]
) -> list[dict[str, Any]]:
    """Return a tile for each phase, with the rule of the phase and the last accuracy."""

    def ended(split: str | None) -> list[str]:
        value = last.get(f"accuracy/{split}")
        lines = [] if value is None else [f"accuracy at the last evaluation: {value:.1%}"]
        return lines + (
            [f"accuracy of the best shortcut: {floors[split][0]:.1%}"] if split in floors else []
        )

    steps = {name: _step(step) for name, step in dataclasses.asdict(found).items()}
    lag = NOT_REACHED if found.lag is None else f"{found.lag:,} steps"
    trained, held_out, cross = dataclasses.astuple(parts)
    tiles = []
    if trained:
        memorised = f"accuracy on {trained} ≥ 99%"
        tiles += [_tile("Memorised", steps["memorised"], memorised, *ended(trained))]
    if held_out:
        half, whole = (f"accuracy on {held_out} ≥ {least}%" for least in (50, 95))
        tiles += [
            _tile("Half in-distribution", steps["in_distribution_half"], half),
            _tile("In-distribution", steps["in_distribution"], whole, *ended(held_out)),
            _tile("Lag", lag, "number of steps from memorised to in-distribution"),
        ]
    if cross:
        above = f"the 95% interval of {cross} stays above those of all shortcuts"
        tiles += [_tile("Cross-distribution", steps["cross_distribution"], above, *ended(cross))]
    return tiles


def _tile(name: str, value: str, *lines: str) -> dict[str, Any]:
    return {"name": name, "value": value, "lines": lines}


def _warning(parts: Splits, floors: dict[str, tuple[float, str]]) -> str | None:
    """Return a warning if a shortcut has the accuracy of the phase "in-distribution".

    In that case, a model that reaches the phase need not compose facts.
    """
    accuracy, rule = floors.get(parts.held_out or "", (0.0, ""))
    if accuracy < 0.95:
        return None
    return (
        f"In this world, the shortcut {rule.replace('_', ' ')} answers {accuracy:.1%} of "
        f"{parts.held_out} correctly. A high accuracy on {parts.held_out} therefore does not "
        "show that the model composes facts."
    )


def _final_answers(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the row of metrics for the table of splits.

    This is the last row with intervals. If no row has intervals, it is the last row with an
    evaluation. If no row has an evaluation, it is the last row.
    """
    evaluated = [row for row in rows if is_evaluated(row)]
    return row_with_intervals(rows) or (evaluated or rows)[-1]


def _split_table(
    dataset: Dataset,
    rules: dict[str, dict[str, float]],
    answers: Mapping[str, Any],
    left: Mapping[str, Int[np.ndarray, " row"]],
) -> list[dict[str, Any]]:
    """Return a row for each split.

    Args:
      dataset: the dataset.
      rules: the accuracy of each shortcut by split.
      answers: the row of metrics with the model's accuracies.
      left: by split, the probe rows that no shortcut answers correctly.
    """
    intervals = accuracy_intervals(answers, dataset)
    table = []
    for split, size in dataset.sizes().items():
        rows, probes = dataset.rows(split), dataset.probes(split)
        accuracies = {name: by_split.get(split) for name, by_split in rules.items()}
        known = [accuracy for accuracy in accuracies.values() if accuracy is not None]
        table.append(
            {
                "name": split,
                "rows": size,
                "trained": int((rows < dataset.n_train).sum()),
                "probes": len(probes),
                "interval": intervals.get(split),
                "accuracy": answers.get(f"accuracy/{split}"),
                "shortcuts": accuracies,
                "best": max(known, default=None),
                "unanswered": len(left[split]) if split in left else None,
                "accuracy_unanswered": answers.get(f"{ACCURACY}/{split}"),
            }
        )
    return table


def _unanswered(
    dataset: Dataset, split: str | None, left: Mapping[str, Int[np.ndarray, " row"]]
) -> str | None:
    """Return a sentence on how many held-out chains no shortcut answers; None without chains."""
    if split is None or split not in left:
        return None
    rows, asked = left[split], len(scored_probes(dataset, split))
    useless = f"{split} cannot show whether the model composes facts."
    if not len(rows):
        return f"Shortcuts answer all {asked:,} probe rows of {split} correctly, so {useless}"
    bridges = len(np.unique(clusters_of(dataset, rows)))
    text = (
        f"Of the {asked:,} probe rows of {split}, {len(rows):,} are not answered correctly by any "
        f"shortcut. These rows have {plural(bridges, 'bridge')}. "
    )
    if bridges < MIN_BRIDGES:
        return text + f"An accuracy needs at least {MIN_BRIDGES} bridges, so {useless}"
    return text + "Only the accuracy on these rows can show that the model composes facts."


def _unit(dataset: Dataset) -> str:
    """Return as text what the accuracy intervals are clustered by; see `worlds.clusters`."""
    if "r2" in dataset.truth:
        return "bridge (for single facts, by fact)"
    return "fact" if dataset.hops else "row"


def _world(dataset: Dataset) -> dict[str, str]:
    world: dict[str, str] = {}
    if dataset.world is not None:
        world = {
            "Entities": f"{dataset.world.n_entities:,}",
            "Relations": f"{dataset.world.n_relations:,}",
            "Facts": f"{dataset.world.n_facts:,}{_roles(dataset.world)}",
            "World seed": str(dataset.world.seed),
        }
    if (share := coverage(dataset)) is not None:
        world["Hops"] = str(dataset.hops)
        world["Coverage"] = f"{share:.1%} of the in-distribution chains are training chains"
    states = distinct_states(dataset).items()
    return {
        **world,
        "Distinct states": ", ".join(f"{n:,} at {position}" for position, n in states),
        "Rows": f"{len(dataset):,} rows of at most {dataset.n_ctx} tokens",
        "Vocabulary": plural(dataset.n_vocab, "token"),
        "Fingerprint": dataset.fingerprint(),
    }


def _roles(world: World) -> str:
    """Return the number of facts of each role other than `I` as text."""
    counts = {role: int((world.facts.role == index).sum()) for index, role in enumerate(ROLES)}
    parts = [f"{n:,} of role {role}" for role, n in counts.items() if n and role != "I"]
    return f", of which {', '.join(parts)}" if parts else ""


def _groups(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the configuration by group; fields without a group are in the first group, "run"."""
    groups: dict[str, dict[str, Any]] = {"run": {}}
    for key, value in config.items():
        if isinstance(value, dict):
            groups[key] = value
        else:
            groups["run"][key] = value
    return groups


def _provenance(run: Run) -> dict[str, Any]:
    """Return a table of the starts of the run, the versions, and the total training time."""
    starts = run.starts
    table = [
        {
            "when": datetime.fromtimestamp(start["time"], UTC).strftime("%Y-%m-%d %H:%M"),
            "from": start["step"],
            "to": start["until"],
            "duration": _duration(start["seconds"]) if start["seconds"] else "",
            "device": _device(start),
            "cores": start["cpu_cores"],
            "platform": start["platform"],
        }
        for start in starts
    ]
    versions = {"python": starts[-1]["python"], **starts[-1]["versions"]} if starts else {}
    total = sum(start["seconds"] for start in starts)
    return {"starts": table, "versions": versions, "duration": _duration(total) if total else ""}


def _first_line(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").split("\n")[0]


def _step(step: int | None) -> str:
    return NOT_REACHED if step is None else f"step {step:,}"


def _device(start: dict[str, Any]) -> str:
    count, device = start["device_count"], start["device"]
    name = start.get("cpu") or device if device == "cpu" else device
    return name if count == 1 else f"{count} x {name}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    return f"{minutes} min {seconds % 60:.0f} s" if hours == 0 else f"{hours} h {minutes % 60} min"
