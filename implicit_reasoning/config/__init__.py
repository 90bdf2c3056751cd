"""Configurations: loading them, overriding their fields by type, comparing and storing them.

A configuration is a locked tree (`ml_collections.ConfigDict`) whose leaves are None, bool, int,
float, str, or a tuple of those. *Sequences are always tuples*: `load_config`, `apply_overrides` and
`from_json` turn lists into tuples, so that what was written as JSON reads back equal.

The parser is our own because `ml_collections.config_flags` reads `sys.argv`, refuses `1e5` for an
int and cannot set a field whose default is None; and because commands and sweeps should share one
set of checks. Every function reports *all* faults at once, as one `InputError`.

    loading.py    `load_config`, and `choose` for its argument
    overrides.py  leaves replaced
    values.py     what a type makes of text
    flags.py      command lines
    trees.py      flattened, compared, stored
    messages.py   all faults at once
"""

from implicit_reasoning.config.flags import parse_flags
from implicit_reasoning.config.loading import choose, load_config
from implicit_reasoning.config.overrides import apply_overrides, parse_overrides
from implicit_reasoning.config.trees import (
    ABSENT,
    Absent,
    Change,
    changed_keys,
    flatten,
    from_json,
    listed,
    to_json,
)

__all__ = [
    "ABSENT",
    "Absent",
    "Change",
    "apply_overrides",
    "changed_keys",
    "choose",
    "flatten",
    "from_json",
    "listed",
    "load_config",
    "parse_flags",
    "parse_overrides",
    "to_json",
]
