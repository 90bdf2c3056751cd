"""Help, version and completion are generated from the table of commands, without importing JAX."""

import shutil
import subprocess
import sys

import pytest

import implicit_reasoning
from implicit_reasoning.__main__ import main
from implicit_reasoning.commands import VERBS


@pytest.mark.parametrize("ask", ["--help", "-h"])
@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_of_a_command_is_explained(verb, ask, capsys):
    assert main([verb, ask]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert VERBS[verb].summary in said
    for name, flag in VERBS[verb].flags.items():
        assert f"--{name}=" in said and " ".join(flag.help.split()) in said
        kind = "folder" if flag.kind.__name__ == "Path" else flag.kind.__name__
        assert f"({'list of ' * flag.many}{kind}" in said.split(f" --{name}=")[-1]
    assert ("--config.GROUP.FIELD=VALUE" in said) == ("config" in VERBS[verb].flags)
    assert ("compilation_cache" in said) == (verb != "world")


def test_help_shows_defaults(capsys):
    main(["score", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "default: 2000,2001,2002" in said and "default: runs/known" in said


def test_help_asks_for_nothing_else(capsys):
    """Required flags may be missing, and wrong flags are ignored."""
    assert main(["sweep", "--nonsense", "--help", "--workdir=gs://x"]) == 0
    assert main(["help", "sweep"]) == 0
    assert "space_NAME()" in capsys.readouterr().out


def test_with_a_configuration_help_lists_its_fields(capsys):
    assert main(["train", "--config=configs/composition.py:desk", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--config.task.phi=8.0\n      training chains per in-distribution fact" in said
    assert "--config.model.act_fn=gelu_new" in said


def test_called_without_arguments_it_says_what_to_do_first(capsys):
    assert main([]) == 0
    said = capsys.readouterr().out
    places = [said.index(f"  implicit_reasoning {verb} ") for verb in ("train", "report")]
    assert said.index(" doctor\n") < places[0] < places[1] and "--help" in said


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"implicit_reasoning {implicit_reasoning.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["trian"], "did you mean train?"),
        (["anlyze", "--workdir=x"], "did you mean analyze?"),
        (["Report"], "did you mean report?"),
        (["help", "swep"], "did you mean sweep?"),
        (["xyzzy"], "(available: train, sweep"),
        (["--verison"], "did you mean --version?"),
        (["--workdir=x", "train"], "write the command first"),
        (["report", "--wrkdir=x"], "did you mean --workdir?"),
        (["report", "--workdir=x", "--compilation-cach=no"], "did you mean --compilation_cache?"),
        (["--print-completion"], "one of bash, zsh, tcsh"),
        (["--print-completion=fish"], "one of bash, zsh, tcsh"),
    ],
)
def test_what_does_not_exist_is_refused_with_the_nearest(argv, said, capsys):
    assert main(argv) == 2
    heard = capsys.readouterr().err
    assert said in heard and heard.count("\n") == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_scripts_know_every_command(shell, capsys):
    assert main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(verb in script for verb in VERBS) and "--workdir" in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("typed", "offered"), [(["tr"], ["train"]), (["train", "--st"], ["--stop_at"])]
)
def test_bash_completes(typed, offered, capsys, tmp_path):
    main(["--print-completion=bash"])
    script = tmp_path / "completion.sh"
    script.write_text(capsys.readouterr().out)
    words = " ".join(["implicit_reasoning", *typed])
    ask = (
        f"source {script}; COMP_WORDS=({words}); COMP_CWORD={len(typed)}; "
        '_shtab_implicit_reasoning; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    said = subprocess.run(["bash", "-c", ask], capture_output=True, text=True)
    assert [word.strip() for word in said.stdout.split()] == offered, said.stderr


def test_help_does_not_import_jax():
    code = (
        "import sys; from implicit_reasoning.__main__ import main; main(['train', '--help']); "
        "main([]); main(['--help']); print([m for m in ('jax', 'flax') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.stdout.endswith("[]\n"), said.stderr
