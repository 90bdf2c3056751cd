"""The figures of training draw the right data, for hand-made rows and a small world."""

import itertools
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from configs.composition import get_config
from implicit_reasoning.config import load_config
from implicit_reasoning.figures import split_style
from implicit_reasoning.runs import Run
from implicit_reasoning.training.figures import best_shortcuts, figures
from implicit_reasoning.worlds import build, shortcuts

STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)


@pytest.fixture(scope="module")
def dataset():
    task = get_config().task
    task.update(n_entities=20, n_relations=5, out_degree=5, ood_fraction=0.2, phi=2.0, probes=100)
    return build(task)


class MadeRun(Run):
    """An untrained run without a directory, which has only the attributes that figures read."""

    dataset = metrics = first_correct = files = None

    def __init__(self, dataset, rows, first_correct=None):
        self.dataset, self.metrics, self.first_correct = dataset, rows, first_correct
        path = SimpleNamespace(exists=lambda: first_correct is not None)
        self.files = SimpleNamespace(first_correct=path)


def grokking(dataset, steps=STEPS):
    """Return metrics of a run that memorizes at step 4 and generalizes to all held-out rows at step
    64.

    It answers half of the held-out rows at step 16, and never the cross-distribution rows.
    """
    rows = []
    for step in steps:
        held_out = 0.0 if step < 16 else 0.6 if step < 64 else 1.0
        row = {"step": step, "time": 1e9 + step, "param_norm": 10.0, "learning_rate": 1e-3}
        for split in dataset.splits:
            row[f"accuracy/{split}"] = {"train_ii": float(step >= 4), "test_ii": held_out}.get(
                split, 0.0
            )
            row[f"loss/{split}"] = 3.0
        row["accuracy_low95/test_oi"] = 0.0
        rows.append(row | ({"grad_norm": 1.0, "loss": 2.0} if step else {}))
    return rows


def named(found):
    return {figure.name: figure for figure in found}


def axes_of(figure):
    return figure.drawing.axes


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_no_rows_no_figures(dataset):
    assert figures(MadeRun(dataset, [])) == []


@pytest.mark.parametrize(
    "name",
    [
        *("without_id_triples", "held_out_id_triples", "second_hop_restricted", "three_hops"),
        *("comparison", "complex", "modular_addition", "in_context", "ladder", "cue_conflict"),
        *("successor", "greater_than", "indirect_object"),
    ],
)
def test_every_task_is_drawn_and_no_two_splits_look_alike(name):
    dataset = build(load_config(f"configs/{name}.py:pocket").task)
    probed = [split for split in dataset.splits if len(dataset.probes(split))]
    rows = [{"step": step, "loss": 1.0, **{f"accuracy/{s}": 0.5 for s in probed}} for step in STEPS]
    found = named(figures(MadeRun(dataset, rows)))
    names = " ".join(texts(axes_of(found["accuracy"])[0]))
    assert all(split in names for split in probed)
    assert ("shortcut on" in names) == bool(shortcuts(dataset))
    looks = [tuple(split_style(split).values()) for split in probed]
    assert len(set(looks)) == len(looks)


def test_a_run_of_one_row_is_drawn_as_dots(dataset):
    found = named(figures(MadeRun(dataset, grokking(dataset, steps=(0,)))))
    assert set(found) == {"accuracy", "loss", "optimisation"}
    (ax,) = axes_of(found["accuracy"])
    assert "o" in {line.get_marker() for line in ax.lines}
    # Nothing has been updated, so there is no gradient to draw.
    assert [a.get_title() for a in axes_of(found["optimisation"])] == [
        "parameter norm",
        "learning rate",
    ]


def test_rows_without_evaluations_give_no_split_figures(dataset):
    rows = [{"step": 5, "loss": 1.0, "grad_norm": 1.0, "time": 1e9}]
    assert set(named(figures(MadeRun(dataset, rows)))) == {"optimisation"}


