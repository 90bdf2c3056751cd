"""Configurations: loading, typed overrides, validation, comparison and JSON storage.

A configuration is a locked tree (`ml_collections.ConfigDict`). Its leaves are None, bool, int,
float, str, or tuples of these types. *Sequences are always tuples*: `load_config`,
`apply_overrides` and `from_json` convert lists to tuples. A configuration is therefore equal to
itself after a JSON round trip.

The package has its own parser for two reasons. First, `ml_collections.config_flags` reads
`sys.argv`, rejects `1e5` for an int and cannot set a field whose default is None. Second, commands
and sweeps need the same checks of values. Every function reports *all* faults in one `InputError`.

    loading.py    loading of configuration files; `choose`, which selects values by scale
    overrides.py  replacement of values
    fields.py     checks of a configuration against a table of fields, and defaults
    values.py     conversion of text to typed values
    lists.py      the syntax of lists in text
    flags.py      command lines
    trees.py      flattening, comparison and storage
    renamed.py    renamed fields
    messages.py   error messages
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
