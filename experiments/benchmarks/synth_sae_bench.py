"""Do dictionaries find what data is made of? On SynthSAEBench, against SAELens, by its evaluator.

    make .peers/sae_lens/.installed
    taskset -c 0 python experiments/benchmarks/synth_sae_bench.py

The data is SAELens's: 1,024 features that are correlated and form trees, in 128 dimensions, all
else as in SynthSAEBench-16k (Chanin and Garriga-Alonso 2026, arXiv:2602.14687). Both sides are
trained on the same 10 million samples, with the same width, k, batch, learning rate and steps, all
but their number as that benchmark has them: a quarter as many features to learn with as the data
has, and a k near what is active of the data's most frequent quarter (5.6 of 7.3).

Both sides are saved as SAELens saves dictionaries for use, which makes BatchTopK a JumpReLU, then
read and measured by SAELens on the same fresh samples. Ours draws from its part of the samples at
random, with replacement; SAELens takes each sample once. Seconds are of training alone.

Aim: F1, MCC and uniqueness within 2% of SAELens's or better, with TopK and BatchTopK, 3 seeds. Our
Matryoshka and JumpReLU are trained with one seed, to name the best.

What is done is kept: samples (5 GB) and dictionaries in `--folder`, numbers in `--out`; after an
interruption it goes on from there.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from machines import made_on, result_file
from outfile import OUT
from peer import Peer

from implicit_reasoning.config import Flag, parse_flags
from implicit_reasoning.dictionaries.activations import BatchTopK, JumpReLU, Matryoshka, TopK
from implicit_reasoning.dictionaries.architectures import Autoencoder
from implicit_reasoning.dictionaries.dictionary import Dictionary
from implicit_reasoning.dictionaries.exchange import save_saelens
from implicit_reasoning.dictionaries.steps import (
    DictionaryRecipe,
    DictionaryTrainingSettings,
    Pool,
    TrainingData,
)
from implicit_reasoning.files import write_json

FLAGS = {
    "seeds": 3,
    "steps": 9766,
    "peer": ".peers/sae_lens/bin/python",
    "folder": Flag(kind=Path, default=Path("runs/synth_sae_bench")),
    "out": OUT,
}
D_SAE, K, BATCH, RATE = 256, 6, 1024, 3e-4
POOL = 512  # steps that take their batches from one part of the samples
VARIANTS = {
    "topk": (TopK(max_k=K), float(K)),
    "batch_topk": (BatchTopK(), float(K)),
    "matryoshka": (Matryoshka(widths=(D_SAE // 8, D_SAE // 4, D_SAE // 2)), float(K)),
    # Sizes are near 4.5: what is near 2 pays for being active, by a kernel a tenth as wide.
    "jumprelu": (JumpReLU(bandwidth=0.2), 3.0),
}
COMPARED = ("topk", "batch_topk")
AIMED = ("f1", "mcc", "uniqueness")
SAID = (*AIMED, "explained_variance", "l0", "seconds")
WITHIN = 0.98


def main(argv: list[str]) -> None:
    """Train and measure what has not been yet, and write what was found."""
    flags, _ = parse_flags(argv, FLAGS)
    folder, out = flags["folder"], result_file(flags["out"], "synth_sae_bench")
    folder.mkdir(parents=True, exist_ok=True)
    case = {"steps": flags["steps"], "batch": BATCH, "d_sae": D_SAE, "k": K, "learning_rate": RATE}
    result = json.loads(out.read_text()) if out.exists() else {"case": case, "found": {}}
    if result["case"] != case:
        raise SystemExit(f"{out} holds another case, {result['case']}: name another with --out")
    file = folder / f"samples_{flags['steps'] * BATCH}.npy"
    (folder / "case.json").write_text(json.dumps({**case, "samples": file.name}))
    peer = Peer(flags["peer"], "synth_sae_bench_torch.py", folder)
    drawn = peer.ask("samples")
    samples = np.load(file, mmap_mode="r")
    for name in names(flags["seeds"]):
        if name in result["found"]:
            continue
        side, variant, seed = name.split("-")
        if side == "ours":
            seconds = train(variant, int(seed), samples, flags["steps"], folder / name)
        else:
            seconds = peer.ask(f"train {variant} {seed}")["seconds"]
        result["found"][name] = {"seconds": seconds, **peer.ask(f"evaluate {name}")}
        result |= {
            "summary": summary(result["found"]),
            "ours": {
                name: f"{made}, sparsity {number}" for name, (made, number) in VARIANTS.items()
            },
            "generator": drawn["generator"],
            "versions": peer.versions,
            **made_on(),
        }
        write_json(out, result)
        show(name, result["found"][name])
    peer.close()
    for variant, numbers in result["summary"]["ours_over_theirs"].items():
        show(f"ours over SAELens, {variant}", numbers)
    print("best of ours:", result["summary"]["best_of_ours"])
    missed = [variant for variant, reached in result["summary"]["reached"].items() if not reached]
    if missed:
        raise SystemExit(f"not within {WITHIN} of SAELens's: {', '.join(missed)}")


def show(name: str, numbers: dict[str, float]) -> None:
    """One line."""
    said = (f"{key} {numbers[key]:.3f}" for key in SAID)
    print(f"{name}:", ", ".join(said), flush=True)


def names(n_seeds: int) -> list[str]:
    """All dictionaries, as side, variant and seed: seed by seed, then what is trained once."""
    sides = ("SAELens", "ours")
    compared = [f"{s}-{v}-{seed}" for seed in range(n_seeds) for v in COMPARED for s in sides]
    return compared + [f"ours-{v}-0" for v in VARIANTS if v not in COMPARED]


def train(variant: str, seed: int, samples: np.ndarray, steps: int, folder: Path) -> float:
    """Train one of ours and write it for SAELens; seconds of training."""
    made, sparsity = VARIANTS[variant]
    width = samples.shape[1]
    dictionary = Dictionary(Autoencoder(width, width, D_SAE), made)
    settings = DictionaryTrainingSettings(
        steps=steps,
        batch_size=BATCH,
        learning_rate=RATE,
        sparsity_warmup_steps=steps // 2,  # of k nothing warms up
        bias_at_mean=False,
    )
    recipe = DictionaryRecipe(dictionary, settings)
    advance = jax.jit(recipe.advance, donate_argnums=0)
    began, state = time.perf_counter(), None
    for start in range(0, steps, POOL):
        count = min(POOL, steps - start)
        x = jnp.asarray(samples[start * BATCH : (start + count) * BATCH])
        pool = Pool(x, x, jnp.zeros(1, jnp.int32), jnp.full(1, len(x), jnp.int32))
        lot = TrainingData(pool, jnp.float32(sparsity), jax.random.key(seed))
        if state is None:
            state = jax.jit(recipe.begin)(lot)
        state, _ = advance(state, lot, jnp.int32(start), jnp.int32(count))
    assert state is not None
    params = dictionary.finish(state.params, state.threshold, jnp.float32(sparsity))
    jax.block_until_ready(params)
    seconds = time.perf_counter() - began
    save_saelens(folder, dictionary.for_inference(), params, read="sample", write="sample")
    return seconds


def summary(found: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Means over seeds, how ours compares, and which of ours has the best F1."""
    seen: dict[str, list[dict[str, float]]] = {}
    for name, numbers in found.items():
        seen.setdefault(name.rpartition("-")[0], []).append(numbers)
    means = {
        name: {key: float(np.mean([one[key] for one in runs])) for key in runs[0]}
        for name, runs in seen.items()
    }
    ratios = {
        variant: {
            key: means[f"ours-{variant}"][key] / means[f"SAELens-{variant}"][key] for key in SAID
        }
        for variant in COMPARED
        if {f"ours-{variant}", f"SAELens-{variant}"} <= means.keys()
    }
    ours = [name for name in means if name.startswith("ours")]
    reached = {v: all(ratio[key] >= WITHIN for key in AIMED) for v, ratio in ratios.items()}
    return {
        "means": means,
        "seeds": {name: len(runs) for name, runs in seen.items()},
        "ours_over_theirs": ratios,
        "reached": reached,
        "best_of_ours": max(ours, key=lambda name: means[name]["f1"], default=None),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
