r"""Benchmark of a training step against the peak of this machine, and against GPT-2 in PyTorch.

    make .peers/huggingface/.installed
    python experiments/benchmarks/train_step.py --rounds=15

The variants run in turns, each on every core. They are our compiled training loop, square matrix
products (the peak), and HuggingFace's GPT2LMHeadModel with PyTorch's fused AdamW. GPT-2 is trained
in two variants:

- `same work`: our initial weights, rows, loss and clipping, 3 input tokens, our vocabulary. Before
  any timing, the script checks that GPT-2 and our model have the same first loss and gradient norm.
- `as published`: rows padded to 10 tokens, GPT-2's 50,257 tokens in addition to the world's, tied
  embeddings, dropout .1, as in the published code. This is not the same amount of work.

`--peer` is the Python of an environment with torch and transformers. `--peer=none` omits both
variants of GPT-2.

On an accelerator: --config=configs/composition.py:paper --peer=none

Smoke test:
    python experiments/benchmarks/train_step.py --config=experiments/smoke.py --peer=none \
        --rounds=1 --steps=2 --out=runs/smoke/train_step.json
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from machines import keep
from measure import spread
from ml_collections import ConfigDict
from outfile import OUT
from peer import Peer

from implicit_reasoning.config import apply_overrides, load_config, parse_flags
from implicit_reasoning.files import write_json, write_npz
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.model.blocks import GPT2Block
from implicit_reasoning.model.exchange import save_gpt2
from implicit_reasoning.model.wirings import forward_at
from implicit_reasoning.runtime import sharding
from implicit_reasoning.runtime.machine import matmul_peak
from implicit_reasoning.training import setup
from implicit_reasoning.training.cost import row_shape, step_cost
from implicit_reasoning.training.settings import TrainingSettings
from implicit_reasoning.training.step import RowTable, answer_loss
from implicit_reasoning.worlds import build

FLAGS = {
    "config": "configs/composition.py:pocket",
    "rounds": 15,
    "steps": 20,
    "peer": ".peers/huggingface/bin/python",
    "out": OUT,
}
GPT2_VOCABULARY, PUBLISHED_LENGTH, PUBLISHED_DROPOUT = 50_257, 10, 0.1


def main(argv: list[str]) -> None:
    """Time the variants in turns, then write seconds, FLOPs and ratios."""
    flags, overrides = parse_flags(argv, FLAGS)
    config = apply_overrides(load_config(flags["config"]), overrides)
    ours = Ours(config)
    with tempfile.TemporaryDirectory() as folder:
        peers = {} if flags["peer"] == "none" else start_peers(ours, flags["peer"], Path(folder))
        sides: dict[str, tuple[Callable[[int], float], int]] = {"ours": (ours.run, flags["steps"])}
        sides |= {name: (peer.run, peer.steps(flags["steps"])) for name, peer in peers.items()}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        peak = []
        for turn in range(flags["rounds"] + 1):
            for name, (run, steps) in sides.items():
                if turn:
                    peak.append(matmul_peak(config.model.dtype, repeats=2))
                took = run(steps) / steps
                if turn:  # the first round is a warm-up
                    seconds[name].append(took)
            print(f"{turn}/{flags['rounds']}", file=sys.stderr, flush=True)
    flops = {"ours": ours.flops} | {name: peer.flops for name, peer in peers.items()}
    result = {
        "config": flags["config"],
        "load_average": os.getloadavg()[0],
        "milliseconds": {name: spread([1e3 * s for s in s_]) for name, s_ in seconds.items()},
        "gflop": {name: value / 1e9 for name, value in flops.items()},
        "gflop_per_second": {
            name: spread([flops[name] / s / 1e9 for s in s_]) for name, s_ in seconds.items()
        },
        # Relative to the best peak seen, which is the peak of the machine; the spread is reported
        # too.
        "peak_gflop_per_second": {"best": max(peak) / 1e9, **spread([p / 1e9 for p in peak])},
        "share_of_peak": {
            name: spread([flops[name] / s / max(peak) for s in s_]) for name, s_ in seconds.items()
        },
        "times_as_fast": {
            name: {
                "time": spread([b / a for a, b in zip(seconds["ours"], s_, strict=True)]),
                "flop": flops[name] / flops["ours"],
            }
            for name, s_ in seconds.items()
        },
        "versions": {name: peer.versions for name, peer in peers.items()},
    }
    keep(result, flags["out"], "train_step")


class Ours:
    """The compiled training loop of a configuration, as in `train`."""

    def __init__(self, config: ConfigDict):
        self.config, dataset = config, build(config.task)
        self.program = setup.make_program(TrainingSettings.from_config(config), dataset)
        self._state = self.program.init(self.program.init_key)
        # The parameters are copied, because the state is donated.
        self.params = jax.tree.map(jnp.copy, self._state.params)
        shape = row_shape(dataset)
        self.flops = step_cost(self.spec, batch_size=config.batch_size, **shape).step

    @property
    def spec(self) -> Spec:
        """Spec of the model."""
        return self.program.recipe.model.spec

    def arguments(self, steps: int) -> tuple[Any, ...]:
        """Return the arguments of the compiled loop."""
        program, count = self.program, sharding.put_scalar(steps, self.program.whole)
        return self._state, program.rows, program.hyper, program.stream_key, count

    def run(self, steps: int) -> float:
        """Train for `steps` steps; return the seconds."""
        began = time.perf_counter()
        self._state = jax.block_until_ready(self.program.advance(*self.arguments(steps)))
        return time.perf_counter() - began

    def compiled_text(self) -> str:
        """Return the text of the compiled program."""
        return str(self.program.advance.lower(*self.arguments(1)).compile().as_text())


class GPT2(Peer):
    """A process that trains GPT-2 in PyTorch on command."""

    def __init__(self, python: str, folder: Path, flops: float):
        super().__init__(python, "gpt2_torch.py", folder)
        self.flops = flops

    def run(self, steps: int) -> float:
        """Train for `steps` steps; return the seconds measured by the process."""
        seconds: float = self.ask(str(steps))["seconds"]
        return seconds

    def steps(self, ours: int) -> int:
        """Return the number of steps to measure. More expensive steps are measured less often."""
        return max(2, min(ours, round(ours * 2e10 / self.flops)))


def start_peers(ours: Ours, python: str, folder: Path) -> dict[str, GPT2]:
    """Start both variants, and check that `same work` does the same work as our loop."""
    rows = jax.device_get(ours.program.rows.table)
    assert rows.answers.shape[1] == 1, "the peers are given one supervised position a row"
    batch = ours.config.batch_size
    dropout = ours.config.model.dropout
    same = write_peer(folder / "same", ours, ours.program.recipe.model, ours.params, rows, dropout)
    peers = {"same work": GPT2(python, same, whole_flops(ours.spec, batch, rows.tokens.shape[1]))}
    check_same_work(ours, rows, peers["same work"].ask("1"))

    spec = dataclasses.replace(
        ours.spec,
        d_vocab=GPT2_VOCABULARY + ours.spec.d_vocab,
        n_ctx=PUBLISHED_LENGTH,
        tied=True,
    )
    padded = np.pad(rows.tokens, ((0, 0), (0, PUBLISHED_LENGTH - rows.tokens.shape[1])))
    model = Transformer(spec)
    published = write_peer(
        folder / "published",
        ours,
        model,
        model.init(jax.random.key(0)),
        rows._replace(tokens=padded),
        PUBLISHED_DROPOUT,
    )
    flops = whole_flops(spec, batch, PUBLISHED_LENGTH)
    return peers | {"as published": GPT2(python, published, flops)}


def write_peer(
    folder: Path, ours: Ours, model: Transformer, params: Any, rows: RowTable, dropout: float
) -> Path:
    """Write the folder that gpt2_torch.py reads."""
    save_gpt2(folder, model, params)
    columns = {
        "tokens": np.asarray(rows.tokens),
        "position": np.asarray(rows.positions[:, 0]),
        "answer": np.asarray(rows.answers[:, 0]),
    }
    write_npz(folder / "rows.npz", columns)
    settings = {"batch_size": ours.config.batch_size, "dropout": dropout}
    settings |= ours.config.optimizer.to_dict()
    write_json(folder / "settings.json", settings)
    return folder


def check_same_work(ours: Ours, rows: RowTable, said: dict[str, float]) -> None:
    """Check that our model and GPT-2 have the same loss and gradient norm on the first batch."""
    first = jax.tree.map(lambda rows: jnp.asarray(rows[: ours.config.batch_size]), rows)

    def loss(params: Any) -> Any:
        logits, _ = forward_at(ours.program.recipe.model, params, first.tokens, first.positions)
        return answer_loss(logits, first.answers)

    value, gradient = jax.value_and_grad(loss)(ours.params)
    np.testing.assert_allclose(said["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(said["grad_norm"], optax.tree.norm(gradient), rtol=1e-4)


def whole_flops(spec: Spec, batch_size: int, n_pos: int) -> float:
    """Return the FLOPs of a step with all blocks and the unembedding at every position."""
    blocks = spec.depth * GPT2Block.flops(spec, n_pos, n_pos)
    return 3.0 * batch_size * (blocks + 2 * n_pos * spec.d_model * spec.d_vocab)


if __name__ == "__main__":
    main(sys.argv[1:])
