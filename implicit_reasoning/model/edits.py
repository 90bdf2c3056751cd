"""Edits: functions that change the value at a site during the forward pass.

An `Edit` is a *static* function with *traced* arguments. A grid of a thousand edits with the same
function therefore compiles once, and `jax.vmap` over the arguments runs all of them. Define the
function at module level: each new lambda is a new function and causes a new trace.

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
    """An edit replaces the value at a site by `fn(value, hooks, args)`.

    An edit is a pytree whose leaves are the leaves of `args`. The other fields are metadata: a
    compiled function is traced again if one of them changes (by `==`).

    Attributes:
      fn: receives the site's array, the `HookContext` and `args`, and returns an array of the same
        shape. `hooks.read(site)` returns the (edited) value of a site that was computed before.
      args: any pytree of arrays. It is traced, so it can be vmapped, differentiated and sharded.
      context: hashable constants, such as the architecture of a dictionary. If `context` is not
        None, the call is `fn(value, hooks, args, context)`.
      adds: the sites that the edit adds, each as `(name, dimensions)`. `fn` calls
        `hooks(name, value)` to pass the value of an added site. If the edit is at the site `s`, the
        full name of the added site is `s.name`. An added site is listed, checked, edited and
        returned like a site of the model.

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
        """The name of the function, for messages."""
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
    """Return the edits of each site as a tuple; omit sites that have no edits.

    Raises:
      InputError: the value of a site is neither an `Edit` nor a sequence of `Edit`s.
    """
    sequences = {}
    for site, here in (edits or {}).items():
        sequence = (here,) if isinstance(here, Edit) else tuple(here)
        for edit in sequence:
            if not isinstance(edit, Edit):
                raise InputError(
                    f"edits[{site!r}] holds a {type(edit).__name__}; it must be an Edit or a "
                    "sequence of Edits"
                )
        if sequence:
            sequences[site] = sequence
    return sequences


def merge_edits(*sources: Edits) -> dict[str, tuple[Edit, ...]]:
    """Merge several dictionaries of edits.

    If two sources edit the same site, the edits of the earlier source are applied first.
    """
    merged: dict[str, tuple[Edit, ...]] = {}
    for source in sources:
        for site, sequence in edit_sequences(source).items():
            merged[site] = merged.get(site, ()) + sequence
    return merged


def added_sites(edits: Edits | None) -> dict[str, Dims]:
    """Return the full names and dimensions of the sites that edits add.

    Raises:
      InputError: two edits at one site add the same name.
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
    """The context of one forward pass, which applies the edits and keeps the values of the sites.

    Each trace of a forward pass uses a new `HookContext`. `hooks(site, value)` returns the edited
    value. Code that would do extra work for a site first checks `hooks.asked(site)`. A site that
    needs no extra work costs nothing, because the compiler removes unused values.
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
                f"an edit passes a value at {site}, which is not in its `Edit.adds`; `Edit.adds` "
                f"has {', '.join(sorted(self._declared)) or 'no sites'}"
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
        """Return whether this site is edited, or is one of the sites whose values are returned."""
        return self.edited(site) or self._prefix + site in self._wanted

    def edited(self, site: str) -> bool:
        """Return whether this site is edited."""
        return self._prefix + site in self._edits

    def passed(self, site: str) -> bool:
        """Return whether the forward pass has already passed the site with this full name."""
        return site in self._values or site in self._passed_per_head

    def read(self, site: str) -> Array:
        """Return the (edited) value of the site with this full name.

        Raises:
          InputError: the forward pass has not passed the site yet, or the site has a separate value
            for each head.
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
        """Return a view of this context that adds `prefix` to the names of sites."""
        return self._replace(_prefix=self._prefix + prefix)

    def per_head(self, axis: int) -> HookContext:
        """Return a view of this context for a module whose input has an extra axis for the heads.

        Edits are vmapped over the heads, so an edit receives a value of the shape that
        `Transformer.sites` states. Values are not kept, because a site has one value for each head.

        Args:
          axis: the index of the extra axis.
        """
        return self._replace(_head_axis=axis)

    def results(self) -> dict[str, Array]:
        """Return the values of the sites that were requested when the context was created.

        Raises:
          InputError: the forward pass did not pass a requested or edited site, or a requested site
            has a separate value for each head.
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
        f"{site} cannot be read or returned in a block where {_PER_HEAD} is edited, because it has "
        "a separate value for each head; use attn.hook_q, attn.hook_k and attn.hook_v instead"
    )


def set_to(value: Array, hooks: HookContext, new: ArrayLike) -> Array:
    """Replace the value by `new`, broadcast to the site's shape."""
    return jnp.broadcast_to(expand_to_rank(new, value), value.shape)


def add(value: Array, hooks: HookContext, term: ArrayLike) -> Array:
    """Add `term`, such as a steering vector, the difference of two runs or a perturbation."""
    return value + expand_to_rank(term, value)


def scale(value: Array, hooks: HookContext, factor: ArrayLike) -> Array:
    """Multiply the value by `factor`, which is broadcast; a factor of 0 is a zero ablation."""
    return value * expand_to_rank(factor, value)


def mask(value: Array, hooks: HookContext, args: tuple[ArrayLike, ArrayLike]) -> Array:
    """Replace the entries at which `where` is true by those of `new`; `args = (where, new)`.

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
    """Return `x` with the rank and dtype of `value`; new axes of size 1 are added in front.

    This makes broadcasting explicit. The tests forbid implicit rank promotion in JAX, so that
    shapes do not broadcast by accident.
    """
    x = jnp.asarray(x)
    return jax.lax.expand_dims(x, range(value.ndim - x.ndim)).astype(value.dtype)
