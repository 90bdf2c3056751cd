"""Tables of the reference, generated from the code to replace `<!-- generated: NAME -->`.

Each function in `GENERATORS` returns Markdown.
"""

from __future__ import annotations

import importlib
import inspect
import re
import runpy
from collections.abc import Callable, Iterable, Mapping
from html import unescape
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

MARK = re.compile(r"<!-- generated: (\w+) -->")
CODE = re.compile(r"(?<!<span></span>)<code>([^<]+)</code>")
HEADING = re.compile(r"<h([1-6])\b.*?</h\1>", re.DOTALL)
DOTTED = re.compile(r">(implicit_reasoning(?:\.\w+)+)<")
BREAKS = re.compile(r"(?<=[\w)])(::|[/_.,:=|])(?=[\w-])")
WORD, ONE_LINE, WRAPS = 20, 32, 40
ROOT = Path(__file__).resolve().parents[2]


def cell(text: Any) -> str:
    """Return text for a table cell, on one line."""
    words = " ".join(str(text).split())
    return words.replace("|", "\\|").replace("<", "&lt;")


def code(text: Any) -> str:
    """Return the text formatted as code, on one line; a bar in it does not end the cell."""
    return "`" + " ".join(str(text).split()) + "`"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table; cells are not changed."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def commands() -> str:
    """Return one section per command, with its flags."""
    from implicit_reasoning.commands import VERBS
    from implicit_reasoning.commands.parser import flag_help, flag_value
    from implicit_reasoning.commands.table import all_flags

    parts = []
    for name, verb in VERBS.items():
        needed = [f"--{key}={flag.value}" for key, flag in verb.flags.items() if flag.required]
        more = " [--config.GROUP.FIELD=VALUE ...]" if verb.takes_config else ""
        usage = " ".join(["implicit_reasoning", name, *needed, "[flags]"]) + more
        rows = [
            (code(f"--{key}={flag_value(flag)}"), cell(flag_help(flag)))
            for key, flag in all_flags(verb).items()
        ]
        parts += [f"## {name}", verb.summary, f"    {usage}", table(("flag", "meaning"), rows)]
    return "\n\n".join(parts)


def field_table(fields: Mapping[str, Any], prefix: str = "") -> str:
    """Return every field of a table: name, type, default, allowed values, meaning."""
    rows = []
    for name, field in fields.items():
        if field.choices:
            bounds = ", ".join(code(repr(choice)) for choice in field.choices)
        elif field.bounded:
            low = "" if field.low == -float("inf") else f"at least {number(field.low)}"
            high = "" if field.high == float("inf") else f"at most {number(field.high)}"
            bounds = ", ".join(filter(None, (low, high)))
        else:
            bounds = ""
        shown = code(repr(field.default))
        rows.append((code(prefix + name), field.kind.__name__, shown, bounds, cell(field.doc)))
    lines = table(("field", "type", "default", "allowed", "meaning"), rows)
    return f'<div class="fields" markdown>\n\n{lines}\n\n</div>'


def number(value: int | float) -> str:
    """Return a bound in readable form, with large powers of two as powers."""
    for exponent in (20, 31):
        if value in (2**exponent, 2**exponent - 1):
            return f"2^{exponent}" + (" - 1" if value % 2 else "")
    return f"{value:,}" if isinstance(value, int) else f"{value:.10g}"


