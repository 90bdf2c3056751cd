"""Write and read the JSON folders of GrokkedTransformer, which Ye et al. use as well.

`train.json`, `valid.json` and `test.json` hold rows of text, `{"input_text": "<e_1><r_2>",
"target_text": "<e_1><r_2><e_3></a>"}`, in `test.json` with a "type", the split; `vocab.json` lists
the tokens. The layout says nothing of roles, seed, or splits that happen to be empty, so a
`meta.json` beside it does. Readers elsewhere pass it over, and so does ours when a file was changed
after it was written; then, as for published folders, a fact is `I` if a training chain uses it or
if its probe says so.

Source: OSU-NLP-Group/GrokkedTransformer, composition.ipynb; Jiaran-Ye/ImplicitReasoning,
data_preparation.ipynb.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_json
from implicit_reasoning.worlds.chains import Chains
from implicit_reasoning.worlds.dataset import (
    END_TOKEN,
    Dataset,
    Rows,
    assemble,
    prefix_keys,
    world_of,
)
from implicit_reasoning.worlds.exchange_text import ROW_FILES, Table, read_table
from implicit_reasoning.worlds.spelling import (
    Spelling,
    position_names,
    rows_from_chains,
    vocabulary,
)
from implicit_reasoning.worlds.world import NONE, ROLES, world_from_table

META_FORMAT = "implicit_reasoning exchange 1"
"""Tells our `meta.json` from another's."""

SPECIAL_TOKENS = ("<mask>", "<sep>", "<a>", END_TOKEN, "<q>", "</q>")
"""What published vocabularies end with; of these, rows of chains use only `</a>`."""

WANG_TYPES = {
    "id_triples": "id_atomic",
    "ood_triples": "ood_atomic",
    "train_ii": "train_inferred",
    "test_ii": "test_inferred_iid",
    "test_oo": "test_inferred_ood",
}
"""Wang et al.'s names of our splits; Ye et al.'s follow a rule, see `type_name`."""


def write_grokked(
    dataset: Dataset, folder: str | os.PathLike[str], wang_types: bool = False
) -> None:
    """Write a dataset as a folder that GrokkedTransformer trains on.

    `train.json` has the trained rows, `test.json` the probes of all splits, `valid.json` those of
    the all-`O` split (of the last split, where there is none). Nothing half-written ever stays.

    Args:
      dataset: a task of chains; every test row must be a probe, as `composition` makes it.
      folder: made when missing; files of the layout already there are replaced.
      wang_types: name the types as Wang et al. do instead of Ye et al.

    Raises:
      InputError: the dataset has no world, a row has no place, or a split no name in this layout.
    """
    texts = _spell(dataset, wang_types)
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        for name, text in texts.items():
            (Path(temporary) / name).write_text(text, encoding="utf-8")
        folder.mkdir(exist_ok=True)
        for name in texts:
            os.replace(Path(temporary) / name, folder / name)


def read_grokked(folder: str | os.PathLike[str], end_token: bool = True) -> Dataset:
    """Read such a folder, ours (then it is the dataset that was written) or a published one.

    Args:
      folder: with `train.json`, `valid.json`, `test.json` and `vocab.json`.
      end_token: supervise `</a>` too, as those who publish such folders do; ours say it themselves.

    Raises:
      InputError: a file is missing or cut short, has an unknown token, or does not fit the others.
    """
    folder = Path(folder)
    table = read_table(folder)
    meta = _read_meta(folder)
    if meta is None:
        return _rebuild(table, end_token)
    return _rebuild(table, meta["end_token"], meta["seed"], meta["roles"], meta["splits"])


def type_name(split: str, wang_types: bool = False) -> str:
    """A split's name in the layout: `train_ii` is "Train-II" (Ye) or "train_inferred" (Wang)."""
    if wang_types:
        if split not in WANG_TYPES:
            known = ", ".join(WANG_TYPES)
            raise InputError(f"Wang et al. have no type for split {split!r}, only for {known}")
        return WANG_TYPES[split]
    first, _, rest = split.partition("_")
    if rest == "triples":
        return f"{first.upper()} Triples"
    return f"{first.capitalize()}-{rest.upper().replace('_', '-')}"


def split_name(type_name: str) -> str:
    """The inverse of `type_name`, for both ways of naming."""
    ours = {theirs: split for split, theirs in WANG_TYPES.items()}
    return ours.get(type_name) or type_name.lower().replace("-", "_").replace(" ", "_")


