"""The script for the day on which a GPU is lent: at its smallest size, on a CPU."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from implicit_reasoning.runs import load_arrays
from implicit_reasoning.runtime.shutdown import shutdown_requests
from implicit_reasoning.training import Interrupted
from implicit_reasoning.training.cost import StepCost
from tests.experiments.scripts import load, run

SCRIPT = Path("experiments/gpu.py")
PROGRAM = """HloModule jit_run

%fused_computation (p: f32[8]) -> f32[] {
  %p = f32[8]{0} parameter(0)
  ROOT %reduce.1 = f32[] reduce(%p, %c), dimensions={0}, to_apply=%add
}

%fused_dot (a: bf16[4,8], b: bf16[8,2]) -> bf16[4,2] {
  ROOT %dot.9 = bf16[4,2]{1,0} dot(%a, %b), lhs_contracting_dims={1}
}

%body (state: (f32[8], bf16[4,8])) -> (f32[8], bf16[4,8]) {
  %state = (f32[8]{0}, bf16[4,8]{1,0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%state), index=0
  %a = bf16[4,8]{1,0} get-tuple-element(%state), index=1
  %copy.1 = f32[8]{0} copy(%x)
  %norm.1 = f32[] fusion(%x), kind=kInput, calls=%fused_computation, metadata={op_name="a/sum"}
  %bias.1 = f32[] fusion(%x), calls=%fused_computation, metadata={op_name="a/transpose(jvp())/s"}
  %gemm.1 = bf16[4,2]{1,0} fusion(%a, %a), calls=%fused_dot, metadata={op_name="a/jvp()/dot"}
  %gelu.1 = (f32[8]{0}, /*index=1*/f32[8]{0}) fusion(%x), metadata={op_name="a/jvp()/mul"}
  %adam.1 = f32[8]{0} fusion(%x, %norm.1), metadata={op_name="a/select_n"}
  ROOT %out = (f32[8]{0}, bf16[4,8]{1,0}) tuple(%adam.1, %a)
}

ENTRY %main (state: (f32[8], bf16[4,8])) -> (f32[8], bf16[4,8]) {
  ROOT %while.1 = (f32[8]{0}, bf16[4,8]{1,0}) while(%state), condition=%cond, body=%body
}
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return the folder that the smallest case has written."""
    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("implicit_reasoning.runtime.machine.matmul_peak", lambda *_, **__: 1e9)
        patch.setattr(load("gpu"), "matmul_peak", lambda *_: 1e9)
        return Path(run(SCRIPT, folder)["out"])


@pytest.mark.slow
def test_both_parts_train_and_write_small_files(found):
    files = {path.name: path.stat().st_size for path in found.iterdir()}
    curves = {f"{part}.{kind}" for part in ("ladder", "paper_wang") for kind in ("nc", "png")}
    assert files.keys() == {"gpu.json", "table.md", "ladder_behaviour.nc"} | curves
    assert len(files) <= 8 and 0 < min(files.values()) <= max(files.values()) < 16 * 2**20
    for part, trials in (("ladder", 2), ("paper_wang", 1)):
        about = json.loads((found / "gpu.json").read_text())[part]
        assert about["ended"] == "all steps are done" and "failed" not in about
        assert [one["step"] for one in about["training"]] == [60] * trials
        curve = load_arrays(found / f"{part}.nc")["accuracy.test_ii"]
        assert curve.shape[0] == trials
        for row, one in zip(curve, about["training"], strict=True):
            assert float(row[-1]) == pytest.approx(one["accuracy"]["test_ii"])


@pytest.mark.slow
def test_evaluation_is_one_program_and_training_compiles_nothing_later(found):
    for part in ("ladder", "paper_wang"):
        about = json.loads((found / "gpu.json").read_text())[part]
        assert about["speed"]["programs_of_a_second_evaluation"] == 0
        assert {one["compiled_after_first_evaluation"] for one in about["training"]} == {0}


@pytest.mark.slow
def test_the_step_is_counted_and_profiled(found):
    about = json.loads((found / "gpu.json").read_text())
    one, two = about["paper_wang"], about["ladder"]
    assert two["flop_a_step"] == 2 * one["flop_a_step"]
    assert one["kernels"]["products"]["kernels"] > 10 < one["kernels"]["update"]["kernels"]
    assert one["speed"]["milliseconds_by_kind"]["products"] > 0
    assert one["speed"]["milliseconds_of_kernels"] > 0 < two["speed"]["milliseconds_a_step"]
    # XLA also counts elementwise operations, which weigh more in the smallest model.
    assert 1 < one["flop_a_step_by_xla"] / one["flop_a_step"] < 4


@pytest.mark.slow
def test_a_speed_on_a_cpu_is_not_in_the_table(found):
    script = load("gpu")
    table = (found / "table.md").read_text().splitlines()
    assert f"| steps/s | {script.NO_GPU} | {script.NO_GPU} |" in table
    part = json.loads((found / "gpu.json").read_text())["ladder"] | {"backend": "gpu"}
    assert script.NO_GPU not in str(script.table({"ladder": part}))


def test_kernels_are_those_of_the_loop():
    kernels = load("kernels")
    found = {kernel.name: kernel[1:] for kernel in kernels.kernels_of_step(PROGRAM)}
    assert found == {
        "copy.1": ("copies", 64),
        "norm.1": ("gradient norm", 36),
        "bias.1": ("sums", 36),
        "gemm.1": ("products", 16 + 2 * 64),
        "gelu.1": ("elementwise", 96),
        "adam.1": ("update", 68),
    }


def test_limits_by_hand():
    cost = StepCost(forward=1, step=989 * 10**9, parameters=10, state_bytes=120, traffic_bytes=0)
    kernel = load("kernels").Kernel("one", "update", 48 * 10**8)
    found = load("gpu").limits(
        cost._replace(traffic_bytes=335 * 10**7), 2, "bfloat16", [kernel], "H200"
    )
    assert found["products"] == pytest.approx(2) and found["moved"] == pytest.approx(1)
    assert found["update"] == pytest.approx(2 * 3.35 / 4.8)
    assert found["steps_per_second"] == pytest.approx(1e3 / (found["products"] + found["update"]))


def waits(seconds):
    """Stop upon SIGTERM as training does, or end after some seconds."""
    with shutdown_requests() as shutdown:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if shutdown:
                raise Interrupted(7, "SIGTERM")
            time.sleep(0.01)


def test_training_stops_when_the_time_is_over():
    until = load("gpu").train_until
    handler = signal.getsignal(signal.SIGTERM)
    assert until(time.monotonic() + 0.1, lambda: waits(60)).startswith("SIGTERM: saved at step 7")
    assert until(time.monotonic() + 60, lambda: waits(0)) == "all steps are done"
    # No handler of training is there yet, as while a dataset is built.
    assert until(time.monotonic() + 0.1, lambda: time.sleep(60)) == "there was no time to begin"
    assert until(time.monotonic() - 1, lambda: waits(60)) == "there was no time to begin"
    with pytest.raises(Interrupted):  # a signal from outside ends the script
        until(time.monotonic() + 60, signaled)
    assert signal.getsignal(signal.SIGTERM) is handler


def signaled():
    """Stop upon a signal that comes at once."""
    with shutdown_requests() as shutdown:
        os.kill(os.getpid(), signal.SIGTERM)
        assert shutdown
        raise Interrupted(7, "SIGTERM")


def test_an_error_of_one_part_is_kept_and_the_next_part_runs(tmp_path, monkeypatch):
    script = load("gpu")
    monkeypatch.setattr(script, "paper_wang", lambda _, end, about: about.update(ran=True))
    monkeypatch.setattr(script, "made_on", dict)
    script.main([f"--out={tmp_path}", "--ladder=no_such_file.py"])
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert "no_such_file.py" in found["ladder"]["failed"]["part"]
    assert found["paper_wang"] == {"ran": True}
    assert "ladder: part failed; see gpu.json" in (tmp_path / "table.md").read_text()
