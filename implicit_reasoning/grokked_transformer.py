"""Import of a GrokkedTransformer run: its checkpoints and data become a run directory.

The vocabulary of an original run consists of the 50,257 tokens of GPT-2, the symbols of the world,
and padding to a multiple of 8. The original model has 1,024 positions. The import keeps only the
embeddings of the symbols and of the positions that occur in the data. The logits of the kept tokens
do not change. Softmax and ranks are computed over the kept tokens only, so an answer that ranked
below a token of GPT-2 in the original run can count as correct in the imported run.

The original runs did not save their initialization, so an imported run has no step 0.

Source: OSU-NLP-Group/GrokkedTransformer, main.py and simpletransformers/seq2seq (contents of
checkpoints, numbering of tokens).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from implicit_reasoning.errors import InputError
from implicit_reasoning.files import atomic_folder, read_json, write_json, write_npz
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.exchange import load_gpt2
from implicit_reasoning.paths import local_folder, local_path
from implicit_reasoning.runs import Checkpoints, Layout, Run, check_path, write_config
from implicit_reasoning.runtime.machine import provenance
from implicit_reasoning.runtime.progress import ProgressBar
from implicit_reasoning.runtime.writers import MetricsFile
from implicit_reasoning.training.evaluation import NEVER, Evaluation
from implicit_reasoning.training.record import open_tensorboard
from implicit_reasoning.worlds import Dataset, read_grokked

GPT2_TOKENS = 50_257
"""The number of tokens of GPT-2, which come before the symbols of the world."""

_PADDED_TO = 8

# The original training arguments that describe the optimization.
_RECIPE = (
    *("learning_rate", "weight_decay", "warmup_steps", "scheduler", "adam_epsilon"),
    *("max_grad_norm", "train_batch_size", "gradient_accumulation_steps", "max_steps"),
    *("manual_seed", "fp16"),
)


class Checkpoint(NamedTuple):
    """A checkpoint folder of the original run, with its training step."""

    step: int
    folder: Path


def import_grokked(
    source: str | os.PathLike[str], data: str | os.PathLike[str], workdir: str | os.PathLike[str]
) -> Run:
    """Create a run directory from a GrokkedTransformer run and evaluate it on every split.

    Args:
      source: the original `--output_dir`, with folders `checkpoint-<step>` in HuggingFace format.
      data: the original `--data_dir`, with `train.json`, `test.json`, `valid.json` and
        `vocab.json`.
      workdir: directory of the new run, which must be missing or empty. The directory appears in
        one atomic step, after all files are complete.

    Returns:
      The opened run. Its configuration contains the model and, under `recipe`, the original
      training arguments that are stored in the checkpoints.

    Raises:
      InputError: a file is missing or truncated, or two files contradict each other.
    """
    files = Layout(local_path(workdir, "workdir").resolve())
    check_path(files.workdir)
    if files.workdir.exists() and (not files.workdir.is_dir() or any(files.workdir.iterdir())):
        raise InputError(f"{workdir} is not empty; choose an empty or a new folder as --workdir")
    checkpoints = find_checkpoints(local_folder(source, "source"))
    data = local_folder(data, "data")
    dataset = read_grokked(data)
    with atomic_folder(files.workdir) as made:
        _write(Layout(made), dataset, checkpoints, data)
    return Run(workdir)


def published(task: Any) -> Dataset:
    """Build the dataset of an imported run from the JSON files in `task.folder`."""
    return read_grokked(task.folder)


def find_checkpoints(source: Path) -> list[Checkpoint]:
    """Return the checkpoints of an original run, in ascending order of their steps.

    If two folders have the same step, the folder without an epoch in its name is used.

    Raises:
      InputError: `source` is not a folder, or contains no checkpoint.
    """
    if not source.is_dir():
        raise InputError(
            f"{source} is not a folder; give the --output_dir of the GrokkedTransformer run"
        )
    found: dict[int, Path] = {}
    for folder in sorted(source.iterdir()):
        if name := re.fullmatch(r"checkpoint-(\d+)(-epoch-\d+)?", folder.name):
            found.setdefault(int(name[1]), folder)
    if not found:
        raise InputError(
            f"{source} contains no folder checkpoint-<step>; give the --output_dir of the "
            "GrokkedTransformer run"
        )
    return [Checkpoint(*item) for item in sorted(found.items())]


def token_ids(
    folder: Path, symbols: Sequence[str], vocab: Path, d_vocab: int
) -> Int[np.ndarray, " token"]:
    """Return the token id of each symbol of the world in the vocabulary of a checkpoint.

    Args:
      folder: the checkpoint folder. The ids are read from a tokenizer file: `added_tokens.json`,
        `tokenizer.json` or `tokenizer_config.json`.
      symbols: the symbols of the world.
      vocab: path of the `vocab.json` of the data. Without a tokenizer file, the order of the
        symbols in `vocab.json` determines the ids. In this case, `d_vocab` must be 50,257 plus the
        number of symbols, rounded up to a multiple of 8.
      d_vocab: vocabulary size of the checkpoint.

    Returns:
      int64 [token].

    Raises:
      InputError: a file is malformed, a symbol has no id below `d_vocab`, or two symbols share an
        id.
    """
    numbers = _added_tokens(folder)
    if numbers is None:
        listed = read_json(vocab)
        size = -(-(GPT2_TOKENS + len(listed)) // _PADDED_TO) * _PADDED_TO
        if size != d_vocab:
            raise InputError(
                f"the model in {folder} has {d_vocab:,} tokens, but {size:,} are expected (the "
                f"tokens of GPT-2, the {len(listed):,} symbols of {vocab}, and padding); check "
                "that the run was trained on this data, or add a tokenizer file"
            )
        numbers = {name: GPT2_TOKENS + place for place, name in enumerate(listed)}
    ids = [numbers.get(symbol) for symbol in symbols]
    for symbol, number in zip(symbols, ids, strict=True):
        if not isinstance(number, int) or not 0 <= number < d_vocab:
            raise InputError(
                f"the symbol {symbol} of {vocab} has the token id {number} in {folder}, but ids "
                f"must be from 0 to {d_vocab - 1:,}; check that the run was trained on this data"
            )
    if len(set(ids)) < len(ids):
        raise InputError(
            f"two symbols of {vocab} have the same token id in {folder}; check that the run was "
            "trained on this data"
        )
    return np.array(ids, np.int64)


def _added_tokens(folder: Path) -> dict[str, Any] | None:
    """Return the ids of a tokenizer's added tokens, or None if there is no tokenizer file."""
    readers = {
        "added_tokens.json": lambda content: dict(content.items()),
        "tokenizer.json": lambda content: {t["content"]: t["id"] for t in content["added_tokens"]},
        "tokenizer_config.json": lambda content: {
            token["content"]: int(number)
            for number, token in content["added_tokens_decoder"].items()
        },
    }
    for name, numbers_of in readers.items():
        if (folder / name).exists():
            try:
                return numbers_of(read_json(folder / name))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise InputError(
                    f"{folder / name} is not a valid list of a tokenizer's added tokens: {error!r}"
                ) from None
    return None


