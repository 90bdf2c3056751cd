"""Sites: the named hook points of a forward pass, with TransformerLens's names.

Blocks are numbered by *unrolled* depth: a looped model with 1 block and 4 loops has the sites
`blocks.0.*` to `blocks.3.*`. Every analysis therefore has one layer axis.
`blocks.i.hook_resid_post` is the residual stream after `i + 1` blocks, before the final norm. The
papers use the notation `S[i + 1, pos]`.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

from implicit_reasoning.errors import InputError

Dims = tuple[str, ...]

RESID: Dims = ("batch", "pos", "d_model")
PER_HEAD: Dims = ("batch", "pos", "head", "d_model")
HEAD: Dims = ("batch", "pos", "head", "d_head")
ATTENTION: Dims = ("batch", "head", "query_pos", "key_pos")
NEURON: Dims = ("batch", "pos", "d_mlp")
SCALE: Dims = ("batch", "pos", "one")


def check_sites(names: Collection[str], table: Mapping[str, Dims]) -> None:
    """Check that all sites (hook points) exist.

    Args:
      names: the names to check.
      table: dict with the names of all existing sites.

    Raises:
      InputError: a site is unknown. The message lists all unknown sites and suggests similar names.
    """
    unknown = [name for name in names if name not in table]
    if unknown:
        near = {name: difflib.get_close_matches(name, table, n=1) for name in unknown}
        faults = [f"{n!r}" + (f" (did you mean {m[0]!r}?)" if m else "") for n, m in near.items()]
        raise InputError(
            f"no such site: {', '.join(faults)}; model.sites lists the sites of the model, and "
            "model.sites_with(edits) also lists the sites that edits add"
        )
