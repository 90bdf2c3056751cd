"""Reading and writing of GrokkedTransformer's JSON folders, which Ye et al. also use.

The files `train.json`, `valid.json` and `test.json` contain rows of text such as `{"input_text":
"<e_1><r_2>", "target_text": "<e_1><r_2><e_3></a>"}`. Rows of `test.json` also have a "type", which
is the split. `vocab.json` lists the tokens. Rows of every task can be written. Only rows of chains
with the entity first and one token per entity can be read.

The published layout does not store roles, the seed, empty splits, or facts without an atomic row.
`write_grokked` writes this information to an additional file, `meta.json`, which other programs
ignore. `read_grokked` ignores `meta.json` if another file of the folder has changed since
`meta.json` was written. Without a valid `meta.json`, `read_grokked` takes the facts from the atomic
rows. The roles of these facts then follow from the training chains and from the types of the rows
in `test.json`.

Source: OSU-NLP-Group/GrokkedTransformer, composition.ipynb, comparison.ipynb;
Jiaran-Ye/ImplicitReasoning, data_preparation.ipynb.
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
from implicit_reasoning.paths import local_folder
from implicit_reasoning.worlds.dataset import (
    END_TOKEN,
    Dataset,
    Rows,
    assemble,
    make_rows,
    prefix_keys,
    world_of,
)
from implicit_reasoning.worlds.exchange_text import ROW_FILES, TextRows, read_table
from implicit_reasoning.worlds.spelling import (
    Spelling,
    chain_truth,
    position_names,
    vocabulary,
)
from implicit_reasoning.worlds.world import NONE, ROLES, World, world_from_table

META_FORMAT = "implicit_reasoning exchange 2"
"""Identifies a `meta.json` that this package wrote."""

META_KEYS = ("sha256", "seed", "end_token", "splits", "roles", "heads", "relations", "tails")

SPECIAL_TOKENS = ("<mask>", "<sep>", "<a>", END_TOKEN, "<q>", "</q>")
"""Special tokens of all published vocabularies.

