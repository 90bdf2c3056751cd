"""The site has complete generated tables, reports faults, and follows links."""

import re
from pathlib import Path

import figures
import offline
import pytest
import python_api
import reference
import repository
import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort, PluginError

from implicit_reasoning.analysis import INSTRUMENTS
from implicit_reasoning.commands import VERBS
from implicit_reasoning.dictionaries import INSTRUMENTS as DICTIONARY_INSTRUMENTS
from implicit_reasoning.dictionaries.fields import FIELDS as DICTIONARY_FIELDS
from implicit_reasoning.runs.fields import FIELDS
from implicit_reasoning.worlds.tasks.fields import FIELDS as TASK_FIELDS

EXPORTS = """\
from implicit_reasoning.a import B

__all__ = ["B"]
"""
BARE = '''\
"""A module."""

B = 1
HIDDEN = 2


def f():
    return 1


def _g():
    return 2


class C:
    """A class."""

    def h(self):
        return 3
'''


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_has_a_section_with_its_flags(verb):
    section = reference.commands().split(f"## {verb}\n")[1].split("\n## ")[0]
    for flag in VERBS[verb].flags:
        assert f"| `--{flag}=" in section


def test_every_field_is_in_a_table():
    run, tasks = reference.run_fields(), reference.task_fields()
    assert all(f"| `{name}` |" in run for name in FIELDS if not name.startswith("task."))
    for task, fields in TASK_FIELDS.items():
        section = tasks.split(f"### {task}\n")[1].split("\n### ")[0]
        assert all(f"| `task.{name}` |" in section for name in fields)
    assert all(f"| `{name}` |" in reference.dictionary_fields() for name in DICTIONARY_FIELDS)


def test_every_instrument_and_configuration_has_a_section():
    assert all(f"\n## {name}\n" in reference.instruments() for name in INSTRUMENTS)
    text = reference.dictionary_instruments()
    assert all(f"\n### {name}\n" in text for name in DICTIONARY_INSTRUMENTS)
    text = "\n" + reference.configurations()
    assert all(f"\n## {path.stem}\n" in text for path in Path("configs").glob("*.py"))


def test_every_mark_in_a_page_is_one_that_is_generated():
    marks = {
        mark
        for path in Path("docs").rglob("*.md")
        for mark in reference.MARK.findall(path.read_text())
    }
    assert marks == set(reference.GENERATORS)


def test_every_public_name_has_a_docstring():
    names, bare = python_api.documented(python_api.load())
    assert not bare
    assert "implicit_reasoning.runs.run.Run.params" in names
    assert "implicit_reasoning.analysis.api.INSTRUMENTS" in names


def test_a_public_name_without_docstring_is_named(tmp_path):
    package = tmp_path / "implicit_reasoning"
    package.mkdir()
    (package / "__init__.py").write_text(EXPORTS)
    (package / "a.py").write_text(BARE)
    bare = python_api.documented(python_api.load(tmp_path))[1]
    assert [path.removeprefix("implicit_reasoning.") for path in bare] == ["a.B", "a.f", "a.C.h"]


def test_links_lead_to_where_files_are_on_the_site():
    there = repository.places()
    assert there["results/pocket/accuracy.png"] == "studies/pocket/accuracy.png"

    def moved(text, source):
        return repository.with_links(text, source, there)

    assert moved("[a](../launchers/README.md#b)", "results/desk/README.md") == (
        "[a](../launchers/index.md#b)"
    )
    assert moved("[a](../../results/pocket)", "docs/how-to/x.md") == (
        "[a](../studies/pocket/index.md)"
    )
    assert moved("[a](docs/how-to/tpu.md)", "CONTRIBUTING.md") == "[a](../how-to/tpu.md)"
    assert moved("[a](https://x.y/z)", "CONTRIBUTING.md") == "[a](https://x.y/z)"
    assert moved("[a](tpu.md)", "docs/how-to/x.md") == "[a](tpu.md)"