def _write(files: Layout, dataset: Dataset, checkpoints: Sequence[Checkpoint], data: Path) -> None:
    """Write all files of the new run."""
    first = _load(checkpoints[0], dataset, data)[0]
    evaluation = Evaluation(first, dataset)
    first_correct = np.full(len(evaluation.rows), NEVER, np.int32)
    with (
        contextlib.closing(Checkpoints(files.checkpoints)) as store,
        contextlib.closing(MetricsFile(files.metrics, resumed_at=NEVER)) as metrics,
        ProgressBar(len(checkpoints), unit="checkpoint") as bar,
    ):
        for checkpoint in checkpoints:
            model, params = _load(checkpoint, dataset, data)
            if model != first:
                raise InputError(
                    f"{checkpoint.folder} and {checkpoints[0].folder} contain different models "
                    f"({model.spec} and {first.spec}); all checkpoints of a run must contain the "
                    "same architecture"
                )
            store.save(checkpoint.step, params)
            outcome = evaluation.launch(params)
            first_correct = evaluation.first_correct(first_correct, checkpoint.step, outcome)
            summary = evaluation.summary(outcome)
            summary |= evaluation.intervals.columns(evaluation.correct(outcome))
            metrics.write({"step": checkpoint.step, **summary, "time": time.time()})
            bar.advance()

    write_npz(files.first_correct, {"row": evaluation.rows, "step": first_correct})
    dataset.save(files.world)
    config = _config(first, checkpoints[-1], data)
    open_tensorboard(files, config, dataset, metrics.rows).close()
    # The start is recorded after the metrics are written, because the metrics do not come from
    # training on this machine.
    start = {"step": 0, "time": time.time(), "imported": str(checkpoints[-1].folder.parent)}
    write_json(files.provenance, [{**start, **provenance()}])
    write_config(files.config, config)


def _load(checkpoint: Checkpoint, dataset: Dataset, data: Path) -> tuple[Transformer, Params]:
    """Load the model and parameters of a checkpoint, reduced to the tokens and positions in use."""
    model, params = load_gpt2(checkpoint.folder)
    spec = model.spec
    if spec.n_ctx < dataset.n_ctx:
        raise InputError(
            f"the model in {checkpoint.folder} has {spec.n_ctx} positions, but the rows of {data} "
            f"have {dataset.n_ctx} tokens; check that the run was trained on this data"
        )
    ids = token_ids(checkpoint.folder, dataset.vocab, data / "vocab.json", spec.d_vocab)
    cut = {
        "embed": {"W_E": params["embed"]["W_E"][ids]},
        "pos_embed": {"W_pos": params["pos_embed"]["W_pos"][: dataset.n_ctx]},
    }
    if not spec.tied:
        cut["unembed"] = {"W_U": params["unembed"]["W_U"][:, jnp.asarray(ids)]}
    spec = dataclasses.replace(spec, d_vocab=dataset.n_vocab, n_ctx=dataset.n_ctx)
    return Transformer(spec), params | cut


def _config(model: Transformer, last: Checkpoint, data: Path) -> ConfigDict:
    """Return the part of the run's configuration that can be read from the checkpoints."""
    theirs = read_json(last.folder / "config.json")
    arguments = last.folder / "model_args.json"
    recipe = read_json(arguments) if arguments.exists() else {}
    if not isinstance(recipe, dict):
        raise InputError(
            f"{arguments} contains a JSON {type(recipe).__name__}; it must contain a JSON object"
        )
    shape = dataclasses.asdict(model.spec)
    del shape["d_vocab"], shape["n_ctx"]  # These two are determined by the dataset.
    return ConfigDict(
        {
            "steps": last.step,
            "task": {
                "name": "implicit_reasoning.grokked_transformer:published",
                "folder": str(data.absolute()),
            },
            # 0.1 is the default of GPT2Config.
            "model": shape | {"dropout": theirs.get("resid_pdrop", 0.1)},
            "recipe": {name: recipe[name] for name in _RECIPE if name in recipe},
            "writers": {"tensorboard": True},
        }
    )