# --- writing ---------------------------------------------------------------------------------


def _spell(dataset: Dataset, wang_types: bool) -> dict[str, str]:
    """The text of every file."""
    if not dataset.probe[dataset.n_train :].all():
        raise InputError("this layout has no place for test rows that are not probes")
    rows = _rows(dataset)
    types = [type_name(split, wang_types) for split in dataset.splits]
    test = [rows[i] | {"type": types[dataset.split[i]]} for i in np.flatnonzero(dataset.probe)]
    all_outside = f"test_{'o' * dataset.hops}"
    valid = all_outside if all_outside in dataset.splits else dataset.splits[-1]
    names = [name for name in dataset.vocab if name != END_TOKEN]
    files = {
        "train.json": json.dumps(rows[: dataset.n_train]),
        "test.json": json.dumps(test),
        "valid.json": json.dumps([rows[i] for i in dataset.probes(valid)]),
        "vocab.json": json.dumps([*names, *SPECIAL_TOKENS]),
    }
    return files | {"meta.json": json.dumps(_meta(dataset, files), indent=2)}


def _rows(dataset: Dataset) -> list[dict[str, str]]:
    position, answer = dataset.truth["position"], dataset.truth["answer"]
    names = np.array([*dataset.vocab, ""], object)  # token -1 spells as nothing
    prompt = names[dataset.tokens[:, 0]]
    for place in range(1, position.max(initial=0) + 1):  # one column at a time, all rows at once
        prompt = prompt + names[np.where(place <= position, dataset.tokens[:, place], NONE)]
    return [
        {"input_text": text, "target_text": f"{text}{end}{END_TOKEN}"}
        for text, end in zip(prompt.tolist(), names[answer].tolist(), strict=True)
    ]


def _meta(dataset: Dataset, files: dict[str, str]) -> dict[str, Any]:
    world = world_of(dataset)
    return {
        "format": META_FORMAT,
        "sha256": _digest(text.encode() for text in files.values()),
        "seed": world.seed,
        "end_token": END_TOKEN in dataset.vocab,
        "splits": dataset.splits,
        # One letter a fact, in row-major order of (head, relation).
        "roles": "".join(ROLES[role] for role in world.facts.role),
    }


