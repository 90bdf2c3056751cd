"""Figures of behavior draw the measured kinds beside their null, and agreement with shortcuts."""

import numpy as np

from implicit_reasoning.analysis.behaviour import ANSWER_KINDS, Behaviour
from implicit_reasoning.analysis.runner import measure
from tests.analysis.planted_subject import known


def test_kinds_are_drawn_beside_chance_and_agreement_by_rule():
    result = measure(Behaviour(), known("memoriser").subject, progress=False)
    kinds, agreement = Behaviour().figures(result)
    assert [kinds.name, agreement.name] == ["behaviour", "behaviour_shortcuts"]
    groups, rules = result["group"].values, [str(rule) for rule in result["rule"].values]

    for index, group in enumerate(groups):
        share, chance = kinds.drawing.axes[2 * index : 2 * index + 2]
        assert group in share.get_ylabel()
        for ax, name in ((share, "fraction"), (chance, "chance")):
            tops = [area.get_paths()[0].vertices[:, 1].max() for area in ax.collections]
            expected = result[name].isel(step=0).sel(group=group).cumsum("kind")
            np.testing.assert_allclose(tops, expected, atol=1e-5)
            assert len(tops) == len(ANSWER_KINDS)

    for ax, group in zip(agreement.drawing.axes, groups, strict=False):
        lines = {line.get_label(): line.get_ydata()[0] for line in ax.lines}
        for rule in rules:
            at = result.isel(step=0).sel(group=group, rule=rule)
            assert lines[rule] == at["agreement"] and lines[f"accuracy of {rule}"] == at["shortcut"]


def test_who_is_always_right_agrees_as_often_as_the_shortcut_is_right():
    result = measure(Behaviour(), known("composer").subject, progress=False)
    np.testing.assert_allclose(result["agreement"].isel(step=0), result["shortcut"].isel(step=0))