Rows of chains use only `</a>`; comparisons also use <q> and <mask>.
"""

WANG_TYPES = {
    "id_triples": "id_atomic",
    "ood_triples": "ood_atomic",
    "train_ii": "train_inferred",
    "test_ii": "test_inferred_iid",
    "test_oo": "test_inferred_ood",
}
"""The names that Wang et al. give to splits. The names of Ye et al. follow a rule: `type_name`."""


def write_grokked(
    dataset: Dataset, folder: str | os.PathLike[str], wang_types: bool = False
) -> None:
    """Write a dataset as a folder that GrokkedTransformer can train on.

    `train.json` has the training rows. `test.json` has the probes of all splits. `valid.json` has
    the probes of one split: the chains in which every fact has the role `O` or, if there are none,
    the last split. Each file is replaced atomically.

    Args:
      dataset: a dataset of any task. Every test row must be a probe, as in all tasks of this
        package.
      folder: created if it is missing; existing files of the layout are replaced.
      wang_types: True to use the split names of Wang et al., False to use those of Ye et al.

    Raises:
      InputError: the layout cannot represent a row or the name of a split.
    """
    texts = _spell(dataset, wang_types)
    folder = local_folder(folder, "folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        for name, text in texts.items():
            (Path(temporary) / name).write_text(text, encoding="utf-8")
        folder.mkdir(exist_ok=True)
        for name in texts:
            os.replace(Path(temporary) / name, folder / name)


def read_grokked(folder: str | os.PathLike[str], end_token: bool = True) -> Dataset:
    """Read a published folder, or a folder that `write_grokked` wrote.

    For a folder that `write_grokked` wrote, the result equals the original dataset, except that the
    column `decoy` of a `shadow` dataset is missing. Published folders may train on chains of facts
    that no atomic row states ("without ID triples"). Such a fact and the following facts and
    entities of the chain are unknown, and their truth columns are -1. A warning states the number
    of chains with unknown facts. The tokens of these chains are complete.

    Args:
      folder: a folder with `train.json`, `valid.json`, `test.json` and `vocab.json`.
      end_token: whether to supervise `</a>`, as the publications do. A setting in `meta.json`
        overrides this argument.

    Raises:
      InputError: a file is missing, truncated, inconsistent with the other files, or has an unknown
        token.
    """
    folder = local_folder(folder, "folder")
    table = read_table(folder)
    meta = _read_meta(folder)
    if meta is None:
        return _rebuild(table, end_token, _derive_world(table), None)
    return _rebuild(table, meta["end_token"], _world_of_meta(folder, meta, table), meta["splits"])


def type_name(split: str, wang_types: bool = False) -> str:
    """Return the name that GrokkedTransformer files use for a split.

    For `train_ii`, the name is "Train-II" (Ye et al.) or "train_inferred" (Wang et al.).

    Args:
      split: name of a split in this package.
      wang_types: True for the names of Wang et al., False for those of Ye et al.

    Raises:
      InputError: Wang et al. do not have this split.
    """
    if wang_types:
        if split not in WANG_TYPES:
            known = ", ".join(WANG_TYPES)
            raise InputError(
                f"Wang et al. do not have the split {split!r}, only {known}; use the names of "
                "Ye et al. (wang_types=False)"
            )
        return WANG_TYPES[split]
    if split.endswith("id_triples") and split != "id_triples":
        return f"{split.removesuffix('_id_triples').replace('_', '-').capitalize()} ID Triples"
    first, _, rest = split.partition("_")
    if rest == "triples":
        return f"{first.upper()} Triples"
    return f"{first.capitalize()}-{rest.upper().replace('_', '-')}"


def split_name(type_name: str) -> str:
    """Return the split that a name of Wang et al. or Ye et al. denotes.

    This is the inverse of `type_name`: "Train-II" gives `train_ii`.
    """
    ours = {theirs: split for split, theirs in WANG_TYPES.items()}
    ours["Retained ID Triples"] = "id_triples"  # Ye et al., in contrast to "Held-out ID Triples"
    return ours.get(type_name) or type_name.lower().replace("-", "_").replace(" ", "_")


# --- writing ---------------------------------------------------------------------------------


def _spell(dataset: Dataset, wang_types: bool) -> dict[str, str]:
    """Return the text of every file, by file name."""
    if not dataset.probe[dataset.n_train :].all():
        raise InputError(
            "GrokkedTransformer's files can store a test row only if it is a probe, but "
            "some test rows of this dataset are not probes; increase task.probes"
        )
    rows = _rows(dataset)
    types = [type_name(split, wang_types) for split in dataset.splits]
    test = [rows[i] | {"type": types[dataset.split[i]]} for i in np.flatnonzero(dataset.probe)]
    all_outside = f"test_{'o' * dataset.hops}"
    valid = all_outside if all_outside in dataset.splits else dataset.splits[-1]
    names = [*dataset.vocab, *SPECIAL_TOKENS]
    if END_TOKEN in dataset.vocab:  # it is one of the special tokens
        names.remove(END_TOKEN)
    files = {
        "train.json": json.dumps(rows[: dataset.n_train]),
        "test.json": json.dumps(test),
        "valid.json": json.dumps([rows[i] for i in dataset.probes(valid)]),
        "vocab.json": json.dumps(list(dict.fromkeys(names))),
    }
    if not _is_readable(dataset):
        return files
    return files | {"meta.json": json.dumps(_meta(dataset, files))}


def _is_readable(dataset: Dataset) -> bool:
    """Return whether `read_grokked` can read the rows: facts and chains in the default spelling.

    Answers with a chain of thought cannot be read.
    """
    is_spelt = dataset.positions == position_names(dataset.hops) and dataset.world is not None
    is_short = "thought" not in dataset.truth and bool((dataset.truth["position"] > 0).all())
    return is_spelt and is_short


def _rows(dataset: Dataset) -> list[dict[str, str]]:
    position = dataset.truth["position"]
    names = np.array([*dataset.vocab, ""], object)  # token -1 becomes empty text
    prompt, answer = np.full((2, len(dataset)), "", object)
    for place in range(position.max(initial=0) + 1):  # vectorized over rows, one column at a time
        prompt = prompt + names[np.where(place <= position, dataset.tokens[:, place], NONE)]
    for token in dataset.answers.T:
        answer = answer + names[token]
    return [
        {"input_text": text, "target_text": f"{text}{end}{END_TOKEN}"}
        for text, end in zip(prompt.tolist(), answer.tolist(), strict=True)
    ]


def _meta(dataset: Dataset, files: dict[str, str]) -> dict[str, Any]:
    world = world_of(dataset)
    return {
        "format": META_FORMAT,
        "sha256": _digest(text.encode() for text in files.values()),
        "seed": world.seed,
        "end_token": END_TOKEN in dataset.vocab,
        "splits": dataset.splits,
        # One letter and three numbers per fact, in row-major order of (head, relation).
        "roles": "".join(ROLES[role] for role in world.facts.role),
        "heads": world.facts.head.tolist(),
        "relations": world.facts.relation.tolist(),
        "tails": world.facts.tail.tolist(),
    }


def _digest(files: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for content in files:
        digest.update(content)
    return digest.hexdigest()


# --- reading ---------------------------------------------------------------------------------


def _read_meta(folder: Path) -> dict[str, Any] | None:
    """Return the contents of `meta.json`.

    The result is None if the file is missing, has another format, or is older than the other files.
    """
    if not (folder / "meta.json").exists():
        return None
    meta = read_json(folder / "meta.json")
    if not isinstance(meta, dict) or meta.get("format") != META_FORMAT:
        return None
    lacking = [key for key in META_KEYS if key not in meta]
    if lacking or not set(map(str, meta["roles"])) <= set(ROLES):
        fault = f"it lacks {', '.join(lacking)}" if lacking else "it has unknown roles"
        raise InputError(f"{folder / 'meta.json'} is damaged: {fault}")
    if meta["sha256"] != _digest(
        (folder / name).read_bytes() for name in (*ROW_FILES, "vocab.json")
    ):
        what = f"{folder} was changed after it was written; roles are derived from the new rows"
        warnings.warn(what, stacklevel=3)
        return None
    return meta


def _rebuild(
    table: TextRows, end_token: bool, world: World, splits: Sequence[str] | None
) -> Dataset:
    hops = int(table.hops.max())
    odd = np.flatnonzero((table.hops > 1) & (table.hops < hops))
    if len(odd):
        row = int(odd[0])
        raise table.error(
            row,
            f"the chain has {table.hops[row]} hops, but all chains must have {hops} hops "
            "like the longest chain",
        )
    facts, entities = _walk(table, world)
    split = _splits(table, world, facts[:, 0])
    twin = _twins(table)
    _check_agreement(table, split, twin)
    kept, probe = twin < 0, np.arange(len(twin)) >= table.n_train
    # A row of test.json that duplicates a training row only marks the training row as a probe.
    probe[twin[~kept]] = True

    trained = set(split[: table.n_train])
    order = ["id_triples", "ood_triples", f"train_{'i' * hops}"]
    names = list(splits or dict.fromkeys([*filter(trained.__contains__, order), *split[kept]]))
    index = {name: np.flatnonzero(kept & (split == name)) for name in names}
    # Training splits are those in train.json, and empty splits listed before the last of them.
    n_trained = 1 + max(place for place, name in enumerate(names) if name in trained)
    spelling = Spelling(end_token=end_token)
    end = table.n_entities + table.n_relations if end_token else None

    def rows(name: str) -> Rows:
        length = 1 if name.endswith("triples") else hops
        chosen = index[name]
        prompt, passed = table.prompt[chosen, : length + 1], facts[chosen, :length]
        role = np.where(passed >= 0, world.facts.role[passed], np.int8(NONE))
        relations = prompt[:, 1:] - table.n_entities
        truth = chain_truth(entities[chosen, : length + 1], relations, passed, role)
        return make_rows([*prompt.T], [table.answer[chosen]], truth, end)

    dataset = assemble(
        {name: rows(name) for name in names[:n_trained]},
        {name: rows(name) for name in names[n_trained:]},
        vocab=vocabulary(world, spelling),
        positions=position_names(hops, spelling),
        probes=0,
        world=world,
    )
    order_of_rows = np.concatenate([index[name] for name in dataset.splits])
    return dataclasses.replace(dataset, probe=probe[order_of_rows])


def _world_of_meta(folder: Path, meta: dict[str, Any], table: TextRows) -> World:
    try:
        facts = np.array([meta["heads"], meta["relations"], meta["tails"]], np.int32)
        role = np.array([ROLES.index(letter) for letter in meta["roles"]], np.int8)
        tail = np.full((table.n_entities, table.n_relations), NONE, np.int32)
        tail[facts[0], facts[1]] = facts[2]
        world = world_from_table(tail, role, meta["seed"])
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        raise InputError(f"{folder / 'meta.json'} is damaged: {error}") from None
    whole = facts.shape[1] == len(role) == world.n_facts
    if not whole or facts.min(initial=0) < 0 or tail.max(initial=0) >= table.n_entities:
        raise InputError(f"{folder / 'meta.json'} is damaged: its facts are inconsistent")
    return world


def _derive_world(table: TextRows) -> World:
    """Return the facts that atomic rows state, with roles derived from the rows.

    The roles follow from the training chains and from the types of the rows of `test.json`.
    """
    world = world_from_table(_tails(table), ROLES.index("O"))
    if not world.n_facts:
        raise InputError(
            f"{table.folder} contains no atomic rows, but at least one is needed, because "
            "atomic rows state the facts"
        )
    facts, _ = _walk(table, world)
    unknown = int(((facts < 0).any(1) & (table.hops > 1)).sum())
    if unknown:
        what = f"{unknown} chains use facts that no atomic row states; these facts are unknown"
        warnings.warn(f"{table.folder}: {what}", stacklevel=4)
    role = np.full(world.n_facts, ROLES.index("O"), np.int8)
    chains = facts[: table.n_train][table.hops[: table.n_train] > 1]
    role[chains[chains >= 0]] = ROLES.index("I")
    types = np.array([split_name(name) for name in table.types], object)
    tested = facts[table.n_train :]
    for name, letter in (("id_triples", "I"), ("held_out_id_triples", "H")):
        role[tested[types == name, 0]] = ROLES.index(letter)
    if facts.shape[1] > 1:
        later = tested[types == "test_ii_sr", 1]
        role[later[later >= 0]] = ROLES.index("R")
    return world_from_table(world.tail, role)


def _tails(table: TextRows) -> Int[np.ndarray, "entity relation"]:
    """Return the tails of the facts that atomic rows state, -1 if there is none."""
    atomic = np.flatnonzero(table.hops == 1)
    cell = table.prompt[atomic, 0], table.prompt[atomic, 1] - table.n_entities
    tail = np.full((table.n_entities, table.n_relations), NONE, np.int32)
    tail[cell] = table.answer[atomic]
    contradicted = atomic[tail[cell] != table.answer[atomic]]
    if len(contradicted):
        row = int(contradicted[0])
        raise table.error(row, f"{table.name(row)} has different answers in two rows")
    return tail


def _walk(table: TextRows, world: World) -> tuple[np.ndarray, np.ndarray]:
    """Return the facts and entities along each row.

    Returns:
      int32 [row, hop] and [row, hop + 1]; -1 after the end of a row and after an unknown fact.
    """
    n_rows, n_places = table.prompt.shape
    facts = np.full((n_rows, n_places - 1), NONE, np.int32)
    entities = np.full((n_rows, n_places), NONE, np.int32)
    entities[:, 0] = table.prompt[:, 0]
    for hop in range(n_places - 1):
        walking = np.flatnonzero((table.hops > hop) & (entities[:, hop] >= 0))
        cell = entities[walking, hop], table.prompt[walking, hop + 1] - table.n_entities
        facts[walking, hop] = world.fact_id[cell]
        entities[walking, hop + 1] = world.tail[cell]
    return facts, entities


def _splits(table: TextRows, world: World, first_fact: np.ndarray) -> np.ndarray:
    """Return the split of each row.

    The split of a training row follows from its number of hops and the role of its first fact. The
    split of a row of `test.json` is its type.
    """
    n_train, hops = table.n_train, int(table.hops.max())
    names = np.array(["id_triples", "ood_triples", f"train_{'i' * hops}"], object)
    outside = world.facts.role[first_fact[:n_train]] == ROLES.index("O")
    which = np.where(table.hops[:n_train] > 1, 2, outside)
    types = [split_name(name) for name in table.types]
    return np.concatenate([names[which], np.array(types, object)])


def _twins(table: TextRows) -> np.ndarray:
    """Return the row of `train.json` with the same prompt, for each row of `test.json`; int [row].

    The value is -1 if there is no such row, and for the rows of `train.json`.
    """
    keys = prefix_keys(table.prompt, table.n_entities + table.n_relations)[:, -1]
    trained, tested = keys[: table.n_train], keys[table.n_train :]
    distinct, first = np.unique(trained, return_index=True)
    place = np.minimum(np.searchsorted(distinct, tested), len(distinct) - 1)
    twin = np.where(distinct[place] == tested, first[place], NONE)
    return np.concatenate([np.full(table.n_train, NONE), twin])


def _check_agreement(table: TextRows, split: np.ndarray, twin: np.ndarray) -> None:
    trained = set(split[: table.n_train])
    for row in range(table.n_train, len(split)):
        if twin[row] < 0 and split[row] in trained:
            what = f"{table.name(row)} is in the training split {split[row]}, but not in train.json"
            raise table.error(row, what)
        if twin[row] >= 0 and split[row] != split[twin[row]]:
            what = f"{table.name(row)} is in the split {split[row]} in test.json, but in the split "
            raise table.error(row, f"{what}{split[twin[row]]} in train.json")
