"""The study of edges of planted models counts edges right, and scores a planted model."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.experiments.scripts import load, run


@pytest.fixture(scope="module")
def study():
    return load("planted_circuits")


def row(values, truth, method="exact", **changes):
    known = np.array(truth, bool)
    of = {"model": "m", "mechanism": "m", "routes": 1, "token": "e1", "known": 1, "edges": 4}
    return {**of, "method": method, "scores": values, "truth": known.tolist(), **changes}


def test_curves_join_models_by_rank(study):
    """The second model has scores a hundred times as large, and the same order of edges."""
    rows = [row([4, 3, 2, 1], [1, 0, 1, 0]), row([400, 300, 200, 100], [1, 0, 1, 0])]
    alarms, hits = study.roc_curve(rows)
    np.testing.assert_allclose(alarms, [0, 0, 0.5, 0.5, 1])
    np.testing.assert_allclose(hits, [0, 0.5, 0.5, 1, 1])


def test_the_rule_counts_cases_of_single_routes(study):
    numbers = [(0.995, 1), (0.9, 1), (0.5, 2)]
    rows = [
        row([1], [1], auroc=auroc, average_precision=auroc, routes=routes, mechanism=str(routes))
        for auroc, routes in numbers
    ]
    text = study.table(rows)
    assert "1 of 2 cases (model and token) have an AUROC of at least 0.99" in text
    assert "The lowest is 0.900" in text
    assert "| 1 | 2 | 4 - 4 | 1 - 1 | 0.95 (0.90) |" in text and "| 2 (2 routes) | 1 |" in text


@pytest.mark.slow
def test_exact_scores_find_a_planted_circuit(tmp_path):
    flags = run(Path("experiments/planted_circuits.py"), tmp_path)
    rows = json.loads((Path(flags["out"]) / "raw" / "circuits.json").read_text())["rows"]
    found = {one["method"]: one["auroc"] for one in rows}
    assert found["exact"] == 1 and abs(found["random"] - 0.5) < 0.3
    assert (Path(flags["out"]) / "circuits.png").stat().st_size > 1_000
