"""TransformerLens's interface: `run_with_cache`, `run_with_hooks` and the names of hooks.

This interface is for interactive use. A forward pass with hooks is not compiled. Hooks may
therefore print, branch and plot, but the forward pass is slow. For patching grids and many
checkpoints, use `Edit`s, which compile once.

Source of the names and signatures: TransformerLens (HookedTransformer, ActivationCache).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from implicit_reasoning.model.cache import Cache
from implicit_reasoning.model.edits import Edit, HookContext
from implicit_reasoning.model.hook_names import get_act_name
from implicit_reasoning.model.sites import check_sites
from implicit_reasoning.model.tokens import check_tokens
from implicit_reasoning.model.transformer import Params, Transformer
from implicit_reasoning.model.weights import Weights

__all__ = ["Cache", "Filter", "Hook", "HookPoint", "Hooked", "get_act_name"]

Filter = str | Collection[str] | Callable[[str], bool] | None


class HookPoint(NamedTuple):
    """The site (named activation of the forward pass) at which a hook runs."""

    name: str

    @property
    def layer(self) -> int:
        """The index of the block that contains the site; -1 outside blocks."""
        found = re.match(r"blocks\.(\d+)\.", self.name)
        return int(found[1]) if found else -1


Hook = Callable[[Array, HookPoint], Array | None]


class Hooked(Weights):
    """A model together with the parameters of one checkpoint, `Hooked(run.model, params)`.

    Calling a `Hooked` with tokens returns the logits. The weights have the names and layouts of
    HookedTransformer, such as `W_Q` [layer, head, d_model, d_head] and `OV`.
    """

    def __init__(self, model: Transformer, params: Params):
        super().__init__(model, params)
        self._forward = jax.jit(model.forward, static_argnames="sites")

    def __call__(self, tokens: Int[Array | np.ndarray, "batch pos"]) -> Float[Array, "..."]:
        """Return the logits, `[batch, pos, d_vocab]`.

        Raises:
          InputError: the model does not have a token.
        """
        check_tokens(tokens, self.model.spec.d_vocab)  # A compiled program cannot check tokens.
        logits: Array = self._forward(self.params, tokens)[0]
        return logits

    def run_with_cache(
        self, tokens: Int[Array | np.ndarray, "batch pos"], names_filter: Filter = None
    ) -> tuple[Float[Array, "batch pos d_vocab"], Cache]:
        """Return the logits, and the values of all or selected sites (hook points).

        Args:
          tokens: the prompts, `[batch, pos]`.
          names_filter: the name of a site, several names, or a function from the name of a site to
            a bool. By default, all sites are selected.

        Raises:
          InputError: a token or a site does not exist in the model.
        """
        check_tokens(tokens, self.model.spec.d_vocab)
        sites = self.sites(names_filter)
        logits, found = self._forward(self.params, tokens, sites=sites)
        return logits, Cache({site: found[site] for site in sites}, self)

    def run_with_hooks(
        self,
        tokens: Int[Array | np.ndarray, "batch pos"],
        fwd_hooks: Sequence[tuple[Filter, Hook]] = (),
    ) -> Float[Array, "batch pos d_vocab"]:
        """Return the logits of a forward pass in which hooks read or replace values of sites.

        Args:
          tokens: the prompts, `[batch, pos]`.
          fwd_hooks: pairs of a site (or filter) and a hook. A hook is a function of the value and
            the `HookPoint`. The result of the hook replaces the value, unless the result is `None`.
            Several hooks at one site run in order. Arrays are immutable: use
            `value.at[:, 1].set(0)` to get a changed copy. In a block with hooks at per-head inputs
            (`hook_attn_in`, `hook_q_input`, ...), hooks at `ln1` run under `jax.vmap` over the
            heads.

        Raises:
          InputError: a token or a site does not exist in the model, or a hook changes a shape.
        """
        edits: dict[str, tuple[Edit, ...]] = {}
        for names, hook in fwd_hooks:
            for site in self.sites(names):
                edits[site] = (*edits.get(site, ()), Edit(_calling(hook, HookPoint(site))))
        return self.model.forward(self.params, tokens, edits=edits)[0]

    def sites(self, names: Filter) -> tuple[str, ...]:
        """Return the names of the sites that a filter selects, in the order of the forward pass."""
        table = self.model.sites
        if names is None:
            return tuple(table)
        if callable(names):
            return tuple(site for site in table if names(site))
        asked = {names} if isinstance(names, str) else set(names)
        check_sites(asked, table)
        return tuple(site for site in table if site in asked)


def _calling(hook: Hook, point: HookPoint) -> Callable[[Array, HookContext, Any], Array]:
    def edit(value: Array, hooks: HookContext, args: Any) -> Array:
        new = hook(value, point)
        return value if new is None else new

    return edit
