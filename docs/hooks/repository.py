"""Pages of files outside docs/: the results of studies, CONTRIBUTING and others.

Links to these files, from each other and from pages in docs/, are replaced by links to their places
on the site. The build fails if another link is broken.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File
from nav import fill

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
IMAGES = (".png", ".svg")
WITHOUT_SIDEBARS = "---\nhide: [navigation, toc]\n---\n\n"

FILES = {
    "CHANGELOG.md": "development/changelog.md",
    "CODE_OF_CONDUCT.md": "development/code-of-conduct.md",
    "CONTRIBUTING.md": "development/contributing.md",
    "SECURITY.md": "development/security.md",
}
"""Files of the repository, with their places on the site."""

STUDIES = {
    "Grokking at pocket scale": "pocket",
    "Grokking at desk scale": "desk",
    "Worlds and controls": "worlds",
    "Rules on the ladder": "ladder_rules",
    "Reasoning or shortcut": "reasoning_or_shortcut",
    "Phases of composition": "composition_phases",
    "Parts that compute the answer": "components",
    "Edges that compute the answer": "circuits",
    "Edited facts and chains": "editing",
    "Attribution graphs": "graphs",
    "Phi and weight decay": "phi_and_weight_decay",
    "Births of features": "feature_birth",
    "Transcoders and autoencoders": "transcoders_vs_saes",
    "Instruments against truth": "truth",
    "Launchers": "launchers",
    "Benchmarks": "benchmarks",
    "Minutes on a GPU": "gpu",
}
"""Folders of results/, by title in the navigation."""


def places() -> dict[str, str]:
    """Return every file outside docs/ that the site shows, with its place on the site."""
    found = dict(FILES)
    for path in sorted((ROOT / "results").rglob("*")):
        if path.suffix == ".md" or path.suffix in IMAGES:
            inside = path.relative_to(ROOT / "results").as_posix()
            found[f"results/{inside}"] = f"studies/{inside.replace('README.md', 'index.md')}"
    return found


def with_links(text: str, source: str, there: dict[str, str]) -> str:
    """Return the text of a file, with links replaced by those on the site."""
    here = posixpath.dirname(there.get(source, source.removeprefix("docs/")))

    def moved(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        if ":" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        path = f"{path}/README.md" if (ROOT / path / "README.md").exists() else path
        place = there.get(path, path.removeprefix("docs/"))
        return before + posixpath.relpath(place, here or ".") + after

    return LINK.sub(moved, text)


def titled(text: str, source: str) -> str:
    """Add a title and a link to its study to the text of a table; the page has no sidebars."""
    path = Path(source)
    if path.parts[0] != "results" or text.startswith("# "):
        return text
    titles = {folder: title for title, folder in STUDIES.items()}
    where = [titles.get(path.parts[1], path.parts[1]), *path.parts[2:-1]]
    study = posixpath.relpath(f"results/{path.parts[1]}/README.md", path.parent.as_posix())
    title = f"# {', '.join(where)}: {path.stem}\n\nA table of the study [{where[0]}]({study}).\n\n"
    return WITHOUT_SIDEBARS + title + text


def tables_of(source: str, there: dict[str, str]) -> str:
    """Return a section of links from a study's page to its other pages; empty if there are none."""
    folder = posixpath.dirname(source)
    inside = [path for path in there if path.startswith(f"{folder}/") and path.endswith(".md")]
    names = [posixpath.relpath(path, folder) for path in inside if path != source]
    if not source.startswith("results/") or not source.endswith("README.md") or not names:
        return ""
    return "\n## Tables\n\n" + "".join(f"- [{name}]({name})\n" for name in names)


def on_config(config: Any) -> Any:
    """Add the studies to the navigation."""
    missing = {path.parent.name for path in (ROOT / "results").glob("*/README.md")}
    missing -= set(STUDIES.values())
    entries: list[Any] = ["studies/index.md"]
    entries += [{title: f"studies/{name}/index.md"} for title, name in STUDIES.items()]
    entries += [{name: f"studies/{name}/index.md"} for name in sorted(missing)]
    config.nav = fill(config.nav, "studies", entries)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the files to the site."""
    there = places()
    for source, place in there.items():
        path = ROOT / source
        if path.suffix == ".md":
            text = titled(path.read_text(encoding="utf-8"), source) + tables_of(source, there)
            content = with_links(text, source, there)
            files.append(File.generated(config, place, content=content))
        else:
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Replace links from pages in docs/ to files outside docs/."""
    if page.file.generated_by:
        return markdown
    return with_links(markdown, f"docs/{page.file.src_uri}", places())
