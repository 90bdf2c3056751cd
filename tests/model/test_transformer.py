"""The forward pass equals a plain transcription, is causal, and can be mapped and edited."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Edit, HookContext, Spec, Transformer, add, mask, scale, set_to

SPEC = Spec(d_vocab=23, n_ctx=4, n_layers=2, d_model=16, n_heads=4, d_mlp=32, init_std=0.3)
LOOPED = dataclasses.replace(SPEC, n_layers=1, n_loops=2)
BARE = dataclasses.replace(SPEC, normalization="none", act_fn="relu", tied=True, unembed_bias=True)
SPECS = {"gpt2": SPEC, "looped": LOOPED, "bare": BARE}

TOKENS = np.array([[3, 7, 1, 9], [22, 0, 5, 5]])


@pytest.fixture(
    params=["gpt2", "looped", pytest.param("bare", marks=pytest.mark.slow)], scope="module"
)
def model(request):
    return Transformer(SPECS[request.param])


only_gpt2 = pytest.mark.parametrize(
    "model",
    ["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("looped", "bare"))],
    indirect=True,
)


@functools.cache
def filled(model):
    """Return parameters drawn by numpy, because `init` is slow to compile.

    Biases and norms differ from their initial 0 and 1. Otherwise a test could not notice if they
    were missing.
    """
    random = np.random.default_rng(1)

    def draw(path, leaf):
        norm = path[-1].key == "w"
        size = 0.1 if norm or path[-1].key.startswith("b") else 0.3
        return norm + size * random.standard_normal(leaf.shape, np.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.device_put(jax.tree_util.tree_map_with_path(draw, shapes))


@pytest.fixture(scope="module")
def params(model):
    return filled(model)


@functools.partial(jax.jit, static_argnums=(0,), static_argnames=("sites",))
def _forward(model, params, tokens, edits, *, sites=()):
    return model.forward(params, tokens, edits=edits, sites=sites)


def forward(model, params, *, tokens=TOKENS, edits=None, sites=()):
    """Run the compiled model, whose shapes are checked once per trace. Returns numpy arrays."""
    return jax.device_get(_forward(model, params, tokens, edits, sites=tuple(sites)))


@pytest.fixture(scope="module")
def everywhere(model, params):
    """Return logits and the values of all sites, by one program for the tests that read them."""
    return forward(model, params, sites=model.sites)


def reference(spec, params, tokens):
    """The forward pass in float64 numpy, computed by row, head and position."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, w):
        if spec.normalization == "none":
            return x
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + spec.eps) * w["w"] + w["b"]

    def act(x):
        if spec.act_fn == "relu":
            return np.maximum(x, 0)
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    out = []
    for row in np.asarray(tokens):
        x = p["embed"]["W_E"][row] + p["pos_embed"]["W_pos"][: len(row)]
        for layer in range(spec.depth):
            b = p["blocks"][str(layer % spec.n_layers)]
            n = norm(x, b.get("ln1"))
            written = np.zeros_like(x)
            for h in range(spec.n_heads):
                q, k, v = (n @ b["attn"][f"W_{c}"][h] + b["attn"][f"b_{c}"][h] for c in "QKV")
                for i in range(len(row)):
                    score = k[: i + 1] @ q[i] / np.sqrt(spec.d_head)
                    weight = np.exp(score - score.max())
                    written[i] += (weight / weight.sum()) @ v[: i + 1] @ b["attn"]["W_O"][h]
            x = x + written + b["attn"]["b_O"]
            hidden = act(norm(x, b.get("ln2")) @ b["mlp"]["W_in"] + b["mlp"]["b_in"])
            x = x + hidden @ b["mlp"]["W_out"] + b["mlp"]["b_out"]
        x = norm(x, p.get("ln_final"))
        weight = p["embed"]["W_E"].T if spec.tied else p["unembed"]["W_U"]
        out.append(x @ weight + (p["unembed"]["b_U"] if spec.unembed_bias else 0))
    return np.stack(out)


