"""TransformerLens's interface: `run_with_cache`, `run_with_hooks` and the names of hooks.

This interface is for interactive use. A forward pass with hooks is not compiled. Hooks may
therefore print, branch and plot, but the forward pass is slow. For patching grids and many
checkpoints, use `Edit`s, which compile once.

Source of the names and signatures: TransformerLens (HookedTransformer, ActivationCache).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from implicit_reasoning.errors import InputError
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.model.edits import Edit, HookContext
from implicit_reasoning.model.sites import check_sites
from implicit_reasoning.model.tokens import check_tokens
from implicit_reasoning.model.transformer import Params, Transformer

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


class Hooked:
    """A model together with the parameters of one checkpoint, `Hooked(run.model, params)`.

    Calling a `Hooked` with tokens returns the logits.
    """

    def __init__(self, model: Transformer, params: Params):
        self.model, self.params = model, params
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


class Cache(Mapping[str, Array]):
    """The values of sites (hook points) in one forward pass, by name.

    A key is the full name of a site or a short name with the index of the block. For example,
    `cache["blocks.1.attn.hook_z"]` equals `cache["z", 1]`.
    """

    def __init__(self, values: Mapping[str, Array], hooked: Hooked):
        self._values, self._hooked = dict(values), hooked

    def __getitem__(self, key: str | tuple[Any, ...]) -> Array:
        site = get_act_name(*key) if isinstance(key, tuple) else get_act_name(key)
        if site not in self._values:
            raise InputError(
                f"{site} is not in the cache, which contains {len(self._values)} sites; choose a "
                "site from model.sites, and select the site with names_filter"
            )
        return self._values[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def accumulated_resid(self) -> tuple[Float[Array, "layer batch pos d_model"], list[str]]:
        """Return the residual stream before each block and after the last block, with labels."""
        depth = self._hooked.model.spec.depth
        states = [self["resid_pre", layer] for layer in range(depth)]
        states.append(self["resid_post", depth - 1])
        return jnp.stack(states), [f"{layer}_pre" for layer in range(depth)] + ["final_post"]

    def decompose_resid(self) -> tuple[Float[Array, "component batch pos d_model"], list[str]]:
        """Return the terms whose sum is the final residual stream, with labels.

        The terms are the token and position embeddings and the outputs of attention and MLP in each
        block.

        Raises:
          InputError: the blocks of the model are not `gpt2`.
        """
        require_gpt2(self._hooked.model.spec, "decompose_resid")
        parts = {"embed": self["embed"], "pos_embed": self["pos_embed"]}
        for layer in range(self._hooked.model.spec.depth):
            parts[f"{layer}_attn_out"] = self["attn_out", layer]
            parts[f"{layer}_mlp_out"] = self["mlp_out", layer]
        return jnp.stack(list(parts.values())), list(parts)


# Short names of the hooks in each module of a block.
_IN_ATTENTION = ("q", "k", "v", "z", "attn_scores", "pattern", "result")
_IN_MLP = ("pre", "post")
_IN_NORM = ("scale", "normalized")
_ALIASES = {"attn": "pattern", "attn_logits": "attn_scores", "key": "k", "query": "q", "value": "v"}
_ALIASES |= {"mlp_pre": "pre", "mlp_mid": "post", "mlp_post": "post"}


def get_act_name(name: str, layer: int | None = None, layer_type: str | None = None) -> str:
    """Return the full name of a site, such as `blocks.6.attn.hook_k` for `("k", 6)`.

    Args:
      name: a short name, such as "resid_post", "q", "pattern", "mlp_out" or "normalized". A full
        name is returned unchanged.
      layer: the index of the block; None for a site outside the blocks.
      layer_type: "ln1" or "ln2" for the names "scale" and "normalized"; ignored for all other
        names.
    """
    if "." in name or name.startswith("hook_"):
        return name
    name = _ALIASES.get(name, name)
    if layer is None:
        return f"ln_final.hook_{name}" if name in _IN_NORM else f"hook_{name}"
    place = ""
    if name in _IN_NORM:
        place = f"{layer_type or 'ln1'}."
    elif name in _IN_ATTENTION:
        place = "attn."
    elif name in _IN_MLP:
        place = "mlp."
    return f"blocks.{layer}.{place}hook_{name}"
