"""The pages of circuits and of attention patterns in a browser."""

import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.analysis.circuits.page import make_page
from implicit_reasoning.model.attention_patterns import attention_patterns
from implicit_reasoning.pages import write_page
from tests.analysis.circuits.test_edge_patching import patched

pytestmark = pytest.mark.browser


def test_the_slider_of_the_page_of_a_circuit_changes_its_table(tmp_path, open_page):
    _, result, _ = patched("idle_copy", "e1")
    nothing = result.copy(data={name: values.data * 0 for name, values in result.items()})
    steps = [
        one.expand_dims("step").assign_coords(step=[step])
        for step, one in ((0, nothing), (7, result))
    ]
    write_page(tmp_path / "circuit.html", make_page(xr.concat(steps, "step")), "circuit")
    page = open_page((tmp_path / "circuit.html").as_uri())
    rows = page.locator("#rows tr")
    assert page.locator("#step-text").inner_text() == "step 7" and rows.count() > 3
    page.locator("#step").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#step-text").inner_text() == "step 0" and rows.count() == 0
    page.keyboard.press("ArrowRight")
    least = page.locator("#least")
    before = rows.count()
    least.fill("0.5")
    assert 0 < rows.count() <= before
    widths = page.locator(".circuit .edge").evaluate_all(
        "all => all.map(e => parseFloat(e.style.strokeWidth))"
    )
    assert sum(width > 0 for width in widths) == rows.count()


def test_attention_patterns_are_drawn(tmp_path, open_page):
    pattern = np.tril(np.ones((2, 3, 3), np.float32)) / np.arange(1, 4)[:, None]
    attention_patterns(["a", "<b>", "c"], pattern).save(tmp_path / "attention.html")
    page = open_page((tmp_path / "attention.html").as_uri())
    assert page.locator("svg.ir-attention").count() == 2
    assert page.locator("svg.ir-attention").first.bounding_box()["width"] > 60
    assert "<b>" in page.locator("svg").first.text_content()