def test_forward_equals_a_plain_numpy_transcription(model, params):
    logits, _ = forward(model, params)
    np.testing.assert_allclose(logits, reference(model.spec, params, TOKENS), rtol=2e-5, atol=2e-5)


def test_parameters_have_the_names_and_layouts_of_hooked_transformer():
    names = {
        ".".join(k.key for k in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            jax.eval_shape(Transformer(SPEC).init, jax.random.key(0))
        )
    }
    assert names["blocks.1.attn.W_Q"] == (4, 16, 4)  # [head, d_model, d_head]
    assert names["blocks.0.attn.W_O"] == (4, 4, 16)  # [head, d_head, d_model]
    assert names["blocks.1.attn.b_K"] == (4, 4)
    assert names["blocks.0.mlp.W_in"] == (16, 32)
    assert names["embed.W_E"] == (23, 16)
    assert names["pos_embed.W_pos"] == (4, 16)
    assert names["unembed.W_U"] == (16, 23)
    assert names["ln_final.w"] == names["blocks.0.ln1.b"] == (16,)


def test_initial_scales_are_gpt2s():
    spec = Spec(d_vocab=500, n_ctx=4, n_layers=2, d_model=128, n_heads=2, d_mlp=512, n_loops=2)
    params = jax.device_get(jax.jit(Transformer(spec).init)(jax.random.key(0)))
    block = params["blocks"]["1"]
    for weight, std in [
        (params["embed"]["W_E"], 0.02),
        (block["attn"]["W_Q"], 0.02),
        (block["attn"]["W_O"], 0.02 / np.sqrt(2 * 4)),
        (block["mlp"]["W_out"], 0.02 / np.sqrt(2 * 4)),
    ]:
        assert abs(float(weight.std()) / std - 1) < 4 / np.sqrt(2 * weight.size)
    assert not block["attn"]["b_Q"].any() and (block["ln1"]["w"] == 1).all()


def test_no_position_is_influenced_by_a_later_one(model, params):
    """Another token at a position changes logits there and later, and no bit of earlier logits."""
    clean = forward(model, params)[0]
    for pos in range(4):
        other = TOKENS.copy()
        other[:, pos] = (TOKENS[:, pos] + 11) % SPEC.d_vocab
        changed = forward(model, params, tokens=other)[0]
        np.testing.assert_array_equal(changed[:, :pos], clean[:, :pos])
        assert (np.abs(changed - clean)[:, pos:].max(-1) > 1e-3).all()


def test_every_site_has_the_shape_that_the_table_says(model, everywhere):
    sizes = {**model.dims, "batch": 2, "pos": 4, "query_pos": 4, "key_pos": 4}
    for name, dims in model.sites.items():
        assert everywhere[1][name].shape == tuple(sizes[d] for d in dims), name


def test_asking_for_sites_does_not_change_the_logits(model, params, everywhere):
    logits, _ = forward(model, params)
    np.testing.assert_allclose(logits, everywhere[0], rtol=1e-5, atol=1e-5)


def test_costly_sites_are_computed_only_when_asked_for():
    model = Transformer(SPEC)
    params = filled(model)

    def flops(sites):
        compiled = jax.jit(lambda p: model.forward(p, TOKENS, sites=sites)).lower(params).compile()
        return compiled.cost_analysis()["flops"]

    assert flops(("blocks.0.hook_resid_mid",)) == flops(())
    assert flops(("blocks.0.attn.hook_result",)) > flops(())


def test_sites_add_up_to_the_residual(model, params, everywhere):
    names = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
    pre, attn_out, mlp_out, post, result = (
        everywhere[1][f"blocks.1.{name}"] for name in (*names, "attn.hook_result")
    )
    np.testing.assert_allclose(pre + attn_out + mlp_out, post, atol=1e-5)
    b_O = np.asarray(params["blocks"][str(1 % model.spec.n_layers)]["attn"]["b_O"])
    np.testing.assert_allclose(result.sum(2) + b_O[None, None], attn_out, atol=1e-5)


