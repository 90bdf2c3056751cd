r"""Benchmark of cross-query patching against the published implementation.

    make .peers/huggingface/.installed
    python experiments/benchmarks/cross_query.py
    taskset -c 0 python experiments/benchmarks/cross_query.py      # one core, the basis of the aim

The published grid (Ye et al. 2025, the notebook of the figure) has 2,000 pairs of questions, 8
layers and 3 positions. Each cell takes two forward passes, because the source is recomputed for
every cell. One question is computed at a time, with hooks: 96,000 passes of a GPT-2 with 8 layers
of width 768. The variants run in turns, each on every core:

- `ours`: `CrossQueryPatching.measure` on all pairs, compiled. It computes every cell of the grid
  and of layer 0, both runs, the composed question, and all shares, with our vocabulary of 2,200
  tokens.
- `published`: a reimplementation with HuggingFace's GPT-2 in PyTorch, with GPT-2's 50,257 tokens in
  addition to ours, as published. At least 300 passes are measured, and the time of the grid is
  extrapolated.
- `published, small vocabulary`: the variant `published` with our 2,200 tokens only. The ratio of
  the two published variants is the effect of the vocabulary.

`--peer=none` omits the published variants. Before any timing, the script checks that the logits of
all cells of some pairs are equal in all variants, and that our outcomes agree with these logits.
Aim: 80 times as fast as `published`. FLOPs count matrix products, computed from shapes.

Smoke test:
    python experiments/benchmarks/cross_query.py --layers=1 --width=8 --heads=1 --vocab=11 \
        --pairs=3 --rounds=1 --peer=none --out=runs/smoke/cross_query.json
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from machines import keep
from measure import spread
from outfile import OUT
from patch_flops import cone_flops, run_flops, trimmed_flops
from peer import Peer, start_fastest
from shapes import random_model
from turns import compared, ratio, take_turns, timed

from implicit_reasoning.analysis.patching.cross_query_patching import CrossQueryPatching
from implicit_reasoning.analysis.patching.grids import patch_states
from implicit_reasoning.config import parse_flags
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import write_npz
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.cones import cache_sites
from implicit_reasoning.model.exchange import save_gpt2

FLAGS = {
    "layers": 8,
    "width": 768,
    "heads": 12,
    "vocab": 2_200,
    "positions": 3,
    "pairs": 2_000,
    "rounds": 5,
    "forwards": 60,
    "peer": ".peers/huggingface/bin/python",
    "out": OUT,
}
GPT2_VOCABULARY = 50_257
AIM, FEWEST_FORWARDS = 80.0, 300
AS_CLOSE, CHECKED = 1e-3, 2  # tolerance of logits; number of pairs whose cells are compared
PUBLISHED, SMALL = "published", "published, small vocabulary"


def main(argv: list[str]) -> None:
    """Check equality, time the variants in turns, and write seconds, FLOPs and ratios."""
    flags, _ = parse_flags(argv, FLAGS)
    published = flags["peer"] != "none"
    if published and (forwards := flags["rounds"] * flags["forwards"]) < FEWEST_FORWARDS:
        raise InputError(
            f"{forwards} passes are too few to extrapolate; at least {FEWEST_FORWARDS} are needed"
        )
    model, params = random_model(flags, tied=True)
    inputs = make_pairs(model, params, flags["pairs"])
    ours = Ours(model, params, inputs)
    first = timed(ours.run)()
    with tempfile.TemporaryDirectory() as folder:
        theirs = {
            name: Published(flags["peer"], Path(folder) / name.replace(" ", "_"), ours, tokens)
            for name, tokens in ((PUBLISHED, GPT2_VOCABULARY), (SMALL, 0))
            if published
        }
        check_equal(ours, theirs)
        cells = -(-flags["forwards"] // 2)
        sides = {"ours": timed(ours.run)}
        sides |= {name: partial(side.grid_seconds, cells) for name, side in theirs.items()}
        seconds = take_turns(sides, flags["rounds"])
    flops = {"ours": ours.flops} | {name: side.flops for name, side in theirs.items()}
    result: dict[str, Any] = {
        "sizes": {n: value for n, value in flags.items() if n not in ("peer", "out")},
        "load_average": os.getloadavg()[0],
        "forwards": {
            name: {
                "measured": 2 * cells * flags["rounds"],
                "of": 2 * side.cells,
                "milliseconds": spread([1e3 * s / 2 / side.cells for s in seconds[name]]),
            }
            for name, side in theirs.items()
        },
        "aim": AIM,
        "first_call_seconds": {"ours": first},
        **compared(seconds, flops, "ours"),
        "versions": {name: side.peer.versions for name, side in theirs.items()},
    }
    if published:
        result["owed_to_the_vocabulary"] = {
            "time": ratio(seconds, PUBLISHED, SMALL),
            "flop": flops[PUBLISHED] / flops[SMALL],
        }
    keep(result, flags["out"], "cross_query")


def make_pairs(model: Transformer, params: Params, pairs: int) -> dict[str, np.ndarray]:
    """Return random inputs of the instrument, with answers that all occur in some cells.

    The clean answer is the model's own. The expected composed answer is the model's answer to the
    source, because patching the whole state at the last position gives that answer.
    """
    random = np.random.default_rng(0)
    shape = (pairs, model.spec.n_ctx)
    source, target, composed = (
        random.integers(model.spec.d_vocab, size=shape, dtype=np.int32) for _ in range(3)
    )

    @jax.jit
    def answers(tokens: Any) -> Any:
        return model.forward(params, tokens)[0][:, -1].argmax(-1)

    clean, expected = (np.asarray(answers(tokens), np.int32) for tokens in (target, source))
    expected = np.where(expected == clean, np.int32(-1), expected)
    return {
        "source": source,
        "target": target,
        "composed": composed,
        "clean": clean,
        "direct": clean,
        "true": expected,
        "shuffled": np.roll(expected, 1),
    }


class Ours:
    """The instrument on all pairs, in one program."""

    def __init__(self, model: Transformer, params: Params, inputs: dict[str, np.ndarray]):
        self.model, self.params, self.inputs = model, params, inputs
        self._measure = jax.jit(
            lambda params, inputs: CrossQueryPatching().measure(
                model, params, inputs, jax.random.key(0)
            )
        )
        pairs, n_pos = inputs["source"].shape
        # In addition to the grid: the answers to the target and to the composed question.
        self.flops = cone_flops(model.spec, pairs, n_pos)
        self.flops += 2 * trimmed_flops(model.spec, pairs, n_pos)

    def run(self) -> dict[str, jax.Array]:
        """Return all outcomes."""
        return self._measure(self.params, self.inputs)

    def logits(self, pairs: int) -> np.ndarray:
        """Return the logits of some pairs' cells, [pair, layer, pos, d_vocab], from layer 1."""
        sites = cache_sites(self.model)

        @jax.jit
        def cells(params: Params, *tokens: Any) -> Any:
            donor, base = (self.model.forward(params, x, sites=sites)[1] for x in tokens)
            return patch_states(self.model, params, base, donor)[1:]

        sides = [self.inputs[run][:pairs] for run in ("source", "target")]
        return np.moveaxis(np.asarray(cells(self.params, *sides)), 2, 0)


