"""Everything that wants an accelerator, in one command.

    python experiments/benchmarks/gpu.py --hours=2 --out=results/gpu

1. Speed at the published size (8 layers x 768, batch 512, bfloat16): steps/s and share of the peak.
   Aim: 500 steps/s on one H200, which makes of a published run of 96 hours one of less than one.
2. `desk` with 8 seeds, as `experiments/grokking.py` measures it.
3. The published curve, as far as the hours go: `paper_wang`, held against test_ii .48 at 50,000
   steps, .77 at 100,000 and .95 at 200,000 (Wang et al. 2024, figure 1). Stopped, it goes on
   when the script is run again.

Not measured on a GPU so far.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from implicit_reasoning.config import parse_flags

FLAGS = {"hours": 2.0, "seeds": 8, "runs": "runs/gpu", "out": "results/gpu"}
HERE = Path(__file__).parent
INTERRUPTED = 75


def main(argv: list[str]) -> None:
    """Run the three, one after the other."""
    flags, _ = parse_flags(argv, FLAGS)
    until = time.monotonic() + 3600 * flags["hours"]
    runs, out = Path(flags["runs"]), Path(flags["out"])
    paper = "--config=configs/composition.py:paper"
    run(HERE / "train_step.py", paper, "--peer=none", f"--out={out / 'train_step.json'}")
    run(
        HERE.parent / "grokking.py",
        "--scale=desk",
        f"--seeds={flags['seeds']}",
        f"--runs={runs / 'desk'}",
        f"--out={out / 'desk'}",
    )
    train_until(until, "configs/composition.py:paper_wang", runs / "paper_wang")
    for name in ("metrics.jsonl", "config.json", "provenance.json"):
        shutil.copy(runs / "paper_wang" / name, out / f"paper_wang_{name}")


def run(script: Path, *arguments: str) -> None:
    """One script; a failure ends this one too."""
    subprocess.run([sys.executable, str(script), *arguments], check=True)


def train_until(until: float, config: str, workdir: Path) -> None:
    """Train, and ask it to save and stop when the time is up."""
    command = [sys.executable, "-m", "implicit_reasoning", "train"]
    process = subprocess.Popen([*command, f"--config={config}", f"--workdir={workdir}"])
    try:
        code = process.wait(max(until - time.monotonic(), 1))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        code = process.wait()
    if code not in (0, INTERRUPTED):
        raise SystemExit(f"training ended with {code}")


if __name__ == "__main__":
    main(sys.argv[1:])