def test_looped_blocks_are_numbered_by_unrolled_depth():
    looped = Transformer(LOOPED)
    params = filled(looped)
    # The same model with its block written out twice.
    flat = Transformer(dataclasses.replace(LOOPED, n_layers=2, n_loops=1))
    unrolled = params | {"blocks": {str(i): params["blocks"]["0"] for i in range(2)}}
    wanted = [f"blocks.{i}.hook_resid_post" for i in range(2)]
    a, b = forward(looped, params, sites=wanted), forward(flat, unrolled, sites=wanted)
    jax.tree.map(np.testing.assert_array_equal, a, b)


EDITS = {
    set_to: (np.float32(2), lambda x: np.full_like(x, 2)),
    add: (np.arange(16, dtype="f4"), lambda x: x + np.arange(16)),
    scale: (np.float32(0), np.zeros_like),
    mask: (
        (np.arange(4)[:, None] == 1, np.float32(5)),
        lambda x: np.where([[0], [1], [0], [0]], 5, x),
    ),
}


def _one_of(value, hooks, args):
    """Apply the edit with a number, 0 for none, so that one program has all edits at all sites."""
    edits = [lambda fn=fn, of=of: fn(value, hooks, of) for fn, (of, _) in EDITS.items()]
    return jax.lax.switch(args, [lambda: value, *edits])


@pytest.mark.parametrize("fn", EDITS, ids=lambda fn: fn.__name__)
def test_edits_do_what_they_say(fn):
    model, expected = Transformer(SPEC), EDITS[fn][1]
    sites = ("hook_embed", "blocks.0.ln1.hook_normalized", "blocks.1.hook_mlp_out")

    def seen(**chosen):
        numbers = {site: chosen.get(site, 0) for site in sites}
        edits = {site: Edit(_one_of, np.int32(number)) for site, number in numbers.items()}
        return forward(model, filled(model), sites=sites, edits=edits)[1]

    clean, number = seen(), 1 + list(EDITS).index(fn)
    for site in sites:
        edited = seen(**{site: number})
        np.testing.assert_allclose(edited[site], expected(clean[site]), atol=1e-6)


def test_an_edit_sees_the_sites_that_came_before_it():
    model = Transformer(SPEC)
    params = filled(model)
    site, first = "blocks.1.hook_resid_pre", "blocks.0.hook_resid_pre"
    edits = {site: Edit(_back_to_the_embedding)}
    logits, seen = forward(model, params, sites=(first,), edits=edits)
    expected, _ = forward(model, params, edits={site: Edit(set_to, seen[first])})
    np.testing.assert_allclose(logits, expected, atol=1e-6)


def _back_to_the_embedding(value, hooks, args):
    return hooks.read("blocks.0.hook_resid_pre")


@pytest.mark.parametrize("site", ["hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input"])
def test_per_head_inputs_reach_only_what_they_feed(site):
    """Zeroing the query input of one head changes its queries, and nothing of other heads."""
    model = Transformer(SPEC)
    inputs = ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input")
    outputs = [f"blocks.0.attn.hook_{c}" for c in "qkv"]

    def seen(chosen):
        one_head = (np.arange(4) == 2)[:, None]
        edits = {
            f"blocks.0.{name}": Edit(mask, (one_head & (name == chosen), np.float32(0)))
            for name in inputs
        }
        return forward(model, filled(model), sites=outputs, edits=edits)[1]

    clean, edited = seen(None), seen(site)
    feeds = "qkv" if site == "hook_attn_in" else site[5]
    for c in "qkv":
        change = np.abs(clean[f"blocks.0.attn.hook_{c}"] - edited[f"blocks.0.attn.hook_{c}"])
        change = change.sum((0, 1, 3))  # per head
        assert (change[[0, 1, 3]] < 1e-5).all()
        assert (change[2] > 1e-2) == (c in feeds)


