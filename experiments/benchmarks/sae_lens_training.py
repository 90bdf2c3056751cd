"""SAELens's side of `dictionaries.py`: run under its own Python, started by `peer.Peer`.

Its `SAETrainer` steps on random batches of a pool of states, each dictionary after the other, as
one has to there. Commands: `steps N`, `quality`.
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
    """Answer commands until there are no more."""
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
    """One dictionary, with its stream of batches."""
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
    """So many steps of every dictionary, as `fit` takes them but for its bar."""
    began = time.perf_counter()
    for trainer in trainers:
        for _ in range(count):
            trainer.maybe_reset_sparsity()
            trainer.step(next(trainer.data_provider))
            trainer.n_training_steps += 1
    return {"seconds": time.perf_counter() - began}


@torch.no_grad()
def quality(trainers: list[SAETrainer], pool: torch.Tensor) -> dict:
    """Of the first on some states: squared error, active features."""
    sae, x = trainers[0].sae, pool[:8192]
    acts, _ = sae.encode_with_hidden_pre(x)
    out = sae.decode(acts)
    mse = (out - x).pow(2).sum(-1).mean()
    return {"mse": float(mse), "l0": float((acts > 0).float().sum(-1).mean())}


if __name__ == "__main__":
    main()
