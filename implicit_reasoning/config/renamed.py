"""Fields that were renamed: old names, wherever they are, become the new ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ml_collections import ConfigDict

from implicit_reasoning import renames
from implicit_reasoning.config.trees import flatten

FIELDS: Mapping[str, str] = {
    "kind": "architecture",
    "variant": "activation_fn",
    "training.batch": "training.batch_size",
    "training.warm_up": "training.warmup_steps",
    "training.decay": "training.decay_steps",
    "training.sparsity_warm_up": "training.sparsity_warmup_steps",
    "training.beta1": "training.b1",
    "training.beta2": "training.b2",
    "training.clip": "training.clip_norm",
}
"""Current dotted names by the names that fields had before 2026-11-29; all of dictionaries."""


def current_field(key: str, fields: Collection[str]) -> str:
    """The current name of a field, for a name that is not among `fields`; says so if it changed."""
    new = FIELDS.get(key, key)
    if key in fields or new not in fields:
        return key
    renames.note("field", key, new)
    return new


def with_current_fields(config: ConfigDict, fields: Collection[str]) -> ConfigDict:
    """A configuration whose fields have their current names.

    Where a configuration has a field under both names, somebody set the old one, as new
    configurations have the other: the value of the old name counts.

    Args:
      config: it is not changed.
      fields: dotted names that there are, such as those of a schema.
    """
    old = {key: new for key in flatten(config) if (new := current_field(key, fields)) != key}
    if not old:
        return config
    changed = config.copy_and_resolve_references()
    with changed.unlocked(), changed.ignore_type():
        for key, new in old.items():
            (group, name), (_, new_name) = _owner(changed, key), _owner(changed, new)
            value = group[name]
            del group[name]
            group[new_name] = value
    return changed.lock() if config.is_locked else changed


def _owner(config: ConfigDict, key: str) -> tuple[ConfigDict, str]:
    """The group of a field, and its name there; a renamed field stays in its group."""
    *groups, name = key.split(".")
    for group in groups:
        config = config[group]
    return config, name