def test_a_grid_of_edits_compiles_once():
    model = Transformer(SPEC)
    params = filled(model)
    traces = []

    @jax.jit
    def patched(where):
        traces.append(1)
        edits = {"blocks.1.hook_resid_post": Edit(mask, (where, jnp.float32(0)))}
        return model.forward(params, TOKENS, edits=edits)[0]

    grid = np.eye(4, dtype=bool)[:, None, :, None]
    one_by_one = np.stack([patched(cell) for cell in grid])
    np.testing.assert_allclose(jax.vmap(patched)(grid), one_by_one, atol=1e-5)
    assert len(traces) == 1


def test_stacked_parameters_map_over_checkpoints():
    model = Transformer(SPEC)
    one = jax.device_get(filled(model))
    each = [jax.tree.map(lambda x, n=n: x + np.float32(0.1 * n), one) for n in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    together = jax.jit(jax.vmap(lambda p: model.forward(p, TOKENS)[0]))(stacked)
    for number, params in enumerate(each):
        alone, _ = forward(model, params)
        np.testing.assert_allclose(together[number], alone, rtol=1e-5, atol=1e-5)


@only_gpt2
def test_gradients_have_the_structure_of_the_parameters_and_agree_with_differences(model, params):
    # The activation is smooth, because a finite difference across a kink of relu is no derivative.
    model = Transformer(dataclasses.replace(model.spec, act_fn="gelu_new"))

    @jax.jit
    @jax.value_and_grad
    def loss(p):
        return jax.nn.logsumexp(model.forward(p, TOKENS)[0]).sum()

    _, gradient = jax.device_get(loss(params))
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    random = np.random.default_rng(7)
    params = jax.device_get(params)
    direction = jax.tree.map(
        lambda x: random.standard_normal(x.shape, np.float32) / np.float32(np.sqrt(x.size)), params
    )
    step = np.float32(1e-2)
    moved = [
        loss(jax.tree.map(lambda x, d, s=s: x + s * step * d, params, direction))[0]
        for s in (1, -1)
    ]
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, direction)))
    np.testing.assert_allclose((moved[0] - moved[1]) / (2 * step), slope, rtol=2e-2)


@only_gpt2
def test_bfloat16_activations_stay_close_to_float32(params, model):
    half = Transformer(dataclasses.replace(model.spec, dtype="bfloat16"))
    exact, rounded = forward(model, params)[0], forward(half, params)[0]
    assert rounded.dtype == np.float32
    assert 1e-5 < np.abs(exact - rounded).max() / np.abs(exact).max() < 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m, p: m.forward(p, TOKENS, sites=["blocks.0.hook_resid_psot"]),
            "did you mean 'blocks.0.hook_resid_post'",
        ),
        (
            lambda m, p: m.forward(p, TOKENS, edits={"blocks.9.hook_z": Edit(scale, 0.0)}),
            "no such site",
        ),
        (lambda m, p: m.forward(p, jnp.zeros((1, 5), int)), "rows have 5 tokens"),
        (
            lambda m, p: m.forward(p, TOKENS, edits={"hook_embed": Edit(_shrinks)}),
            "must keep the shape",
        ),
        (
            lambda m, p: m.forward(
                p,
                TOKENS,
                sites=["blocks.0.ln1.hook_normalized"],
                edits={"blocks.0.hook_q_input": Edit(scale, 2.0)},
            ),
            r"blocks\.0\.ln1\.hook_normalized cannot be read or returned",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    model = Transformer(SPEC)
    with pytest.raises(InputError, match=message):
        jax.eval_shape(lambda params: call(model, params), filled(model))


def _shrinks(value, hooks, args):
    return value[:1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_heads": 3}, "not a multiple of"),
        ({"n_layers": 0}, "n_layers is 0"),
        ({"act_fn": "swish"}, "act_fn is 'swish'"),
        ({"normalization": "RMS"}, "normalization is 'RMS'"),
        ({"dtype": "float8"}, "dtype is 'float8'"),
    ],
)
def test_impossible_specs_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SPEC, **change)


def test_a_wiring_that_misses_a_wanted_site_says_so():
    hooks = HookContext(sites=["hook_embed"])
    with pytest.raises(InputError, match="does not compute hook_embed"):
        hooks.results()
