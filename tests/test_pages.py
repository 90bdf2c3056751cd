"""Pages are complete documents, and data for scripts cannot end the script."""

import json

from implicit_reasoning.figures import Page
from implicit_reasoning.pages import complete_page, json_for_script


def test_a_complete_page_has_its_parts_once_and_escapes_text():
    page = Page("name", "A < B", "lead & text", "<p>body</p>", "p { color: red; }")
    text = complete_page(page, "kind")
    assert text.startswith("<!DOCTYPE html>") and "<title>A &lt; B ·" in text
    for part in ("<h1>A &lt; B</h1>", "lead &amp; text", "<p>body</p>", "p { color: red; }"):
        assert text.count(part) == 1


def test_data_cannot_end_a_script():
    value = {"text": "</script><!-- & é"}
    made = json_for_script(value)
    assert "<" not in made and json.loads(made) == value