class Published:
    """The same pairs in a separate process, one forward pass at a time."""

    def __init__(self, python: str, folder: Path, ours: Ours, other_tokens: int):
        """Write the model with `other_tokens` tokens before our tokens, and start the process."""
        spec = dataclasses.replace(ours.model.spec, d_vocab=other_tokens + ours.model.spec.d_vocab)
        draw = np.random.default_rng(0).standard_normal((other_tokens, spec.d_model), np.float32)
        embed = jnp.concatenate([spec.init_std * draw, ours.params["embed"]["W_E"]])
        save_gpt2(folder, Transformer(spec), ours.params | {"embed": {"W_E": embed}})
        columns = {"source": "source", "target": "target", "expected": "true"}
        pairs = {name: ours.inputs[column] + other_tokens for name, column in columns.items()}
        write_npz(folder / "pairs.npz", pairs)
        self._folder, self._first = folder, other_tokens
        self.peer: Peer = start_fastest(python, "cross_query_torch.py", folder, "4")
        count, n_pos = ours.inputs["source"].shape
        self.cells = count * spec.depth * n_pos
        self.flops = 2 * self.cells * run_flops(spec, 1, n_pos, logits_at=n_pos)

    def grid_seconds(self, cells: int) -> float:
        """Return the seconds of all cells, extrapolated from `cells` cells."""
        seconds: float = self.peer.ask(str(cells))["seconds"]
        return seconds / cells * self.cells

    def logits(self, pairs: int) -> np.ndarray:
        """Return the logits of our tokens, [pair, layer, pos, d_vocab], from layer 1 on."""
        self.peer.ask(f"logits {pairs}")
        found: np.ndarray = np.load(self._folder / "logits.npy")[..., self._first :]
        return found


def check_equal(ours: Ours, theirs: dict[str, Published]) -> None:
    """Check that all variants have the same logits, and that the outcomes agree with them."""
    cells = ours.logits(CHECKED)
    for name, side in theirs.items():
        np.testing.assert_allclose(side.logits(CHECKED), cells, rtol=0, atol=AS_CLOSE, err_msg=name)
    share = np.asarray(ours.run()["fraction"])[0, ..., :CHECKED]  # of the expected answers
    for outcome, name in zip(share[:2], ("clean", "true"), strict=True):
        said = cells.argmax(-1) == ours.inputs[name][:CHECKED, None, None]
        assert said.any(), f"no cell has the answer {name!r}: nothing is checked"
        np.testing.assert_array_equal(outcome[1:].transpose(2, 0, 1), said, err_msg=name)


if __name__ == "__main__":
    main(sys.argv[1:])
