"""Configurations: loading them, overriding their fields by type, comparing and storing them.

A configuration is a locked tree (`ml_collections.ConfigDict`) whose leaves are None, bool, int,
float, str, or a tuple of those. *Sequences are always tuples*: `load_config`, `apply_overrides` and
`from_json` turn lists into tuples, so that what was written as JSON reads back equal.

The parser is our own because `ml_collections.config_flags` reads `sys.argv`, refuses `1e5` for an
int and cannot set a field whose default is None; and because commands and sweeps should share one
set of checks. Every function reports *all* faults at once, as one `InputError`.

    loading.py    `load_config`, `choose` for its argument, the files that come with the package
    overrides.py  leaves replaced
    fields.py     a configuration against a table of fields: checked, filled with defaults
    values.py     what a type makes of text
    lists.py      lists in text
    flags.py      command lines
    trees.py      flattened, compared, stored
    renamed.py    fields that had another name
    messages.py   all faults at once
"""

from implicit_reasoning.config.fields import (
    complete,
    documentation,
    make_config,
    schema_faults,
    value_faults,
)
from implicit_reasoning.config.flags import Flag, Parser, parse_flags
from implicit_reasoning.config.lists import join_list, split_list
from implicit_reasoning.config.loading import choose, config_module, load_config, shipped_configs
from implicit_reasoning.config.overrides import apply_overrides, parse_overrides
from implicit_reasoning.config.renamed import with_current_fields
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
    "Flag",
    "Parser",
    "apply_overrides",
    "changed_keys",
    "choose",
    "complete",
    "config_module",
    "documentation",
    "flatten",
    "from_json",
    "join_list",
    "listed",
    "load_config",
    "make_config",
    "parse_flags",
    "parse_overrides",
    "schema_faults",
    "shipped_configs",
    "split_list",
    "to_json",
    "value_faults",
    "with_current_fields",
]
