"""A model computed by hand, with the site names of TransformerLens."""

import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.model.hooks import Hooked, get_act_name
from tests.model.exchange.models import filled

MODEL = Transformer(
    Spec(d_vocab=11, n_ctx=4, n_layers=2, d_model=8, n_heads=2, d_mlp=16, init_std=0.5)
)
TOKENS = np.arange(12).reshape(3, 4) % 11


@pytest.fixture(scope="module")
def hooked():
    return Hooked(MODEL, filled(MODEL))


def test_the_cache_has_every_site_under_all_its_names(hooked):
    logits, cache = hooked.run_with_cache(TOKENS)
    np.testing.assert_allclose(logits, hooked(TOKENS), rtol=1e-4, atol=1e-5)
    assert list(cache) == list(MODEL.sites)
    assert cache["z", 1] is cache["blocks.1.attn.hook_z"]
    assert cache["resid_pre", 0].shape == (3, 4, 8) and cache["pattern", 1].shape == (3, 2, 4, 4)
    resid, labels = cache.accumulated_resid(return_labels=True)
    assert labels == ["0_pre", "1_pre", "final_post"] and resid.shape == (3, 3, 4, 8)
    parts, labels = cache.decompose_resid(return_labels=True)
    assert labels[:3] == ["embed", "pos_embed", "0_attn_out"] and len(labels) == 6
    np.testing.assert_allclose(parts.sum(0), cache["resid_post", 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "names",
    ["hook_embed", ["hook_embed"], lambda name: name.endswith("embed") and "pos" not in name],
)
def test_a_filter_says_what_is_kept(hooked, names):
    _, cache = hooked.run_with_cache(TOKENS, names)
    assert list(cache) == ["hook_embed"]
    with pytest.raises(
        InputError, match=r"blocks\.1\.attn\.hook_z is not in the cache, which contains 1"
    ):
        cache["z", 1]


def test_hooks_see_values_and_may_replace_them(hooked):
    seen = []

    def look(value, hook):
        seen.append((hook.name, hook.layer, float(value.sum())))  # a number, not a tracer

    def zero_position(value, hook):
        return value.at[:, 1].set(0)

    everywhere = [(lambda name: name.endswith("hook_mlp_out"), look)]
    np.testing.assert_allclose(
        hooked.run_with_hooks(TOKENS, everywhere), hooked(TOKENS), rtol=1e-4, atol=1e-5
    )
    assert [name for name, *_ in seen] == ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"]
    assert [layer for _, layer, _ in seen] == [0, 1]
    site = "blocks.1.hook_resid_pre"
    changed = hooked.run_with_hooks(TOKENS, [(site, zero_position), (site, look)])
    clean = hooked(TOKENS)
    np.testing.assert_allclose(changed[:, 0], clean[:, 0], rtol=1e-4, atol=1e-5)
    assert jnp.abs(changed[:, 1:] - clean[:, 1:]).max() > 0.01
    with pytest.raises(InputError, match=r"did you mean 'blocks\.1\.hook_resid_pre'"):
        hooked.run_with_hooks(TOKENS, [("blocks.1.hook_resid_pr", look)])


@pytest.mark.parametrize(
    ("short", "whole"),
    [
        (("k", 6, "a"), "blocks.6.attn.hook_k"),
        (("pre", 2), "blocks.2.mlp.hook_pre"),
        (("embed",), "hook_embed"),
        (("normalized", 27, "ln2"), "blocks.27.ln2.hook_normalized"),
        (("scale", 4, "ln1"), "blocks.4.ln1.hook_scale"),
        (("scale",), "ln_final.hook_scale"),
        (("resid_mid", 3), "blocks.3.hook_resid_mid"),
        (("attn", 5), "blocks.5.attn.hook_pattern"),
        (("blocks.3.attn.hook_z",), "blocks.3.attn.hook_z"),
    ],
)
def test_short_names_are_those_of_transformerlens(short, whole):
    assert get_act_name(*short) == whole
