"""Edits: functions that change the value at a site (hook point) during the forward pass.

An `Edit` is a *static* function with *traced* arguments. A thousand edits with one function
therefore compile once, and `jax.vmap` over the arguments runs all of them. Define the function at
module level, because every new lambda is a different function and causes a new trace.

    edits = {
        "blocks.0.hook_mlp_out": (Edit(drop, (key, 0.1)), Edit(add, vector)),  # applied in order
        "blocks.1.attn.hook_z": Edit(mask, (one_head, 0.0)),
    }
    logits, values = model.forward(params, tokens, edits=edits, sites=("blocks.1.hook_resid_post",))
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from implicit_reasoning.errors import InputError
from implicit_reasoning.model.sites import Dims


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["args"],
    meta_fields=["fn", "context", "adds"],
)
@dataclass(frozen=True, eq=False)
class Edit:
    """An edit, which replaces the value at a site (hook point) by `fn(value, hooks, args)`.

    An edit is a pytree whose leaves are the leaves of `args`. All other fields are metadata. If
    metadata changes (by `==`), a compiled function is traced again.

    Attributes:
      fn: function of the site's array, the `HookContext` and `args`. It returns an array with the
        shape of the site's array. `hooks.read(site)` returns the (edited) value of an earlier site.
      args: any pytree of arrays. `args` is traced, so it can be vmapped, differentiated and
        sharded.
      context: hashable constants, such as the architecture of a dictionary. If `context` is not
        None, the call is `fn(value, hooks, args, context)`.
      adds: pairs `(name, dimensions)` of sites that the edit adds. `fn` must call `hooks(name,
        value)` with the value of every added site. The full name of a site that an edit at `s` adds
        is `s.name`. Added sites are listed, checked, edited and returned like sites of the model.

    Raises:
      InputError: `fn`, `context` or `adds` is not hashable.
    """

    fn: Callable[..., Array]
    args: Any = None
    context: Any = None
    adds: tuple[tuple[str, Dims], ...] = ()

    def __post_init__(self) -> None:
        try:
            hash((self.fn, self.context, self.adds))
        except TypeError as error:
            raise InputError(
                f"fn, context and adds of an Edit must be hashable ({error}); pass arrays in `args`"
            ) from None

    @property
    def name(self) -> str:
        """The name of the function, for error messages."""
        return getattr(self.fn, "__name__", type(self.fn).__name__)

    def __call__(self, value: Array, hooks: HookContext) -> Array:
        """Return the edited value.

        Raises:
          InputError: the edit changed the shape of the value.
        """
        static = () if self.context is None else (self.context,)
        edited = self.fn(value, hooks, self.args, *static)
        if jnp.shape(edited) != value.shape:
            raise InputError(
                f"the edit {self.name} returned shape {jnp.shape(edited)} for a value of shape "
                f"{value.shape}; an edit must keep the shape"
            )
        return edited


Edits = Mapping[str, Edit | Sequence[Edit]]
"""One or several edits per site. Several edits are applied in order."""


def edit_sequences(edits: Mapping[str, Any] | None) -> dict[str, tuple[Edit, ...]]:
    """Return the edits as a dict from names of edited sites to tuples of edits.

    Raises:
      InputError: a value in `edits` is neither an `Edit` nor a sequence of `Edit`s.
    """
    sequences = {}
    for site, here in (edits or {}).items():
        sequence = (here,) if isinstance(here, Edit) else tuple(here)
        for edit in sequence:
            if not isinstance(edit, Edit):
                raise InputError(
                    f"edits[{site!r}] contains a {type(edit).__name__}; pass an Edit or a sequence "
                    "of Edits"
                )
        if sequence:
            sequences[site] = sequence
    return sequences


def merge_edits(*sources: Edits) -> dict[str, tuple[Edit, ...]]:
    """Merge several dictionaries of edits.

    If several sources edit one site, the edits of the first source are applied first.
    """
    merged: dict[str, tuple[Edit, ...]] = {}
    for source in sources:
        for site, sequence in edit_sequences(source).items():
            merged[site] = merged.get(site, ()) + sequence
    return merged


def added_sites(edits: Edits | None) -> dict[str, Dims]:
    """Return the dimension names of all sites that edits add, by full name of the site.

    Raises:
      InputError: two edits at one site add sites with equal names.
    """
    added: dict[str, Dims] = {}
    for site, sequence in edit_sequences(edits).items():
        for name, dims in (pair for edit in sequence for pair in edit.adds):
            if f"{site}.{name}" in added:
                raise InputError(
                    f"two edits at {site} add {name!r}; names of added sites must be unique"
                )
            added[f"{site}.{name}"] = dims
    return added


class HookContext:
    """The context of one forward pass: it applies edits and keeps values of sites (hook points).

    Create a new `HookContext` for each trace of a forward pass. `hooks(site, value)` returns the
    edited value. If a site needs additional computation, check `hooks.asked(site)` first. All other
    sites cost nothing, because the compiler removes unused values.
    """

    def __init__(self, edits: Edits | None = None, sites: Collection[str] = ()):
        self._edits = edit_sequences(edits)
        self._wanted = tuple(sites)
        self._values: dict[str, Array] = {}
        self._passed_per_head: set[str] = set()
        self._prefix = ""
        self._head_axis: int | None = None
        self._declared: frozenset[str] | None = None  # sites that the running edit adds

    def __call__(self, site: str, value: Array) -> Array:
        """Apply the edits of `site` to `value` and keep the result.

        Args:
          site: the name of the site, without the prefix of this context (see `within`).
          value: the value before the edits.

        Raises:
          InputError: an edit passes the value of a site that the edit does not declare in
            `Edit.adds`.
        """
        site = self._prefix + site
        if self._declared is not None and site not in self._declared:
            raise InputError(
                f"an edit passes a value at {site}, which `Edit.adds` does not list; `Edit.adds` "
                f"lists {', '.join(sorted(self._declared)) or 'no sites'}"
            )
        for edit in self._edits.get(site, ()):
            value = self._apply(edit, site, value)
        if self._head_axis is None:
            self._values[site] = value
        else:
            self._passed_per_head.add(site)
        return value

    def _apply(self, edit: Edit, site: str, value: Array) -> Array:
        inside = self._replace(
            _prefix=f"{site}.",
            _head_axis=None,
            _declared=frozenset(f"{site}.{name}" for name, _ in edit.adds),
        )
        apply = functools.partial(edit, hooks=inside)
        if self._head_axis is not None:
            if edit.adds:
                raise InputError(
                    f"the edit {edit.name} at {site} adds sites; an edit of ln1 cannot add sites "
                    f"in a block where {_PER_HEAD} is edited"
                )
            apply = jax.vmap(apply, in_axes=self._head_axis, out_axes=self._head_axis)
        try:
            return apply(value)
        except Exception as error:
            error.add_note(
                f"in the edit {edit.name} at {site}, where the value has shape {value.shape}"
            )
            raise

    def asked(self, site: str) -> bool:
        """Return whether `site` is edited or requested as a result."""
        return self.edited(site) or self._prefix + site in self._wanted

    def edited(self, site: str) -> bool:
        """Return whether `site` is edited."""
        return self._prefix + site in self._edits

    def passed(self, site: str) -> bool:
        """Return whether the forward pass has already passed the site with the full name `site`."""
        return site in self._values or site in self._passed_per_head

    def read(self, site: str) -> Array:
        """Return the (edited) value of the site with the full name `site`.

        Raises:
          InputError: the forward pass has not passed the site yet, or the site has one value per
            head because a per-head input is edited.
        """
        if site in self._passed_per_head:
            raise InputError(_no_single_value(site))
        if site not in self._values:
            raise InputError(
                f"{site} cannot be read here, because the forward pass has not reached this site "
                "yet. Per-head inputs and attn.hook_result are computed only if they are edited or "
                "listed in `sites`"
            )
        return self._values[site]

    def within(self, prefix: str) -> HookContext:
        """Return a view of this context that puts `prefix` in front of all names of sites."""
        return self._replace(_prefix=self._prefix + prefix)

    def per_head(self, axis: int) -> HookContext:
        """Return a view of this context for a module that runs on separate inputs for each head.

        Edits are vmapped over the heads, so an edit receives a value without the head axis. The
        values of sites are not kept, because a site has one value for each head.

        Args:
          axis: the index of the head axis.
        """
        return self._replace(_head_axis=axis)

    def results(self) -> dict[str, Array]:
        """Return the values of the sites that were requested when the context was created.

        Raises:
          InputError: the forward pass did not pass a requested or edited site, or a requested site
            has one value per head because a per-head input is edited.
        """
        missed = [site for site in {*self._wanted, *self._edits} if not self.passed(site)]
        if missed:
            raise InputError(
                f"this forward pass does not compute {', '.join(sorted(missed))}; remove these "
                "names from `edits` and `sites`"
            )
        return {site: self.read(site) for site in self._wanted}

    def _replace(self, **changes: Any) -> HookContext:
        """Return a copy with changed attributes; the copy shares the dictionary of values."""
        scope = copy.copy(self)
        vars(scope).update(changes)
        return scope


_PER_HEAD = "hook_attn_in, hook_q_input, hook_k_input or hook_v_input"


def _no_single_value(site: str) -> str:
    return (
        f"{site} cannot be read or returned in a block where {_PER_HEAD} is edited, because the "
        "site has a separate value for each head; use attn.hook_q, attn.hook_k and attn.hook_v "
        "instead"
    )


def set_to(value: Array, hooks: HookContext, new: ArrayLike) -> Array:
    """Replace the value by `new`, which is broadcast to the shape of the value."""
    return jnp.broadcast_to(expand_to_rank(new, value), value.shape)


def add(value: Array, hooks: HookContext, term: ArrayLike) -> Array:
    """Add `term` to the value. For example, a term is a steering vector or a perturbation."""
    return value + expand_to_rank(term, value)


def scale(value: Array, hooks: HookContext, factor: ArrayLike) -> Array:
    """Multiply the value by `factor`, which is broadcast. The factor 0 is zero ablation."""
    return value * expand_to_rank(factor, value)


def mask(value: Array, hooks: HookContext, args: tuple[ArrayLike, ArrayLike]) -> Array:
    """Replace the entries where `where` is true by entries of `new`; `args = (where, new)`.

    For example, a mask that is true at one position and one head patches this head at this
    position. `jax.vmap` over a stack of such masks computes a patching grid.
    """
    where, new = args
    where = expand_to_rank(where, value).astype(bool)
    return jnp.where(where, expand_to_rank(new, value), value)


def drop(value: Array, hooks: HookContext, args: tuple[Array, ArrayLike]) -> Array:
    """Apply inverted dropout; `args = (key, rate)`.

    Each entry is set to zero with probability `rate`. All other entries are divided by `1 - rate`.
    """
    key, rate = args
    keep = jax.random.bernoulli(key, 1 - rate, value.shape)
    return jnp.where(keep, value / jnp.asarray(1 - rate, value.dtype), 0)


def expand_to_rank(x: ArrayLike, value: Array) -> Array:
    """Return `x` with the dtype and number of axes of `value`, with new axes of size 1 in front.

    The new axes make broadcasting explicit. The tests forbid implicit rank promotion in JAX, so
    that shapes do not broadcast by accident.
    """
    x = jnp.asarray(x)
    return jax.lax.expand_dims(x, range(value.ndim - x.ndim)).astype(value.dtype)
