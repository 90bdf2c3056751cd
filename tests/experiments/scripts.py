"""The scripts of experiments/, and the command of the smallest case in their docstrings."""

import ast
import importlib
import re
import shlex
import sys
from pathlib import Path

FOLDERS = (Path("experiments"), Path("experiments/benchmarks"))
FILES = sorted(path for folder in FOLDERS for path in folder.glob("*.py"))


def load(name):
    """Import a script as a module. Scripts import their neighbors by name."""
    sys.path[:0] = [str(f.absolute()) for f in FOLDERS if str(f.absolute()) not in sys.path]
    return importlib.import_module(name)


def smoke_command(path):
    """Return the arguments after the script's name; None if the docstring has no smoke test."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    found = re.search(rf"^Smoke test.*?:\n    python {path} (.*?)(\n\n|\Z)", docstring, re.M | re.S)
    return shlex.split(found[1].replace("\\\n", " ")) if found else None


def run(path, folder, **changed):
    """Run the smoke test of a script in this process, with its files below `folder`."""
    words = [word.replace("runs/smoke", str(folder)) for word in smoke_command(path)]
    for name, value in changed.items():
        words = [word for word in words if not word.startswith(f"--{name}=")]
        words.append(f"--{name}={value}")
    load(path.stem).main(words)
    return dict(word.removeprefix("--").split("=", 1) for word in words)
