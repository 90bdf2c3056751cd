"""The reference of the Python API: one page per package, rendered by mkdocstrings.

The build fails if a public name has no docstring or is on no page. Public names are all modules,
classes, functions and methods whose names do not begin with an underscore, and the constants that a
package exports in `__all__`. Other constants are shown if they have a docstring.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from nav import fill

PACKAGE = "implicit_reasoning"
FOLDER = "reference/python"
SKIPPED = ("__main__",)
"""Modules that are described elsewhere; the commands have their own page."""
LISTED = re.compile(r"\s*[\w.]+(?:\.\w+|/)\s")
"""The beginning of a list of modules in a docstring."""


def load(root: Path | str = ".") -> griffe.Module:
    """Return the package, parsed and not imported."""
    package = griffe.load(PACKAGE, search_paths=[root], try_relative_path=False)
    assert isinstance(package, griffe.Module)
    return package


def public_members(owner: griffe.Object) -> Iterator[griffe.Object]:
    """Yield the public definitions in a module or class, without submodules and imports."""
    for name, member in owner.members.items():
        if not (name.startswith("_") or member.is_alias or member.is_module):
            assert isinstance(member, griffe.Object)
            yield member


def submodules(package: griffe.Module) -> list[griffe.Module]:
    """Return the modules and packages directly in a package, ordered by name."""
    found = [m for m in package.members.values() if not m.is_alias and m.is_module]
    names = [m for m in found if isinstance(m, griffe.Module) and m.name not in SKIPPED]
    return sorted((m for m in names if not m.name.startswith("_")), key=lambda m: m.name)


def packages(package: griffe.Module) -> Iterator[griffe.Module]:
    """Yield a package and all packages below it."""
    yield package
    for module in submodules(package):
        if is_package(module):
            yield from packages(module)


def is_package(module: griffe.Module) -> bool:
    """Return whether a module is a folder with `__init__.py`."""
    return module.is_init_module


def exports(module: griffe.Module) -> dict[str, str]:
    """Return the names in `__all__` of a module, with the path at which each is defined."""
    found = {}
    for name in module.exports or ():
        member = module.members[str(name)]
        found[str(name)] = member.target_path if isinstance(member, griffe.Alias) else member.path
    return found


def documented(package: griffe.Module) -> tuple[list[str], list[str]]:
    """Return the paths of all public names, and of those that have no docstring."""
    exported = {path for each in packages(package) for path in exports(each).values()}
    names, bare = [], []

    def visit(owner: griffe.Object) -> None:
        for member in public_members(owner):
            needed = member.is_class or member.is_function or member.path in exported
            if needed or member.docstring:
                names.append(member.path)
            if needed and not member.docstring:
                bare.append(member.path)
            if member.is_class:
                visit(member)

    for each in packages(package):
        modules = [each, *(m for m in submodules(each) if not is_package(m))]
        for module in modules:
            if not module.docstring and module is not package:
                bare.append(module.path)
            visit(module)
    return names, bare


def page_of(package: griffe.Module) -> str:
    """Return the address of a package's page below `FOLDER`."""
    path = package.path.removeprefix(PACKAGE).lstrip(".")
    return f"{FOLDER}/{path or 'index'}.md"


def first_line(module: griffe.Object) -> str:
    """Return the first line of a docstring."""
    return module.docstring.value.strip().splitlines()[0] if module.docstring else ""


def description(package: griffe.Module) -> str:
    """Return the docstring of a package without lists of modules, which the page has as a table."""
    paragraphs = package.docstring.value.strip().split("\n\n") if package.docstring else []
    kept: list[str] = []
    for paragraph in paragraphs:
        if not LISTED.match(paragraph):
            kept.append(paragraph)
        elif kept and kept[-1].endswith(":"):  # it introduces the list
            kept.pop()
    return "\n\n".join(kept)


def write_page(package: griffe.Module) -> str:
    """Return the Markdown of a package's page."""
    inside = submodules(package)
    modules = [module for module in inside if not is_package(module)]
    lines = [f"# {package.path}", "", description(package), ""]
    if found := exports(package):
        lines += ["| exported name | defined in |", "|---|---|"]
        lines += [
            f"| [`{name}`][{path}] | `{path.rpartition('.')[0]}` |" for name, path in found.items()
        ]
        lines += ["", f"`from {package.path} import NAME` imports these.", ""]
    if inside:
        lines += ["| module | contents |", "|---|---|"]
        for module in inside:
            target = Path(page_of(module)).name if is_package(module) else f"#{module.path}"
            lines.append(f"| [`{module.name}`]({target}) | {first_line(module)} |")
        lines.append("")
    for member in public_members(package):
        if member.docstring:
            lines += [f"::: {member.path}", "    options:", "      show_root_full_path: false", ""]
    for module in modules:
        lines += [f"::: {module.path}", ""]
    return "\n".join(lines)


_names: list[str] = []


def on_config(config: Any) -> Any:
    """Check docstrings, and add the pages to the navigation."""
    package = load(Path(config.config_file_path).parent)
    names, bare = documented(package)
    if bare:
        raise PluginError("public names without a docstring: " + ", ".join(sorted(bare)))
    _names[:] = names
    entries = [{each.path.removeprefix(PACKAGE + "."): page_of(each)} for each in packages(package)]
    config.nav = fill(config.nav, "python", entries)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add one page per package."""
    for each in packages(load(Path(config.config_file_path).parent)):
        files.append(File.generated(config, page_of(each), content=write_page(each)))
    return files


def on_post_build(config: Any) -> None:
    """Check that every public name is in the inventory of rendered names."""
    from mkdocstrings import Inventory

    with Path(config.site_dir, "objects.inv").open("rb") as file:
        rendered = set(Inventory.parse_sphinx(file))
    missing = sorted(set(_names) - rendered)
    if missing:
        raise PluginError("public names that are on no page: " + ", ".join(missing))