def test_tables_of_a_study_have_its_title_and_are_linked_from_its_page():
    there = repository.places()
    text = repository.titled("| a |\n", "results/worlds/desk/table.md")
    assert "# Worlds and controls, desk: table\n" in text and text.endswith("\n\n| a |\n")
    assert "[Worlds and controls](../README.md)" in text
    assert repository.titled("# T\n", "results/worlds/README.md") == "# T\n"
    links = repository.tables_of("results/worlds/README.md", there)
    assert "- [desk/table.md](desk/table.md)\n" in links
    assert not repository.tables_of("results/launchers/README.md", there)


@pytest.mark.parametrize(
    ("text", "loads"),
    [
        ('<script src="https://cdn.net/a.js"></script>', ["https://cdn.net/a.js"]),
        ("<link rel=stylesheet href=//cdn.net/a.css>", ["//cdn.net/a.css"]),
        ("a { background: url(https://cdn.net/a.png) }", ["https://cdn.net/a.png"]),
        ('<pre class="mermaid"><code>', ['<pre class="mermaid"']),
        ('<a href="https://arxiv.org">paper</a><script src="../a.js"></script>', []),
        ('<link rel="canonical" href="https://a.org/x">', []),
    ],
)
def test_what_is_loaded_from_other_hosts_is_noticed(text, loads, tmp_path):
    assert offline.loaded_from_outside(text) == loads
    (tmp_path / "index.html").write_text(text)
    if loads:
        with pytest.raises(PluginError, match="must work offline"):
            offline.on_post_build(type("Config", (), {"site_dir": tmp_path}))


@pytest.mark.parametrize("link", ["[a](missing.md)", "[a](index.md#missing)", "[a](/absolute)"])
def test_a_broken_link_fails_the_build(link, tmp_path):
    """Build a site of one page with the settings of mkdocs.yml and of `make docs`."""
    [command] = [line for line in Path("Makefile").read_text().splitlines() if "build --st" in line]
    assert "--quiet" not in command and " -q" not in command  # otherwise warnings are not counted
    validation = yaml.safe_load(re.sub("!!python.*", "", Path("mkdocs.yml").read_text()))
    settings = {"site_name": "x", "validation": validation["validation"], "plugins": []}
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Title\n\n{link}\n")
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(settings))
    config = load_config(str(tmp_path / "mkdocs.yml"), strict=True)
    with pytest.raises(Abort):
        build(config)


def test_long_code_breaks_after_separators_and_short_code_does_not_break():
    def marked(html):
        return reference.on_page_content(html, page=None, config=None, files=None)

    assert marked("<code>a_b</code>") == '<code class="word">a_b</code>'
    long = "tests/test_one.py::test_" + "word" * 5
    [found] = re.findall('<code class="long">(.*)</code>', marked(f"<code>{long}</code>"))
    assert found.split("<wbr>")[:4] == ["tests/", "test_", "one.", "py::"]
    assert found.replace("<wbr>", "") == long
    block = f"<pre><span></span><code>{long}</code></pre>"
    assert marked(block) == block
    assert marked("<h1>implicit_reasoning.runs</h1>").count("<wbr>") == 2
    assert "<wbr>" not in marked('<span class="nn">implicit_reasoning.runs</span>')


def test_the_page_of_a_package_has_its_docstring_without_the_list_of_modules(tmp_path):
    package = tmp_path / "implicit_reasoning"
    package.mkdir()
    text = "A package.\n\nIts modules:\n\n    a.py    one\n\nIt also explains.\n"
    (package / "__init__.py").write_text(f'"""{text}"""\n\ndef f():\n    """Return 1."""\n')
    page = python_api.write_page(python_api.load(tmp_path))
    assert "A package.\n\nIt also explains.\n" in page and "a.py" not in page
    assert "\n::: implicit_reasoning.f\n" in page


def test_every_study_is_in_the_navigation_and_on_the_page_of_studies():
    folders = {path.parent.name for path in Path("results").glob("*/README.md")}
    page = Path("docs/studies/index.md").read_text(encoding="utf-8")
    assert set(repository.STUDIES.values()) == folders
    assert set(re.findall(r"results/(\w+)/README", page)) == folders


def test_figures_are_links_to_their_files():
    html = figures.on_page_content(
        '<img alt="A" src="a.png" />', page=None, config=None, files=None
    )
    assert html == '<a class="figure" href="a.png"><img alt="A" src="a.png" /></a>'
