"""Progress bars in terminals and notebooks, and messages above them."""

import subprocess
import sys
from pathlib import Path

import pytest
import tqdm

from implicit_reasoning.runtime import progress

# What tqdm looks for to find out that it runs in a notebook, whatever is installed here.
NOTEBOOK = """
import sys, types, warnings
shell = types.SimpleNamespace(config={"IPKernelApp": {}})
display = types.ModuleType("IPython.display")
display.display = lambda *values: None
sys.modules["ipykernel.zmqshell"] = types.ModuleType("ipykernel.zmqshell")
sys.modules["IPython"] = types.ModuleType("IPython")
sys.modules["IPython"].get_ipython = lambda: shell
sys.modules["IPython.display"] = display
"""
WIDGETS = """
sys.modules["ipywidgets"] = types.ModuleType("ipywidgets")
for name in ("HTML", "HBox", "FloatProgress"):
    setattr(sys.modules["ipywidgets"], name, type(name, (), {}))
"""
NO_WIDGETS = 'sys.modules["ipywidgets"] = None\n'
SHOW = """
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    from implicit_reasoning.runtime.progress import tqdm
print(tqdm.__module__, [str(one.message) for one in seen if "qdm" in one.category.__name__])
"""


@pytest.mark.parametrize(
    ("installed", "module"), [(WIDGETS, "tqdm.notebook"), (NO_WIDGETS, "tqdm.std")]
)
def test_a_bar_in_a_notebook_is_a_widget_if_there_are_widgets(installed, module):
    """Without them it is text, and nobody is asked to install anything."""
    code = NOTEBOOK + installed + SHOW
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.split(" ", 1) == [module, "[]\n"], found.stderr


def test_a_bar_in_a_terminal_is_the_plain_one(capsys):
    assert progress.tqdm is tqdm.tqdm
    with progress.ProgressBar(4, done=1, title="first", unit="ckpt") as bar:
        bar.advance()
        progress.say("a message")
        bar.set_title("second")
        bar.move_to(4, {"loss": "0.5"})
    shown = capsys.readouterr()
    assert not shown.out
    lines = shown.err.replace("\r", "\n").split("\n")
    assert "implicit_reasoning: a message" in lines
    assert lines[-2].startswith("second: 100%") and "4/4" in lines[-2]
    assert "loss=0.5" in lines[-2] and "ckpt" in lines[-2]
    with progress.ProgressBar(4, shown=False) as bar:
        bar.advance()
    assert not capsys.readouterr().err


def test_all_bars_go_through_one_module():
    importing = [
        path.as_posix()
        for path in Path("implicit_reasoning").rglob("*.py")
        if "tqdm" in path.read_text(encoding="utf-8")
    ]
    assert importing == ["implicit_reasoning/runtime/progress.py"]
