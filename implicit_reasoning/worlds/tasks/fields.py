"""Types, meanings and defaults of the settings of every task in this package.

A user-defined task has the settings that its function reads (see `settings.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from implicit_reasoning.field import Field

_COMMON = {
    "name": Field(
        str, "name of a task, or package.module:function or file.py:function", "composition"
    ),
    "probes": Field(int, "maximum number of evaluated rows per split", 3_000),
    "world_seed": Field(int, "random seed of facts, roles and held-out rows", 0),
}
_END = {
    "end_token": Field(
        bool, "also predict the end token </a> after the answer, as published", False
    )
}
_CHAINS = {
    **_COMMON,
    **_END,
    "n_entities": Field(int, "number of entities", 100),
    "n_relations": Field(int, "number of relations", 10),
    "out_degree": Field(int, "facts per head entity, each with a different relation", 10),
    "ood_fraction": Field(float, "fraction of facts that no training chain uses", 0.05),
    "phi": Field(float, "training chains per in-distribution fact", 7.0),
    "hops": Field(int, "number of facts in a chain", 2),
    "holdout": Field(float, "fraction of in-distribution chains that are never trained on", 0.2),
    "mixed_chains": Field(
        bool, "also test chains that mix I and O facts (Wang et al. omit these chains)", True
    ),
    "order": Field(
        str, "order of a prompt: 'e r r', or 'r r e' with the entity at the last position", "e r r"
    ),
    "names": Field(
        int,
        "0: one token per entity; n > 0: two tokens, a first and a last name, with n "
        "names of each kind",
        0,
    ),
    "identity": Field(
        str,
        "training rows that lead from an entity to itself: entities ([e] -> e), chains, "
        "both, or '' (none)",
        "",
        choices=("", "entities", "chains", "both"),
        before="",
    ),
    "chain_of_thought": Field(
        bool,
        "answer a chain with its bridge entities, in order, and then with its last entity",
        False,
        before=False,
    ),
}
_TWO_HOPS = {name: field for name, field in _CHAINS.items() if name != "hops"}
_PAIRS = {
    **_COMMON,
    **_END,
    "n_entities": Field(int, "number of entities", 100),
    "n_attributes": Field(
        int, "number of attributes; every entity has a value for each attribute", 5
    ),
    "n_values": Field(int, "number of values of an attribute", 10),
    "ood_fraction": Field(float, "fraction of the entities with role O, for each attribute", 0.1),
    "holdout": Field(float, "fraction of unordered pairs of I entities that are held out", 0.1),
}


def _defaults(table: Mapping[str, Field], **values: Any) -> dict[str, Field]:
    """Return the fields of a table, with new defaults for the fields in `values`."""
    changed = {key: dataclasses.replace(table[key], default=value) for key, value in values.items()}
    return {**table, **changed}


_TABLES: dict[str, dict[str, Field]] = {
    "composition": _CHAINS,
    "without_id_triples": _CHAINS,
    "held_out_id_triples": {
        **_CHAINS,
        "held_out_fraction": Field(
            float, "fraction of I facts that are never taught as triples", 0.05
        ),
    },
    "second_hop_restricted": {
        **_defaults(_CHAINS, ood_fraction=0.0, mixed_chains=False),
        "restricted_fraction": Field(
            float, "fraction of I facts that training chains never use after the first hop", 0.05
        ),
    },
    "shadow": _CHAINS,
    "scrambled": _CHAINS,
    "ladder": {
        **_defaults(_TWO_HOPS, n_relations=20, phi=5.0),
        "facts_per_rung": Field(
            int, "number of cold facts on each rung (0, 1 and 2 shared chains)", 30
        ),
    },
    "cue_conflict": {
        **_TWO_HOPS,
        "facts_per_count": Field(
            int, "number of split facts for each number of training chains (1, 2 and 4)", 20
        ),
    },
    "comparison": {
        **_PAIRS,
        "phi": Field(float, "training comparisons per in-distribution fact", 7.2),
        "mixed_chains": Field(
            bool, "also test pairs of an I and an O entity (Wang et al. omit these pairs)", True
        ),
    },
    "complex": {
        **_defaults(_PAIRS, n_entities=200, n_values=20),
        "share": Field(float, "fraction of the available comparisons that are trained on", 0.06),
        "hard_queries": Field(
            int, "maximum number of rows of test_hard for each of the three labels", 50
        ),
    },
    "modular_addition": {
        **_defaults(_COMMON, probes=20_000),
        "modulus": Field(int, "modulus; the numbers are 0 to modulus - 1", 113),
        "train_fraction": Field(float, "fraction of all pairs that is trained on", 0.3),
    },
    "in_context": {
        **_defaults(_COMMON, probes=1_000),
        "n_tokens": Field(int, "number of tokens in the vocabulary", 64),
        "min_length": Field(int, "minimum length of the sequence that is repeated", 4),
        "max_length": Field(int, "maximum length of the sequence that is repeated", 10),
        "n_train": Field(int, "number of training rows", 50_000),
    },
    "successor": {
        **_defaults(_COMMON, probes=1_000),
        "alphabets": Field(
            tuple, "number of ordered tokens in each alphabet; orders are cyclic", (7, 10, 12, 26)
        ),
        "prompt_length": Field(
            int, "number of tokens of a prompt: those of the two runs, and the last one", 7
        ),
        "n_train": Field(int, "number of training rows", 20_000),
        "holdout": Field(
            float, "fraction of the pairs of last tokens of two runs that are never trained on", 0.2
        ),
    },
    "greater_than": {
        **_defaults(_COMMON, probes=1_000),
        "n_years": Field(int, "number of years in a century; years are 0 to n_years - 1", 100),
        "n_centuries": Field(int, "number of centuries", 10),
        "rows_per_start": Field(int, "training rows for each century and start year", 50),
        "holdout": Field(
            float, "fraction of the centuries that are held out, for each start year", 0.2
        ),
    },
    "indirect_object": {
        **_defaults(_COMMON, probes=1_000),
        "n_names": Field(int, "number of names", 80),
        "n_fillers": Field(int, "number of filler tokens", 20),
        "prompt_length": Field(int, "number of tokens of a prompt, with the last token <to>", 9),
        "n_train": Field(int, "number of training rows", 50_000),
        "holdout": Field(float, "fraction of the pairs of names that are never trained on", 0.2),
    },
}

FIELDS: dict[str, dict[str, Field]] = {
    name: _defaults(table, name=name) for name, table in _TABLES.items()
}
"""The fields of each task of `TASKS`, by task name. Names of fields are without `task.`."""