def by_group(fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Group fields by the first part of their dotted names; fields without a group come first."""
    groups: dict[str, dict[str, Any]] = {}
    for name, field in fields.items():
        groups.setdefault(name.rpartition(".")[0].partition(".")[0], {})[name] = field
    return groups


def run_fields() -> str:
    """Return the fields of a run's configuration, without those of tasks."""
    from implicit_reasoning.runs.fields import FIELDS

    parts = []
    for group, fields in by_group(FIELDS).items():
        if group != "task":
            parts += [f"### {group or 'Top level'}", field_table(fields)]
    return "\n\n".join(parts)


def task_fields() -> str:
    """Return the fields of every task."""
    from implicit_reasoning.worlds.tasks import TASKS
    from implicit_reasoning.worlds.tasks.fields import FIELDS

    parts = []
    for name, fields in FIELDS.items():
        doc = inspect.getdoc(TASKS[name]) or ""
        parts += [f"### {name}", doc.split("\n\n")[0], field_table(fields, "task.")]
    return "\n\n".join(parts)


def dictionary_fields() -> str:
    """Return the fields of a configuration of dictionaries."""
    from implicit_reasoning.dictionaries.fields import FIELDS

    parts = []
    for group, fields in by_group(FIELDS).items():
        parts += [f"### {group or 'Top level'}", field_table(fields)]
    return "\n\n".join(parts)


def find(path: str) -> Any:
    """Return the object that `package.module:name` names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def instrument(name: str, path: str) -> str:
    """Return the section of an instrument: its module's docstring, and its declarations."""
    kind = find(path)
    module, _, class_name = path.partition(":")
    doc = inspect.getdoc(kind) or ""
    if doc.startswith("See the module"):
        doc = inspect.getdoc(importlib.import_module(module)) or ""
    rows = [(code(each), ", ".join(code(dim) for dim in dims)) for each, dims in output_dims(kind)]
    default = "runs by default" if getattr(kind, "default", True) else "runs when it is named"
    nulls = [f"- null: {cell(null)}" for null in kind.nulls]
    facts = [
        f"- version {kind.version}; {default}",
        f"- class: [`{class_name}`][{module}.{class_name}]",
        *nulls,
    ]
    parts = [f"## {name}", doc, f"**Definition.** {cell(kind.definition)}", "\n".join(facts)]
    if rows:
        parts.append(table(("output", "dimensions"), rows))
    return "\n\n".join(parts)


def output_dims(kind: Any) -> list[tuple[str, tuple[str, ...]]]:
    """Return the outputs that an instrument's class declares; none if they depend on options."""
    outputs = getattr(kind, "outputs", {})
    return list(outputs.items()) if isinstance(outputs, Mapping) else []


def instrument_table(instruments: Mapping[str, str]) -> str:
    """Return one line per instrument."""
    rows = []
    for name, path in instruments.items():
        kind = find(path)
        doc = inspect.getdoc(importlib.import_module(path.partition(":")[0])) or ""
        when = "yes" if getattr(kind, "default", True) else "no"
        rows.append((f"[`{name}`](#{name})", cell(doc.splitlines()[0]), when))
    return table(("instrument", "question", "default"), rows)


def instruments() -> str:
    """Return all instruments of models."""
    from implicit_reasoning.analysis import INSTRUMENTS

    sections = [instrument(name, path) for name, path in INSTRUMENTS.items()]
    return "\n\n".join([instrument_table(INSTRUMENTS), *sections])


def dictionary_instruments() -> str:
    """Return all instruments of dictionaries."""
    from implicit_reasoning.dictionaries import INSTRUMENTS

    sections = [instrument(name, path) for name, path in INSTRUMENTS.items()]
    return "\n\n".join([instrument_table(INSTRUMENTS), *sections]).replace("\n## ", "\n### ")


def named_classes(classes: Mapping[str, Any]) -> str:
    """Return a table of classes: name in a configuration, class, first line of its docstring."""
    rows = []
    for name, kind in classes.items():
        target = f"{kind.__module__}.{kind.__name__}"
        doc = (inspect.getdoc(kind) or "").split("\n\n")[0]
        if doc.startswith("See the module"):
            module = inspect.getdoc(importlib.import_module(kind.__module__)) or ""
            doc = module.splitlines()[0] + " " + doc.removeprefix("See the module").lstrip(".; ")
        rows.append((code(name), f"[`{kind.__name__}`][{target}]", cell(doc)))
    return table(("name", "class", "what it is"), rows)


def architectures() -> str:
    """Return the architectures of dictionaries: what they read and write."""
    from implicit_reasoning.dictionaries.architectures import ARCHITECTURES

    return named_classes(ARCHITECTURES)


def activation_functions() -> str:
    """Return the activation functions of dictionaries, which make activations sparse."""
    from implicit_reasoning.dictionaries.activations import ACTIVATIONS

    return named_classes(ACTIVATIONS)


def configurations() -> str:
    """Return every configuration file, with the docstrings of its scales and sweeps."""
    parts = []
    for path in sorted((ROOT / "configs").glob("*.py")):
        names = runpy.run_path(str(path))
        parts += [f"## {path.stem}", names["__doc__"].strip()]
        for name, value in names.items():
            own = inspect.isfunction(value) and value.__module__ == names["__name__"]
            if own and name != "get_config" and value.__doc__:
                what = "Sweep " if name.startswith("sweep_") else ""
                heading = f"{what}`{name.removeprefix('sweep_')}`"
                parts += [f"### {path.stem}: {heading}", inspect.getdoc(value) or ""]
    return "\n\n".join(parts)


GENERATORS: dict[str, Callable[[], str]] = {
    "activation_functions": activation_functions,
    "architectures": architectures,
    "commands": commands,
    "configurations": configurations,
    "dictionary_fields": dictionary_fields,
    "dictionary_instruments": dictionary_instruments,
    "instruments": instruments,
    "run_fields": run_fields,
    "task_fields": task_fields,
}


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Replace the marks in a page by generated Markdown."""

    def generated(match: re.Match[str]) -> str:
        if match[1] not in GENERATORS:
            raise PluginError(f"{page.file.src_uri}: nothing generates {match[1]!r}")
        return GENERATORS[match[1]]()

    return MARK.sub(generated, markdown)


def on_page_content(html: str, *, page: Any, config: Any, files: Any) -> str:
    """Choose where names and code break.

    A `word` stays on one line, and `short` code does so in text. `long` code may break in a table.
    """

    def marked(match: re.Match[str]) -> str:
        size = len(unescape(match[1]))
        sizes = {WORD: "word", ONE_LINE: "short", WRAPS: ""}
        name = next((sizes[most] for most in sizes if size <= most), "long")
        start = f'<code class="{name}">' if name else "<code>"
        return start + (breakable(match[1]) if size > WORD else match[1]) + "</code>"

    def divided(match: re.Match[str]) -> str:
        return DOTTED.sub(lambda name: f">{breakable(name[1])}<", match[0])

    return HEADING.sub(divided, CODE.sub(marked, html))


def breakable(text: str) -> str:
    """Return HTML in which a name may break after its separators, and not inside of a word."""
    return BREAKS.sub(r"\1<wbr>", text)
