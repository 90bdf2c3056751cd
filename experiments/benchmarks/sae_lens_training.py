"""SAELens's side of `dictionaries.py`; `peer.Peer` starts it in the SAELens environment.

`SAETrainer` trains on random batches from a pool of states, one dictionary after another, because
SAELens has no joint training. Commands: `steps N`, `quality`.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sae_lens import __version__
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from sae_lens_trainer import trainer_config


def main() -> None:
    """Answer commands until the input ends."""
    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(threads)
    case = json.loads((folder / "case.json").read_text())
    pool = torch.tensor(np.load(folder / "pool.npy"))
    trainers = [make_trainer(case, pool, seed) for seed in range(case["members"])]
    versions = {"sae-lens": __version__, "torch": torch.__version__, "threads": threads}
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        word, *numbers = line.split()
        answer = quality(trainers, pool) if word == "quality" else steps(trainers, int(numbers[0]))
        print(json.dumps(answer), flush=True)


def make_trainer(case: dict, pool: torch.Tensor, seed: int) -> SAETrainer:
    """Create the trainer of one dictionary, with its stream of batches."""
    torch.manual_seed(seed)
    config = TopKTrainingSAEConfig(
        d_in=pool.shape[1],
        d_sae=case["d_sae"],
        k=case["k"],
    )
    trainer = trainer_config(10**9, case["batch"], case["learning_rate"])

    def batches() -> Iterator[torch.Tensor]:
        while True:
            yield pool[torch.randint(len(pool), (case["batch"],))]

    return SAETrainer(trainer, TopKTrainingSAE(config), batches())


def steps(trainers: list[SAETrainer], count: int) -> dict:
    """Train every dictionary for `count` steps, as `fit` does, without a progress bar."""
    began = time.perf_counter()
    for trainer in trainers:
        for _ in range(count):
            trainer.maybe_reset_sparsity()
            trainer.step(next(trainer.data_provider))
            trainer.n_training_steps += 1
    return {"seconds": time.perf_counter() - began}


@torch.no_grad()
def quality(trainers: list[SAETrainer], pool: torch.Tensor) -> dict:
    """Return squared error and L0 of the first dictionary on some states."""
    sae, x = trainers[0].sae, pool[:8192]
    acts, _ = sae.encode_with_hidden_pre(x)
    out = sae.decode(acts)
    mse = (out - x).pow(2).sum(-1).mean()
    return {"mse": float(mse), "l0": float((acts > 0).float().sum(-1).mean())}


if __name__ == "__main__":
    main()
