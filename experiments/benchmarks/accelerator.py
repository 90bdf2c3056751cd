"""All benchmarks and studies that need an accelerator, in one command.

    python experiments/benchmarks/accelerator.py --hours=2 --out=results/gpu

1. Speed at the published size (8 layers of width 768, batch size 512, bfloat16): steps/s and share
   of the peak. Aim: 500 steps/s on one H200, which shortens a published run of 96 hours to less
   than one hour.
2. Eight trials of `pocket` as one population, against one trial after another. Aim: 4 times as
   fast.
3. `composition`, `without_id_triples` and `shadow` at `desk` with 8 seeds, by `worlds.py`.
4. The published curve of `paper_wang` from its start, as far as `--hours` allow. The published
   values of test_ii are .48 at 50,000 steps, .77 at 100,000 and .95 at 200,000 (Wang et al. 2024,
   figure 1). The run resumes when the script is started again.

Only part 2 has been measured so far, on one H100:
results/benchmarks/nvidia_h100_80gb_hbm3/populations.json.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from implicit_reasoning.config import Flag, parse_flags
from implicit_reasoning.files import write_json
from implicit_reasoning.runs import Run

FLAGS = {
    "hours": 2.0,
    "seeds": 8,
    "runs": Flag(kind=Path, default=Path("runs/gpu")),
    "out": Flag(kind=Path, default=Path("results/gpu")),
}
HERE = Path(__file__).parent
INTERRUPTED = 75
PUBLISHED = {"50000": 0.48, "100000": 0.77, "200000": 0.95}  # test_ii, digitized


def main(argv: list[str]) -> None:
    """Run the four parts, one after another."""
    flags, _ = parse_flags(argv, FLAGS)
    runs, out = flags["runs"], flags["out"]
    for script, arguments in scripts(flags["seeds"], runs, out).items():
        run(script, *arguments)
    hours = max(flags["hours"], 0.1)  # a shorter run would stop before it can save
    train_for(3600 * hours, "configs/composition.py:paper_wang", runs / "paper_wang")
    write_json(out / "paper_wang.json", beside_published(Run(runs / "paper_wang")))


def scripts(seeds: int, runs: Path, out: Path) -> dict[Path, list[str]]:
    """Return the arguments of the first three parts, by script."""
    return {
        HERE / "train_step.py": [
            "--config=configs/composition.py:paper",
            "--peer=none",
            f"--out={out / 'train_step.json'}",
        ],
        HERE / "populations.py": [
            "--parts=steps",
            "--workers=1",
            "--steps=100",
            f"--out={out / 'populations.json'}",
        ],
        HERE.parent / "worlds.py": [
            "--scale=desk",
            "--only=composition,without_id_triples,shadow",
            "--jobs=1",
            f"--seeds={seeds}",
            f"--runs={runs}",
            f"--out={out / 'desk'}",
        ],
    }


def beside_published(run: Run) -> dict[str, Any]:
    """Return test_ii at the published steps (None if not reached), and the whole curve."""
    curve = {
        row["step"]: row["accuracy/test_ii"] for row in run.metrics if "accuracy/test_ii" in row
    }
    return {
        "published": PUBLISHED,
        "ours": {step: curve.get(int(step)) for step in PUBLISHED},
        "curve": curve,
        "starts": run.starts,
    }


def run(script: Path, *arguments: str) -> None:
    """Run one script; raise an error if it fails."""
    subprocess.run([sys.executable, str(script), *arguments], check=True)


def train_for(seconds: float, config: str, workdir: Path) -> None:
    """Train for `seconds`, then send SIGTERM. The run then saves its state and stops."""
    command = [sys.executable, "-m", "implicit_reasoning", "train"]
    process = subprocess.Popen([*command, f"--config={config}", f"--workdir={workdir}"])
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        code = process.wait()
    if code not in (0, INTERRUPTED):
        raise SystemExit(f"training ended with {code}")


if __name__ == "__main__":
    main(sys.argv[1:])
