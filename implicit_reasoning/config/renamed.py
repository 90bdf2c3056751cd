"""Old names of renamed fields, which files, overrides and command lines may still use."""

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
"""The current names of fields of dictionary configurations, by their names before 2026-11-29."""


def current_field(key: str, fields: Collection[str]) -> str:
    """Return the current name of a field, and print a note if `key` is an old name.

    If `key` is in `fields` or is not an old name, it is returned unchanged.

    Args:
      key: the dotted name of a field.
      fields: the current dotted names of all fields.
    """
    new = FIELDS.get(key, key)
    if key in fields or new not in fields:
        return key
    renames.note("field", key, new)
    return new


def with_current_fields(config: ConfigDict, fields: Collection[str]) -> ConfigDict:
    """Return a configuration in which fields with old names have their current names.

    If both names of a field exist, the value under the old name is used. The defaults contain only
    current names, so the user must have set the value under the old name.

    Args:
      config: the configuration, which is not modified.
      fields: the current dotted names of all fields.
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
    """Return the group that contains a field, and the last part of the field's name.

    The group of the current name exists too, because a renamed field stays in its group.
    """
    *groups, name = key.split(".")
    for group in groups:
        config = config[group]
    return config, name