def test_phases_are_drawn_where_they_are(dataset):
    (ax,) = axes_of(named(figures(MadeRun(dataset, grokking(dataset))))["accuracy"])
    assert "memorised, step 4" in texts(ax)
    assert "half in-distribution, step 16" in texts(ax)
    assert "whole in-distribution, step 64" in texts(ax)
    assert not [text for text in texts(ax) if text.startswith("cross")]
    verticals = {line.get_xdata()[0] for line in ax.lines if np.ptp(line.get_xdata()) == 0}
    assert verticals == {4, 16, 64}


def test_no_line_of_a_phase_crosses_the_name_of_another(dataset):
    for steps in (STEPS, tuple(100 * step for step in STEPS)):
        rows = [row | {"step": step} for row, step in zip(grokking(dataset), steps, strict=True)]
        figure = named(figures(MadeRun(dataset, rows)))["accuracy"]
        (ax,) = axes_of(figure)
        figure.drawing.draw_without_rendering()
        names = [text for text in ax.texts if ", step" in text.get_text()]
        boxes = [text.get_window_extent() for text in names]
        for line in ax.lines:
            if np.ptp(line.get_xdata()) == 0:
                (x, _), (_, top) = line.get_transform().transform(line.get_xydata())
                assert not [b for b in boxes if b.x0 < x < b.x1 and b.y0 < top]


def test_every_curve_is_named_at_its_end_and_no_name_covers_another(dataset):
    figure = named(figures(MadeRun(dataset, grokking(dataset))))["accuracy"]
    (ax,) = axes_of(figure)
    figure.drawing.draw_without_rendering()
    ends = [text for text in ax.texts if text.get_text().split()[0] in dataset.splits]
    assert sorted(text.get_text().split()[0] for text in ends) == sorted(dataset.splits)
    boxes = sorted((text.get_window_extent() for text in ends), key=lambda box: box.y0)
    assert all(below.y1 <= above.y0 + 1 for below, above in itertools.pairwise(boxes))


def test_the_best_shortcut_of_every_test_split_is_a_line(dataset):
    (ax,) = axes_of(named(figures(MadeRun(dataset, grokking(dataset))))["accuracy"])
    for split, (accuracy, rule) in best_shortcuts(shortcuts(dataset)).items():
        assert [text for text in texts(ax) if split in text and rule.replace("_", " ") in text]
        assert [line for line in ax.lines if set(line.get_ydata()) == {accuracy}]


def test_best_shortcut_is_the_best():
    rules = {"a": {"x": 0.1, "y": 0.4}, "b": {"x": 0.3, "y": 0.2}}
    assert best_shortcuts(rules) == {"x": (0.3, "b"), "y": (0.4, "a")}


def test_first_correct_counts_rows_ever_answered(dataset):
    rows = np.flatnonzero(dataset.probe)
    step = np.full(len(rows), -1)
    mine = dataset.split[rows] == dataset.splits.index("test_ii")
    step[np.flatnonzero(mine)[: mine.sum() // 2]] = 8  # half of the rows, at step 8
    run = MadeRun(dataset, grokking(dataset), {"row": rows, "step": step})
    (ax,) = axes_of(named(figures(run))["first_correct"])
    curves = {line.get_color(): line for line in ax.lines if line.get_drawstyle() == "steps-post"}
    steps, shares = curves["#0072B2"].get_data()
    np.testing.assert_array_equal(steps, [0, 8, 256])
    half = (mine.sum() // 2) / mine.sum()
    np.testing.assert_allclose(shares, [0, half, half])


def test_the_caption_tells_how_many_rows(dataset):
    caption = named(figures(MadeRun(dataset, grokking(dataset))))["accuracy"].caption
    for split in dataset.splits:
        assert f"{len(dataset.probes(split)):,} {split}" in caption


def test_a_loss_of_exactly_zero_can_be_drawn(dataset):
    """float32 reaches a loss of 0 on memorized rows, which a logarithmic axis cannot show."""
    rows = grokking(dataset)
    for split in dataset.splits:
        rows[-1][f"loss/{split}"] = 0.0
    loss = named(figures(MadeRun(dataset, rows)))["loss"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss.drawing.draw_without_rendering()