def _digest(files: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for content in files:
        digest.update(content)
    return digest.hexdigest()


# --- reading ---------------------------------------------------------------------------------


def _read_meta(folder: Path) -> dict[str, Any] | None:
    """What `meta.json` says, None where it is missing, another's, or older than its neighbours."""
    if not (folder / "meta.json").exists():
        return None
    meta = read_json(folder / "meta.json")
    if not isinstance(meta, dict) or meta.get("format") != META_FORMAT:
        return None
    lacking = [key for key in ("sha256", "seed", "end_token", "splits", "roles") if key not in meta]
    if lacking or not set(meta["roles"]) <= set(ROLES):
        fault = f"it lacks {', '.join(lacking)}" if lacking else "it names roles there are not"
        raise InputError(f"{folder / 'meta.json'} was damaged: {fault}")
    if meta["sha256"] != _digest(
        (folder / name).read_bytes() for name in (*ROW_FILES, "vocab.json")
    ):
        warnings.warn(f"{folder} was changed after it was written: deriving roles", stacklevel=3)
        return None
    return meta


def _rebuild(
    table: Table,
    end_token: bool,
    seed: int = 0,
    roles: str | None = None,
    splits: Sequence[str] | None = None,
) -> Dataset:
    tail = _tails(table)
    facts = _facts(table, tail)
    if roles is None:
        role = _derive_roles(table, facts, int((tail >= 0).sum()))
    else:
        role = np.array([ROLES.index(letter) for letter in roles], np.int8)
    world = world_from_table(tail, role, seed)

    hops = int(table.hops.max())
    odd = np.flatnonzero((table.hops > 1) & (table.hops < hops))
    if len(odd):
        row = int(odd[0])
        raise table.error(row, f"{table.hops[row]} hops, but other rows have {hops}")
    trained_names = ["id_triples", "ood_triples", f"train_{'i' * hops}"]
    split = _splits(table, world.facts.role[facts[:, 0]], trained_names)
    twin = _twins(table)
    _check_agreement(table, split, twin)
    kept, probe = twin < 0, np.arange(len(twin)) >= table.n_train
    probe[twin[~kept]] = True  # a trained row's twin in test.json only says that it is a probe

    names = list(splits or dict.fromkeys([*trained_names, *split[kept]]))
    index = {name: np.flatnonzero(kept & (split == name)) for name in names}

    spelling = Spelling(end_token=end_token)

    def rows(name: str) -> Rows:
        length = 1 if name.endswith("triples") else hops
        chains = Chains(world, facts[index[name], :length])
        return rows_from_chains(chains, spelling, table.answer[index[name]])

    dataset = assemble(
        {name: rows(name) for name in names if name in trained_names},
        {name: rows(name) for name in names if name not in trained_names},
        vocab=vocabulary(world, spelling),
        positions=position_names(hops, spelling),
        probes=0,
        world=world,
    )
    order = np.concatenate([index[name] for name in dataset.splits])
    return dataclasses.replace(dataset, probe=probe[order])


def _tails(table: Table) -> Int[np.ndarray, "entity relation"]:
    """The facts that the atomic rows state; -1 where there is none."""
    atomic = np.flatnonzero(table.hops == 1)
    cell = table.prompt[atomic, 0], table.prompt[atomic, 1] - table.n_entities
    tail = np.full((table.n_entities, table.n_relations), NONE, np.int32)
    tail[cell] = table.answer[atomic]
    contradicted = atomic[tail[cell] != table.answer[atomic]]
    if len(contradicted):
        row = int(contradicted[0])
        raise table.error(row, f"another row gives {table.name(row)} another answer")
    return tail


def _facts(table: Table, tail: np.ndarray) -> Int[np.ndarray, "row hop"]:
    """int32 [row, hop]: the facts behind each row, found by walking its relations; -1 after it."""
    fact_id = world_from_table(tail, 0).fact_id
    facts = np.full((len(table.prompt), table.prompt.shape[1] - 1), NONE, np.int32)
    entity = table.prompt[:, 0].copy()
    for hop in range(facts.shape[1]):
        walking = np.flatnonzero(table.hops > hop)
        cell = entity[walking], table.prompt[walking, hop + 1] - table.n_entities
        lost = walking[fact_id[cell] < 0]
        if len(lost):
            row = int(lost[0])
            what = f"no atomic row says where hop {hop + 1} of {table.name(row)} leads"
            raise table.error(row, what)
        facts[walking, hop] = fact_id[cell]
        entity[walking] = tail[cell]
    return facts


def _derive_roles(table: Table, facts: np.ndarray, n_facts: int) -> Int[np.ndarray, "fact"]:
    role = np.full(n_facts, ROLES.index("O"), np.int8)
    chains = facts[: table.n_train][table.hops[: table.n_train] > 1]
    role[chains[chains >= 0]] = ROLES.index("I")
    types = [split_name(name) for name in table.types]
    probed = [table.n_train + i for i, name in enumerate(types) if name == "id_triples"]
    role[facts[probed, 0]] = ROLES.index("I")
    return role


def _splits(table: Table, first_role: np.ndarray, trained_names: list[str]) -> np.ndarray:
    """A trained row's split follows from its form and its fact's role, a test row's is its type."""
    n_train = table.n_train
    which = np.where(table.hops[:n_train] > 1, 2, first_role[:n_train] == ROLES.index("O"))
    types = [split_name(name) for name in table.types]
    return np.concatenate([np.array(trained_names, object)[which], np.array(types, object)])


def _twins(table: Table) -> np.ndarray:
    """int [row]: the row of `train.json` with the same prompt as a row of `test.json`; else -1."""
    keys = prefix_keys(table.prompt, table.n_entities + table.n_relations)[:, -1]
    trained, tested = keys[: table.n_train], keys[table.n_train :]
    distinct, first = np.unique(trained, return_index=True)
    place = np.minimum(np.searchsorted(distinct, tested), len(distinct) - 1)
    twin = np.where(distinct[place] == tested, first[place], NONE)
    return np.concatenate([np.full(table.n_train, NONE), twin])


def _check_agreement(table: Table, split: np.ndarray, twin: np.ndarray) -> None:
    trained = set(split[: table.n_train])
    for row in range(table.n_train, len(split)):
        if twin[row] < 0 and split[row] in trained:
            raise table.error(row, f"{table.name(row)} of {split[row]} is not in train.json")
        if twin[row] >= 0 and split[row] != split[twin[row]]:
            what = f"{table.name(row)} of {split[row]} is in train.json, as {split[twin[row]]}"
            raise table.error(row, what)
