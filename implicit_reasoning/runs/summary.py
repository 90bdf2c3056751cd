"""The HTML that shows a run in a notebook. It needs no parameters and no compilation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from implicit_reasoning.formatting import (
    attempt,
    card,
    fields,
    listed,
    note,
    plural,
    short_count,
    table,
)
from implicit_reasoning.runs.results import result_names
from implicit_reasoning.runtime.writers import ACCURACY, CLUSTERS, HIGH, LOW

if TYPE_CHECKING:
    from implicit_reasoning.runs.run import Run


def run_html(run: Run) -> str:
    """Return the HTML of a run.

    For a missing or damaged file, the HTML shows a message instead of the contents of the file.
    """
    about = {
        "task": attempt(lambda: _task(run)),
        "model": attempt(lambda: _model(run)),
        "steps": attempt(lambda: _steps(run)),
        "results": attempt(lambda: listed(result_names(run.files.analysis), limit=40)),
    }
    return card("Run", run.files.workdir, fields(about), attempt(lambda: _accuracies(run)))


def _task(run: Run) -> str:
    data, parts = run.dataset, [str(run.config.task.name)]
    if data.world is not None:
        parts += [
            f"{data.world.n_entities:,} entities",
            plural(data.world.n_relations, "relation"),
            plural(data.world.n_facts, "fact"),
        ]
    return ", ".join([*parts, plural(data.n_train, "training row")])


def _model(run: Run) -> str:
    spec = run.model.spec
    parts = [
        plural(spec.n_layers, "layer"),
        *([f"looped {spec.n_loops} times"] if spec.n_loops > 1 else []),
        f"d_model {spec.d_model}",
        plural(spec.n_heads, "head"),
        f"d_mlp {spec.d_mlp}",
        f"d_vocab {spec.d_vocab}",
        f"{short_count(run.n_params)} parameters",
    ]
    return ", ".join(parts if spec.block == "gpt2" else [*parts, f"block {spec.block}"])


def _steps(run: Run) -> str:
    steps, rows = run.steps, run.metrics
    trained = f"trained to step {rows[-1]['step']:,}" if rows else "not trained yet"
    saved = f"{steps[0]:,} to {steps[-1]:,}" if steps else "none saved"
    return f"{saved} ({plural(len(steps), 'checkpoint')}); {trained} of {run.config.steps:,}"


def _accuracies(run: Run) -> str:
    """Return a table of the accuracies at the last evaluation, with the examples of each split."""
    evaluated = (row for row in reversed(run.metrics) if _splits(row))
    last = next(evaluated, None)
    if last is None:
        return note("No accuracies yet.")
    known = set(run.dataset.splits)
    lines = [
        (
            split,
            float(last[f"{ACCURACY}/{split}"]),
            _interval(last, split),
            len(run.dataset.probes(split)) if split in known else None,
            last.get(f"{CLUSTERS}/{split}"),
        )
        for split in _splits(last)
    ]
    header = (f"accuracy at step {last['step']:,}", "mean", "95% interval", "n", "clusters")
    return table(header, lines, limit=20)


def _splits(row: dict[str, Any]) -> list[str]:
    prefix = f"{ACCURACY}/"
    return [key.removeprefix(prefix) for key in row if key.startswith(prefix)]


def _interval(row: dict[str, Any], split: str) -> str:
    low, high = row.get(f"{LOW}/{split}"), row.get(f"{HIGH}/{split}")
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
