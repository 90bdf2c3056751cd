"""The table of a set: which dictionaries and which numbers are in it."""

import numpy as np
import xarray as xr

from implicit_reasoning.dictionaries.results import make_rows


def test_the_table_has_the_last_checkpoint_and_all_baselines():
    step = np.array([0, 0, 10, 10, 10, 10])
    site = np.array(["a", "b", "a", "b", "a", "b"])
    coords = {
        "step": ("member", step),
        "site": ("member", site),
        "sparsity": ("member", np.full(6, 2.0)),
        "seed": ("member", np.zeros(6, int)),
        "what": ("member", ["trained"] * 4 + ["k-means"] * 2),
        "split": ["train_ii", "test_ii"],
        "concept": ["e1@r1", "e2@r1"],
        "rule": ["truth", "null"],
        "change": ["swap"],
        "outcome": ["moved"],
    }
    f1 = np.arange(6 * 2 * 3.0).reshape(6, 2, 3)
    f1[:, 1, 2] = np.nan
    split, use = np.arange(12.0).reshape(6, 2), np.arange(12.0).reshape(6, 2, 1, 1)
    dims = ("member", "rule", "change", "outcome")
    variables = {
        "l0": ("member", np.arange(6.0)),
        "ce_loss_score_mean": (("member", "split"), split),
        "f1": (("member", "concept", "value"), f1),
        "f1_null": (("member", "concept", "draw"), f1[..., :2]),
        "use": (dims, use),
        "use_low": (dims, use - 1),
        "use_high": (dims, use + 1),
    }
    rows = make_rows(xr.Dataset(variables, coords))
    assert [(row.site, row.what) for row in rows] == [
        (one, what) for one in "ab" for what in ("trained", "untrained model", "k-means")
    ]
    member = 2
    first = rows[0]
    assert (first.l0, first.recovered, first.swap, first.low) == (member, 4, 4, 3)
    assert first.f1 == f1[member, 1, :2].mean() and first.null == f1[member, 1, 1]
    assert np.isnan(first.kl) and np.isnan(first.explained)  # these values do not exist
