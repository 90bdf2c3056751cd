r"""Which scores of edges find the circuits of planted models?

    python experiments/planted_circuits.py --out=results/truth

The planted models have circuits that are known by construction: the fixed model of every mechanism,
and `--seeds` models of each mechanism in the random family. For each model and each token of the
prompt (e1, r1, r2), the corrupt prompt of a pair has another token there. The known edges are those
that carry the token on a route to the answer. All other edges whose sender's output differs between
the prompts are the negatives. Edges whose sender's output does not differ cannot have an effect, so
they do not count.

An edge has one score: the largest absolute mean score over positions. The mean is over the pairs
whose clean prompt is answered correctly. The metric is the difference of the logits of the clean
and the corrupt answer. `magnitude` (the size of the change of the sender's output) and `random` are
baselines.

The script writes a table of AUROC and average precision by method and mechanism (`circuits.md`),
ROC curves over the edges of all models (`circuits.png`), and all scores (`raw/circuits.json`).

Rule, written before the run: the exact scores find the circuits of single-route models if the
AUROC is at least .99 for every token of every such model. For models with two routes, no threshold
is set: a second route replaces the patched edge in part.

Smoke test:
    python experiments/planted_circuits.py --models=composer --tokens=e1 --methods=exact,random \
        --pairs=8 --seeds=0 --out=runs/smoke/planted_circuits
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from implicit_reasoning.analysis.circuits import scores
from implicit_reasoning.analysis.circuits.curves import auroc, average_precision
from implicit_reasoning.analysis.patching.outcomes import answers_with, logit_difference
from implicit_reasoning.analysis.patching.pairs import exchange_pairs
from implicit_reasoning.analysis.truth.known import SEEDS, KnownModel, planted_models
from implicit_reasoning.config import Flag, parse_flags
from implicit_reasoning.errors import InputError
from implicit_reasoning.figures import BLACK, GREY, SERIES_COLORS, new_drawing
from implicit_reasoning.files import write_json
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.graph import EdgeGraph
from implicit_reasoning.runtime.machine import provenance
from implicit_reasoning.runtime.progress import ProgressBar

METHODS = ("exact", *scores.ESTIMATES, "magnitude", "random")
BASELINES = ("magnitude", "random")
SINGLE_ROUTE = 0.99

FLAGS = {
    "models": Flag(many=True, default=()),
    "seeds": len(SEEDS),
    "tokens": Flag(many=True, default=("e1", "r1", "r2")),
    "methods": Flag(many=True, default=METHODS),
    "pairs": 48,
    "out": Flag(kind=Path, default=Path("results/truth")),
}


def main(argv: list[str]) -> None:
    """Score the edges of all planted models, and write the tables and the figure."""
    flags, overrides = parse_flags(argv, FLAGS)
    if overrides:
        raise InputError("this script takes no overrides, because planted models are not trained")
    seeds = SEEDS[: flags["seeds"]]
    known = [model for seed in (None, *seeds) for model in planted_models(seed)]
    known = [model for model in known if not flags["models"] or kind_of(model) in flags["models"]]
    rows = []
    with ProgressBar(len(known), title="planted models", unit="model") as progress:
        for model in known:
            for token in flags["tokens"]:
                rows += score(model, token, flags["pairs"], flags["methods"])
            progress.advance()
    write(rows, flags["out"])


def kind_of(known: KnownModel) -> str:
    """Return the mechanism of a planted model, without its seed."""
    return known.name.partition(" ")[0]


def score(
    known: KnownModel, token: str, n_pairs: int, methods: Sequence[str] = METHODS
) -> list[dict[str, Any]]:
    """Score the edges of one model for one exchanged token, by some methods.

    Returns:
      One row for each method. There is no row if fewer than 4 clean prompts are answered correctly,
      or if no edge carries the token to the answer.
    """
    model, params = known.subject.model, known.subject.params(known.subject.steps[-1:])
    params = jax.tree.map(lambda x: x[0], params)
    pairs = exchange_pairs(token, known.subject.dataset)
    chosen = np.flatnonzero(np.asarray(pairs.group) == 0)[:n_pairs]
    prompts = [np.asarray(getattr(pairs, name))[chosen] for name in ("clean", "corrupt")]
    answers = [np.asarray(getattr(pairs, name))[chosen] for name in ("answer", "corrupt_answer")]
    arrays = map(jnp.asarray, (*prompts, *answers))
    found = jax.device_get(_scored(model, tuple(methods), params, *arrays))
    graph = EdgeGraph(model.spec, prompts[0].shape[1])
    carried = {edge for route in known.routes for edge, of in route.carried if of == token}
    differs = found["differs"].any(1)
    truth = np.array([edge in carried for edge in graph.edges])[differs]
    if found["correct"].sum() < 4 or not truth.any():
        return []
    return [
        {
            "model": known.name,
            "mechanism": kind_of(known),
            "routes": len(known.routes),
            "token": token,
            "method": method,
            "pairs": int(found["correct"].sum()),
            "clusters": len(set(np.asarray(pairs.clusters)[chosen][found["correct"]].tolist())),
            "known": int(truth.sum()),
            "edges": int(differs.sum()),
            "auroc": auroc(strength, truth),
            "average_precision": average_precision(strength, truth),
            "scores": strength.tolist(),
            "truth": truth.tolist(),
        }
        for method in methods
        for strength in [np.abs(found[method]).max(1)[differs]]
    ]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scored(
    model: Transformer,
    methods: tuple[str, ...],
    params: Params,
    clean: jax.Array,
    corrupt: jax.Array,
    answer: jax.Array,
    corrupt_answer: jax.Array,
) -> dict[str, jax.Array]:
    """Return the mean scores [edge, pos] over correctly answered pairs, by method."""
    graph = EdgeGraph(model.spec, clean.shape[1])
    runs = scores.two_runs(model, params, clean, corrupt)
    logits = model.forward(params, clean)[0][:, -1]
    correct = answers_with(logits, answer)

    def metric(logits: jax.Array) -> jax.Array:
        return logit_difference(logits, answer, corrupt_answer)

    def mean(values: jax.Array) -> jax.Array:
        return jnp.where(correct, values, 0).sum(-1) / jnp.maximum(correct.sum(), 1)

    arguments = model, params, graph, runs, metric
    size = jnp.linalg.norm(runs.change, axis=-1)[:, :, graph.sender]
    of_sender = jnp.transpose(size, (2, 1, 0)) * graph.alive[..., None]
    of_edges = {"exact": scores.exact, **scores.ESTIMATES}
    return {
        **{name: mean(of_edges[name](*arguments)) for name in methods if name in of_edges},
        "magnitude": mean(of_sender),
        "random": jax.random.uniform(jax.random.key(0), graph.alive.shape) * graph.alive,
        "differs": (of_sender > 1e-6).any(-1),
        "correct": correct,
    }


def write(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Write the table, the figure and the raw scores."""
    raw = {"rows": list(rows), "made_with": provenance()}
    write_json(out / "raw" / "circuits.json", raw, indent=None)
    (out / "circuits.md").write_text(table(rows), encoding="utf-8")
    drawing, axes = new_drawing(4.9 + 2.2, 4.4)
    colors = dict(zip(scores.ESTIMATES, SERIES_COLORS, strict=False)) | {"exact": BLACK}
    methods = tuple(dict.fromkeys(row["method"] for row in rows))
    for method in methods:
        of = [row for row in rows if row["method"] == method and row["routes"] == 1]
        if of:
            style = "--" if method in BASELINES else "-"
            width = 1.0 if method == "random" else 1.7
            axes[0].plot(
                *roc_curve(of), style, color=colors.get(method, GREY), lw=width, label=method
            )
    axes[0].set_xlabel("share of other edges above the threshold")
    axes[0].set_ylabel("share of circuit edges above the threshold")
    drawing.legend(loc="outside right upper", frameon=False, fontsize=8)
    drawing.savefig(out / "circuits.png", dpi=144)


