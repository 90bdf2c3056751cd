"""What the decision rules of the study of attribution graphs say."""

import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.analysis.patching.outcomes import OUTCOMES
from implicit_reasoning.analysis.patching.query_pairs import BRIDGE
from implicit_reasoning.dictionaries.graphs.measure import BRIDGES
from tests.experiments.scripts import load

tables = load("attribution_graphs_tables")
results = load("reasoning_or_shortcut_arms")
STAGES = list(tables.STAGES)
NAN = float("nan")


def around(mean, width=0.05):
    return tables.Interval(mean, mean - width, mean + width)


@pytest.mark.parametrize(
    ("own", "nulls", "has", "said"),
    [
        (0.7, (0.1, 0.3), 0.9, "passes"),
        (0.7, (0.1, 0.65), 0.9, "open"),  # random active features carry as much
        (0.1, (0.0, 0.0), 0.9, "avoids"),
        (0.1, (0.0, 0.0), 0.3, "no features"),  # there is nothing that the graph could avoid
        (0.35, (0.0, 0.0), 0.9, "open"),
        (NAN, (0.0, 0.0), 0.9, "-"),
    ],
)
def test_a_graph_passes_through_the_bridge_or_avoids_it(own, nulls, has, said):
    assert tables.passes(around(own), [around(null) for null in nulls], around(has)) == said


@pytest.mark.parametrize(
    ("holds", "said"),
    [
        ([True] * 3, "yes"),
        ([False] * 3, "no"),
        ([True, False, True], "open"),
        ([True, True, None], "-"),
    ],
)
def test_a_rule_of_three_seeds_needs_all_of_them(holds, said):
    assert tables.over_seeds(holds) == said


def followed(own, null, clusters=30):
    """Return results of patching with these shares of followed answers at one place."""
    shares = np.zeros((4, 2, 2, 2, 3, 1))  # stage, expected, outcome, layer, pos, group
    shares[:, 0, 1, 1, 1], shares[:, 1, 1, 1, 1] = own, null
    dims = ("stage", "expected", "outcome", "layer", "pos", "group")
    ends = {"": 0, "_low": -0.05, "_high": 0.05}
    arrays = {f"fraction{end}": (dims, shares + shift) for end, shift in ends.items()}
    arrays["fraction_n"] = dims, np.full(shares.shape, float(clusters))
    coords = {
        "stage": STAGES,
        "expected": ["true", "shuffled"],
        "outcome": list(OUTCOMES[:2]),
        "group": [BRIDGE],
    }
    return {"followed": xr.Dataset(arrays, coords)}


@pytest.mark.parametrize(
    ("own", "null", "clusters", "said"),
    [
        (0.9, 0.1, 30, "uses"),
        (0.9, 0.9, 30, "does not"),  # another answer follows as often
        (0.5, 0.1, 30, "does not"),
        (0.9, 0.1, 19, "-"),
    ],
)
def test_patching_says_whether_the_model_uses_the_bridge(own, null, clusters, said):
    interval, found = tables.used(followed(own, null, clusters), "end")
    assert found == said
    if said != "-":
        assert interval.mean == pytest.approx(own)


def test_stages_stand_in_the_order_of_their_steps():
    """Half of the held-out chains can be answered before the training chains are memorized."""
    reached = xr.Dataset({"reached": ("stage", [0.0, 2_000.0, 1_500.0, NAN])}, {"stage": STAGES})
    found = tables.ordered({"stages": reached})
    assert found == [("untrained", "0"), ("half", "1,500"), ("memorised", "2,000"), ("end", "-")]


def test_a_missing_seed_gives_no_answer_about_one_hop():
    """One seed is missing, so the rule cannot hold for all of them."""
    dims = ("run", "seed", "split", "bridge")
    arms = {}
    for kind, mean in (("transcoder", 0.8), ("skip_transcoder", 0.8), ("cross_layer", 0.1)):
        share = np.full((1, 3, 1, 3), mean)
        n = np.full(share.shape, 30.0)
        n[0, 2] = 19 if kind == "cross_layer" else 30
        arrays = {"bridge_share": (dims, share), "bridge_share_n": (dims, n)}
        for end, shift in (("_low", -0.05), ("_high", 0.05)):
            arrays[f"bridge_share{end}"] = dims, share + shift
        coords = {"seed": range(3), "split": [tables.SPLIT], "bridge": list(BRIDGES)}
        arms[f"graphs_{kind}_seeds"] = xr.Dataset(arrays, coords)
    arms["followed"] = followed(0.9, 0.1)["followed"].expand_dims("run")
    arm = results.Arm(arms, np.array([0]), np.array([0]))
    assert tables.one_hop({"composition": arm})[-1].endswith(
        "uses | 0.80 [0.75, 0.85]; "
        "0.80 [0.75, 0.85]; 0.80 [0.75, 0.85] | 0.80 [0.75, 0.85]; 0.80 [0.75, 0.85]; "
        "0.80 [0.75, 0.85] | 0.10 [0.05, 0.15]; 0.10 [0.05, 0.15]; - | - |"
    )
    arms["graphs_cross_layer_seeds"]["bridge_share_n"][:] = 30
    assert tables.one_hop({"composition": arm})[-1].endswith("| yes |")
