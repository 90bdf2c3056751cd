"""SAELens's side of `synth_sae_bench.py`; `peer.Peer` starts it in the SAELens environment.

It uses the generator, the trainer and the evaluator of SAELens. Commands: `samples` writes the
samples if they are missing; `train VARIANT SEED` trains a dictionary; `evaluate NAME` evaluates a
dictionary of SAELens or of this package from the folder.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sae_lens import SAE, __version__
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.synthetic import (
    FoldedNormalMagnitudeConfig,
    HierarchyConfig,
    LinearMagnitudeConfig,
    LowRankCorrelationConfig,
    OrthogonalizationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
    eval_sae_on_synthetic_data,
)
from sae_lens.training.sae_trainer import SAETrainer
from sae_lens_trainer import trainer_config

# SynthSAEBench-16k with a sixteenth of its features and trees, and a sixth of its dimensions.
GENERATOR = SyntheticModelConfig(
    num_features=1024,
    hidden_dim=128,
    firing_probability=ZipfianFiringProbabilityConfig(exponent=0.5, max_prob=0.4, min_prob=5e-4),
    hierarchy=HierarchyConfig(
        total_root_nodes=8,
        branching_factor=4,
        max_depth=3,
        mutually_exclusive_portion=1.0,
        mutually_exclusive_min_depth=0,
        compensate_probabilities=True,
        scale_children_by_parent=True,
    ),
    orthogonalization=OrthogonalizationConfig(num_steps=100, lr=3e-4),
    correlation=LowRankCorrelationConfig(rank=25, correlation_scale=0.1),
    mean_firing_magnitudes=LinearMagnitudeConfig(start=5.0, end=4.0),
    std_firing_magnitudes=FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
    bias=0.5,
    seed=42,
)
VARIANTS = {
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "batch_topk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
}
DRAWN, EVALUATED = 4096, 200_000  # samples per batch; samples used for evaluation
TRAINING_SEED, EVALUATION_SEED = 0, 1


def main() -> None:
    """Answer commands until the input ends."""
    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(threads)
    case = json.loads((folder / "case.json").read_text())
    model = SyntheticModel(GENERATOR)
    versions = {"sae-lens": __version__, "torch": torch.__version__, "threads": threads}
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "samples":
            answer = write_samples(model, folder / case["samples"], case["steps"] * case["batch"])
        elif word == "train":
            answer = train(case, folder, rest[0], int(rest[1]))
        else:
            answer = evaluate(model, folder / rest[0])
        print(json.dumps(answer), flush=True)


def write_samples(model: SyntheticModel, path: Path, count: int) -> dict:
    """Write the training samples of both sides, unless they exist."""
    began, temporary = time.perf_counter(), path.with_suffix(".part")
    if not path.exists():
        torch.manual_seed(TRAINING_SEED)
        shape = (count, GENERATOR.hidden_dim)
        file = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        for start in range(0, count, DRAWN):
            drawn = model.sample(min(DRAWN, count - start))
            file[start : start + DRAWN] = drawn.numpy()
        file.flush()
        temporary.rename(path)
    return {"seconds": time.perf_counter() - began, "generator": GENERATOR.to_dict()}


def train(case: dict, folder: Path, variant: str, seed: int) -> dict:
    """Train one dictionary and save it in the inference format."""
    torch.manual_seed(seed)
    samples, batch = np.load(folder / case["samples"], mmap_mode="r"), case["batch"]
    make, make_config = VARIANTS[variant]
    sae = make(make_config(d_in=samples.shape[1], d_sae=case["d_sae"], k=case["k"]))

    def batches() -> Iterator[torch.Tensor]:
        for start in range(0, len(samples), batch):
            yield torch.tensor(samples[start : start + batch])

    config = trainer_config(len(samples), batch, case["learning_rate"])
    began = time.perf_counter()
    SAETrainer(config, sae, batches()).fit()
    seconds = time.perf_counter() - began
    sae.save_inference_model(str(folder / f"SAELens-{variant}-{seed}"))
    return {"seconds": seconds}


def evaluate(model: SyntheticModel, folder: Path) -> dict:
    """Evaluate a dictionary with SAELens's measures, always on the same new samples."""
    torch.manual_seed(EVALUATION_SEED)
    found = eval_sae_on_synthetic_data(
        SAE.load_from_disk(str(folder)),
        model.feature_dict,
        model.activation_generator,
        num_samples=EVALUATED,
        batch_size=DRAWN,
    )
    return {
        "f1": found.classification.f1_score,
        "mcc": found.mcc,
        "uniqueness": found.uniqueness,
        "explained_variance": found.explained_variance,
        "l0": found.sae_l0,
        "true_l0": found.true_l0,
        "precision": found.classification.precision,
        "recall": found.classification.recall,
        "dead": found.dead_latents,
    }


if __name__ == "__main__":
    main()
