r"""How fast is cross-query patching? The instrument, and the published way: one pass after another.

    make .peers/huggingface/.installed
    python experiments/benchmarks/cross_query.py
    taskset -c 0 python experiments/benchmarks/cross_query.py      # one core, as the aim was set

The published grid (Ye et al. 2025, the notebook of the figure): 2,000 pairs of questions x 8 layers
x 3 positions, and two forward passes for each cell - the source's is made anew -, one question at a
time, with hooks: 96,000 passes of a GPT-2 of 8 layers x 768. The sides take turns in one run, each
with every core:
- `ours`: `CrossQuery.measure` on all pairs, compiled: every cell of the grid and layer 0 besides,
  both runs, the composed question, all shares; our vocabulary of 2,200 tokens;
- `published`: HuggingFace's GPT-2 in PyTorch, written here anew; GPT-2's 50,257 tokens beside ours,
  as there. At least 300 passes are measured, the grid is extrapolated from them;
- `published, small vocabulary`: the same with our 2,200 tokens only. What the ratio of the two
  published sides says is owed to the vocabulary alone.
`--peer=none` leaves the published sides out.
Before anything is timed, logits of all cells of some pairs are held equal on all sides, and our
outcomes to what they say. Aim: 80 times as fast as `published`. FLOPs are of matrix products, by
shapes.

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
AS_CLOSE, CHECKED = 1e-3, 2  # logits of a cell; pairs of which all cells are held equal
PUBLISHED, SMALL = "published", "published, small vocabulary"


def main(argv: list[str]) -> None:
    """Check, take turns, write seconds of the whole grid, FLOPs and ratios."""
    flags, _ = parse_flags(argv, FLAGS)
    published = flags["peer"] != "none"
    if published and (forwards := flags["rounds"] * flags["forwards"]) < FEWEST_FORWARDS:
        raise InputError(f"{forwards} passes are too few to extrapolate; {FEWEST_FORWARDS} are not")
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
    """Inputs of the instrument: random questions, and answers such that some cells have each.

    The clean answer is the model's own, the composed one what it answers to the source: that
    follows where the whole state at the end is exchanged.
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
    """The instrument on all pairs, one program."""

    def __init__(self, model: Transformer, params: Params, inputs: dict[str, np.ndarray]):
        self.model, self.params, self.inputs = model, params, inputs
        self._measure = jax.jit(
            lambda params, inputs: CrossQueryPatching().measure(
                model, params, inputs, jax.random.key(0)
            )
        )
        pairs, n_pos = inputs["source"].shape
        # Beside the grid: what is answered to the target's and to the composed question.
        self.flops = cone_flops(model.spec, pairs, n_pos)
        self.flops += 2 * trimmed_flops(model.spec, pairs, n_pos)

    def run(self) -> dict[str, jax.Array]:
        """All outcomes."""
        return self._measure(self.params, self.inputs)

    def logits(self, pairs: int) -> np.ndarray:
        """Of the cells of some pairs, [pair, layer, pos, d_vocab]; layers from 1 on."""
        sites = cache_sites(self.model)

        @jax.jit
        def cells(params: Params, *tokens: Any) -> Any:
            donor, base = (self.model.forward(params, x, sites=sites)[1] for x in tokens)
            return patch_states(self.model, params, base, donor)[1:]

        sides = [self.inputs[run][:pairs] for run in ("source", "target")]
        return np.moveaxis(np.asarray(cells(self.params, *sides)), 2, 0)


class Published:
    """The same pairs in another process, a forward pass at a time."""

    def __init__(self, python: str, folder: Path, ours: Ours, other_tokens: int):
        """Write the model, with so many other tokens before ours, and start."""
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
        """Of all cells, from those of so many."""
        seconds: float = self.peer.ask(str(cells))["seconds"]
        return seconds / cells * self.cells

    def logits(self, pairs: int) -> np.ndarray:
        """Of our tokens, [pair, layer, pos, d_vocab]; layers from 1 on."""
        self.peer.ask(f"logits {pairs}")
        found: np.ndarray = np.load(self._folder / "logits.npy")[..., self._first :]
        return found


def check_equal(ours: Ours, theirs: dict[str, Published]) -> None:
    """All sides have the same logits, and the instrument's outcomes are what these say."""
    cells = ours.logits(CHECKED)
    for name, side in theirs.items():
        np.testing.assert_allclose(side.logits(CHECKED), cells, rtol=0, atol=AS_CLOSE, err_msg=name)
    share = np.asarray(ours.run()["fraction"])[0, ..., :CHECKED]  # of the answers that are expected
    for outcome, name in zip(share[:2], ("clean", "true"), strict=True):
        said = cells.argmax(-1) == ours.inputs[name][:CHECKED, None, None]
        assert said.any(), f"no cell has the answer {name!r}: nothing is checked"
        np.testing.assert_array_equal(outcome[1:].transpose(2, 0, 1), said, err_msg=name)


if __name__ == "__main__":
    main(sys.argv[1:])