def roc_curve(rows: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the false and true positive rates over the edges of several models.

    The scores of a model are replaced by their ranks divided by the number of edges, because
    different models have different scales.
    """
    ranks, truth = [], np.concatenate([row["truth"] for row in rows])
    for row in rows:
        values = np.asarray(row["scores"])
        ranks.append((values[:, None] > values[None]).mean(1))
    level = np.concatenate(ranks)
    order = np.argsort(-level, kind="stable")
    last = np.append(np.diff(level[order]) != 0, True)
    hits = truth[order].cumsum()[last] / truth.sum()
    alarms = (~truth[order]).cumsum()[last] / (~truth).sum()
    return np.append(0, alarms), np.append(0, hits)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the tables of both numbers, and the answer by the rule, as Markdown."""
    text, methods = ["# Edges of planted models\n"], tuple(dict.fromkeys(r["method"] for r in rows))
    exact = [row for row in rows if row["method"] == "exact" and row["routes"] == 1]
    worst = min(exact, key=lambda row: row["auroc"], default=None)
    if worst:
        below = sum(row["auroc"] < SINGLE_ROUTE for row in exact)
        text.append(
            f"Exact scores of single-route models: {len(exact) - below} of {len(exact)} cases "
            f"(model and token) have an AUROC of at least {SINGLE_ROUTE}. The lowest is "
            f"{worst['auroc']:.3f} ({worst['model']}, {worst['token']}).\n"
        )
    for name, title in (("auroc", "AUROC"), ("average_precision", "Average precision")):
        text.append(f"## {title}\n")
        text.append("Mean and lowest value over the models and tokens of a mechanism.\n")
        text.append("| mechanism | cases | edges | known | " + " | ".join(methods) + " |")
        text.append("|---|---|---|---|" + "---|" * len(methods))
        for mechanism in dict.fromkeys(row["mechanism"] for row in rows):
            of = [row for row in rows if row["mechanism"] == mechanism]
            first = [row for row in of if row["method"] == methods[0]]
            cells = []
            for method in methods:
                values = [row[name] for row in of if row["method"] == method]
                cells.append(f"{np.mean(values):.2f} ({np.min(values):.2f})")
            edges, knowns = (
                f"{min(row[key] for row in first)} - {max(row[key] for row in first)}"
                for key in ("edges", "known")
            )
            routes = "" if first[0]["routes"] == 1 else f" ({first[0]['routes']} routes)"
            text.append(
                f"| {mechanism}{routes} | {len(first)} | {edges} | {knowns} | "
                + " | ".join(cells)
                + " |"
            )
        text.append("")
    return "\n".join(text)


if __name__ == "__main__":
    main(sys.argv[1:])
