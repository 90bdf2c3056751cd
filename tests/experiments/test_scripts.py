"""Every script of experiments/ compiles, and its docstring has the command of its smallest case."""

import pytest

from implicit_reasoning.errors import InputError
from tests.experiments.scripts import FILES, load, smoke_command

# These run in the environment of another package, which the default tests do not have.
OF_PEERS = {
    "auto_circuit_edges",
    "circuit_tracer_attribution",
    "cross_query_torch",
    "gpt2_torch",
    "sae_lens_trainer",
    "sae_lens_training",
    "synth_sae_bench_torch",
    "transformer_lens_attribution",
    "transformer_lens_grid",
}
# populations.py starts the first, the second needs an accelerator, and `make test-all` runs the
# third beside SAELens.
TESTED_APART = {"population_worker", "accelerator", "synth_sae_bench"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_compiles(path):
    compile(path.read_text(), str(path), "exec")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_says_how_its_smallest_case_is_run(path):
    is_script = 'if __name__ == "__main__":' in path.read_text()
    wanted = is_script and path.stem not in OF_PEERS | TESTED_APART
    assert (smoke_command(path) is not None) == wanted


@pytest.mark.parametrize("path", [p for p in FILES if smoke_command(p)], ids=str)
def test_knows_its_flags(path):
    with pytest.raises(InputError, match="there is no flag --roundz"):
        load(path.stem).main(["--roundz=3"])


def test_the_command_is_the_one_in_the_docstring(tmp_path):
    one = tmp_path / "one.py"
    one.write_text(f'"""One.\n\nSmoke test:\n    python {one} --a=1 \\\n        --b="x y"\n"""\n')
    assert smoke_command(one) == ["--a=1", "--b=x y"]
    one.write_text('"""One."""\n')
    assert smoke_command(one) is None
