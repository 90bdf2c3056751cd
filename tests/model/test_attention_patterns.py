"""The picture of attention patterns has every weight of the lower triangle, and nothing else."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.model.attention_patterns import attention_patterns


class Elements(HTMLParser):
    """Collects the elements and their text."""

    def __init__(self, html):
        super().__init__()
        self.found, self.open = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append([tag, dict(attrs), ""])

    def handle_data(self, data):
        if self.found:
            self.found[-1][2] += data

    def texts(self, tag):
        return [text for name, _, text in self.found if name == tag]


def patterns(n, heads=2):
    weights = np.tril(np.random.default_rng(0).random((heads, n, n)) + 0.1)
    return weights / weights.sum(-1, keepdims=True)


def test_cells_have_the_weights_and_labels():
    labels, attention = ["a", "<b>", "c & d"], patterns(3, heads=4).reshape(2, 2, 3, 3)
    page = Elements(attention_patterns(labels, attention).html())
    expected = [
        f"{labels[q]} (position {q}) attends to {labels[k]} (position {k}): {head[q, k]:.3f}"
        for head in attention.reshape(-1, 3, 3)
        for q in range(3)
        for k in range(q + 1)
    ]
    assert page.texts("title") == expected
    shades = [float(about["fill-opacity"]) for tag, about, _ in page.found if tag == "rect"]
    weights = [
        head[q, k] for head in attention.reshape(-1, 3, 3) for q in range(3) for k in range(q + 1)
    ]
    np.testing.assert_allclose(shades, weights, atol=6e-4)
    assert page.texts("figcaption") == ["L0H0", "L0H1", "L1H0", "L1H1"]
    written = [int(text) for tag, about, text in page.found if about.get("class") == "ir-percent"]
    assert written == [round(100 * weight) for weight in weights if round(100 * weight) >= 5]
    assert page.texts("text").count("<b>") == 2 * 4  # escaped, on both axes of every head


def test_the_file_needs_nothing_else(tmp_path):
    picture = attention_patterns([f"w{i}" for i in range(20)], patterns(20), title="A & <B>")
    picture.save(tmp_path / "picture.html")
    page = (tmp_path / "picture.html").read_text("utf-8")
    assert picture._repr_html_() == picture.html() and picture.html() in page
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    assert "A &amp; &lt;B&gt;" in page and 'ir-percent"' not in page  # small cells have no numbers


def test_patterns_that_do_not_fit_the_tokens_are_refused():
    with pytest.raises(InputError, match=r"shape \(2, 3, 3\); with 2 tokens, it must be \[head, 2"):
        attention_patterns(["a", "b"], patterns(3))
