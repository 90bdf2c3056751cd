"""The suffix-and-cone wiring equals `forward` with the same edit, at every start."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Edit, Spec, Transformer, mask, wirings
from implicit_reasoning.model.cones import cache_sites, patched_logits, state, value_at
from tests.model.exchange.models import filled

SPEC = Spec(d_vocab=23, n_ctx=4, n_layers=3, d_model=16, n_heads=4, d_mlp=32, init_std=0.3)
LOOPED = dataclasses.replace(SPEC, n_layers=1, n_loops=2)
UNNORMALIZED = dataclasses.replace(SPEC, n_layers=2, normalization="none")
CLEAN = np.array([[3, 7, 1, 9], [22, 0, 5, 5]])
OTHER = np.array([[4, 7, 1, 9], [22, 1, 5, 5]])[:, ::-1]
INSIDE = ("hook_attn_out", "hook_mlp_out", "attn.hook_z")

patched = jax.jit(patched_logits, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def edited_forward(model, params, tokens, edits):
    """Return all sites that cones read, with edits at all places where a cone may start.

    There is one program per model and length; the mask of an edit selects the change.
    """
    sites = (*cache_sites(model, inside=True), *result_sites(model))
    return model.forward(params, tokens, edits=edits, sites=sites)


def result_sites(model):
    return [f"blocks.{layer}.attn.hook_result" for layer in range(model.spec.depth)]


class Subject:
    """A model, its parameters, a clean run, and a donor run whose states are patched in."""

    def __init__(self, spec, length):
        self.model, self.length = Transformer(spec), length
        self.params = filled(self.model)
        self.clean, other = CLEAN[:, :length], OTHER[:, :length]
        # Shapes are evaluated abstractly, so that no program is compiled for them.
        nothing = functools.partial(self.model.forward, sites=self.places)
        shapes = jax.eval_shape(nothing, self.params, self.clean)[1]
        zeros = {site: np.zeros(shape.shape, "f4") for site, shape in shapes.items()}
        self.idle = {site: Edit(mask, (zeros[site] > 0, zeros[site])) for site in self.places}
        self.logits, self.cache = self.forward(self.clean, {})
        _, self.donor = self.forward(other, {})

    @property
    def places(self):
        """The sites that are edited."""
        depth = self.model.spec.depth
        names = ("hook_resid_pre", *INSIDE, "attn.hook_result")
        blocks = tuple(f"blocks.{n}.{name}" for n in range(depth) for name in names)
        return (*blocks, f"blocks.{depth - 1}.hook_resid_post")

    def forward(self, tokens, edits):
        run = edited_forward(self.model, self.params, tokens, self.idle | edits)
        return jax.device_get(run)

    def wanted(self, site, pos, head=None):
        """Return logits at the last position after patching a site of the clean run from the donor
        run.
        """
        where = np.zeros(self.donor[site].shape, bool)
        where[:, pos] = True
        if head is not None:
            where &= (np.arange(where.shape[2]) == head)[:, None]
        edits = {site: Edit(mask, (where, self.donor[site]))}
        return self.forward(self.clean, edits)[0][:, -1]

    def wanted_at(self, layer, pos):
        """Return the same for a residual."""
        return self.wanted(self.resid(layer), pos)

    def resid(self, layer):
        """Return the name of a residual; indexing numpy arrays by it compiles nothing."""
        last = self.model.spec.depth - 1
        at_end = layer > last
        return f"blocks.{last}.hook_resid_post" if at_end else f"blocks.{layer}.hook_resid_pre"

    def starts(self, cache):
        """Return every layer and position, with its state in a run."""
        places = itertools.product(range(self.model.spec.depth + 1), range(self.length))
        return {(n, pos): cache[self.resid(n)][None, :, pos] for n, pos in places}


@functools.cache
def subject(spec, length=4):
    return Subject(spec, length)


every_spec = pytest.mark.parametrize(
    "spec", [SPEC, LOOPED, UNNORMALIZED], ids=["gpt2", "looped", "none"]
)


@every_spec
def test_a_grid_of_cones_equals_forward_with_the_same_edits(spec):
    """Every layer and position is computed in one call."""
    made = subject(spec)
    starts = made.starts(made.donor)
    found = patched(made.model, made.params, made.cache, starts)
    assert found.keys() == starts.keys()
    for place, logits in found.items():
        np.testing.assert_allclose(logits, made.wanted_at(*place)[None], atol=3e-5)


@every_spec
def test_a_cone_from_the_clean_state_is_the_clean_run(spec):
    made = subject(spec)
    for found in patched(made.model, made.params, made.cache, made.starts(made.cache)).values():
        np.testing.assert_allclose(found, made.logits[None, :, -1], atol=3e-5)


@pytest.mark.parametrize(
    ("spec", "length"),
    [
        pytest.param(SPEC, 4, id="gpt2-4", marks=pytest.mark.slow),
        pytest.param(UNNORMALIZED, 1, id="none-1"),
        pytest.param(SPEC, 1, id="gpt2-1", marks=pytest.mark.slow),
        pytest.param(LOOPED, 1, id="looped-1", marks=pytest.mark.slow),
        pytest.param(LOOPED, 4, id="looped-4", marks=pytest.mark.slow),
        pytest.param(UNNORMALIZED, 4, id="none-4", marks=pytest.mark.slow),
    ],
)
def test_the_cache_may_be_as_small_as_the_trimmed_wiring_makes_it(spec, length):
    made = subject(spec, length)
    model, sites = made.model, cache_sites(made.model)
    trimmed = jax.jit(lambda *of: wirings.forward_at(model, *of, sites=sites)[1])
    cache = trimmed(made.params, made.clean)
    assert state(model, cache, model.spec.depth).shape[1] == 1
    found = patched(model, made.params, cache, made.starts(made.donor))
    for place, logits in found.items():
        np.testing.assert_allclose(logits, made.wanted_at(*place)[None], atol=3e-5)


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(SPEC, id="gpt2", marks=pytest.mark.slow),
        pytest.param(LOOPED, id="looped", marks=pytest.mark.slow),
        pytest.param(UNNORMALIZED, id="none"),
    ],
)
def test_starts_may_be_few_of_several_cells_and_in_any_order(spec):
    made = subject(spec)
    depth = made.model.spec.depth
    first, before, last = (made.donor[made.resid(n)] for n in (0, depth - 1, depth))
    starts = {
        (depth - 1, 2): np.stack([before[:, 2], last[:, 2]]),
        (0, 1): first[None, :, 1],
        (depth, 3): np.stack([last[:, 3]] * 3),
    }
    found = patched(made.model, made.params, made.cache, starts)
    assert [len(found[at]) for at in starts] == [2, 1, 3]
    for place, logits in found.items():
        np.testing.assert_allclose(logits[0], made.wanted_at(*place), atol=3e-5)
    np.testing.assert_array_equal(found[depth, 3][0], found[depth, 3][2])
    assert np.abs(found[depth - 1, 2][0] - found[depth - 1, 2][1]).max() > 1e-3


@every_spec
def test_cones_that_start_inside_a_block_equal_forward(spec):
    """Cones start at attention, MLP and all heads of the first and last block, at two positions."""
    made = subject(spec)
    model, depth = made.model, made.model.spec.depth
    places = list(itertools.product((0, depth - 1), (0, 3)))

    @jax.jit
    def cones(params, cache, donor):
        starts = {}
        network, sites = model.bind(params), model.block.part_sites
        for layer, pos in places:
            own, other = (
                {site: value_at(model, run, f"blocks.{layer}.{site}", pos) for site in sites}
                for run in (cache, donor)
            )
            starts[layer + 1, pos] = network.block(layer).exchange_parts(own, other)
        return patched_logits(model, params, cache, starts)

    found = cones(made.params, made.cache, made.donor)
    for layer, pos in places:
        attn, mlp, z = (f"blocks.{layer}.{n}" for n in INSIDE)
        wanted = [made.wanted(attn, pos), made.wanted(mlp, pos)]
        for head in range(4):  # the mix of a head and its result give the same patch
            site = z if head % 2 else f"blocks.{layer}.attn.hook_result"
            wanted.append(made.wanted(site, pos, head))
        np.testing.assert_allclose(found[layer + 1, pos], np.stack(wanted), atol=3e-5)
        # Nothing reads what the last block writes at another position.
        assert (np.ptp(wanted, axis=0).max() > 1e-3) == (layer < depth - 1 or pos == 3)


def test_a_cone_refuses_places_that_are_not_there():
    made = subject(UNNORMALIZED)
    cache = {site: jnp.asarray(value) for site, value in made.cache.items()}
    start = state(made.model, cache, 0)[None, :, 0]
    with pytest.raises(InputError, match="cannot patch position 4; choose a position from 0 to 3"):
        patched_logits(made.model, made.params, cache, {(0, 4): start})
    with pytest.raises(InputError, match="cannot patch layer 9"):
        patched_logits(made.model, made.params, cache, {(9, 2): start})
