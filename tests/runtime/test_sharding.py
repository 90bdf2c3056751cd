"""The mesh and the shardings, as far as one device can test them."""

import jax
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec
from ml_collections import ConfigDict

from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.runtime.sharding import AXES, make_mesh, row_sharded, tree_shardings
from implicit_reasoning.training.setup import mesh_axes

# All sizes differ, so that a shape identifies the dimensions.
SPEC = Spec(d_vocab=11, n_ctx=5, n_layers=2, d_model=12, n_heads=3, d_mlp=20, unembed_bias=True)
PARAMS = jax.eval_shape(Transformer(SPEC).init, jax.random.key(0))


def mesh_of(*shape):
    return make_mesh(ConfigDict(dict(zip(AXES, shape, strict=True))))


def test_this_machine_has_one_device():
    assert len(jax.devices()) == 1


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, -1, 1), (-1, 1, 1), (1, 1, -1)])
def test_a_mesh_takes_all_devices(shape):
    mesh = mesh_of(*shape)
    assert dict(mesh.shape) == {"trial": 1, "data": 1, "model": 1}
    assert tuple(mesh.shape) == AXES
    # Explicit axes, make_mesh's default, would break indexing inside the model.
    assert mesh.axis_types == (AxisType.Auto,) * 3


@pytest.mark.parametrize("shape", [(-1, -1, 1), (1, 0, 1), (1, 1, -2), (0, -1, 1)])
def test_sizes_that_mean_nothing_are_refused(shape):
    with pytest.raises(InputError, match="all sizes must be positive, except that one"):
        mesh_of(*shape)


@pytest.mark.parametrize("shape", [(1, 2, 1), (2, -1, 1), (3, 1, 5)])
def test_more_devices_than_there_are_cannot_be_asked_for(shape):
    with pytest.raises(InputError, match=r"mesh \{'trial': .* does not fit the 1 devices"):
        mesh_of(*shape)


def specs(tree, *, fsdp=False):
    """Return `{dotted name: PartitionSpec}`."""
    shardings = tree_shardings(mesh_of(1, 1, 1), tree, mesh_axes(Transformer(SPEC)), fsdp=fsdp)
    assert jax.tree.structure(shardings) == jax.tree.structure(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): sharding.spec
        for path, sharding in jax.tree_util.tree_leaves_with_path(shardings)
    }


HEADS, NEURONS = PartitionSpec("model"), PartitionSpec(None, "model")


def test_heads_and_neurons_are_split_and_everything_else_is_whole():
    split = {name: spec for name, spec in specs(PARAMS).items() if spec != PartitionSpec()}
    wanted = {
        **{f"attn.{kind}_{which}": HEADS for kind in "Wb" for which in "QKV"},
        **{"attn.W_O": HEADS, "mlp.W_in": NEURONS, "mlp.b_in": HEADS, "mlp.W_out": HEADS},
    }
    assert split == {
        f"blocks.{layer}.{name}": spec for layer in range(2) for name, spec in wanted.items()
    }


def test_fully_sharded_parameters_split_every_weight_along_d_model():
    for (path, leaf), spec in zip(
        jax.tree_util.tree_leaves_with_path(PARAMS), specs(PARAMS, fsdp=True).values(), strict=True
    ):
        split = {axis: size for size, axis in zip(leaf.shape, spec, strict=False)}
        weight = path[-1].key.startswith("W_")
        assert split.get("data") == (SPEC.d_model if weight else None), path


def test_what_is_split_is_a_dimension_of_heads_or_neurons():
    for (path, leaf), spec in zip(
        jax.tree_util.tree_leaves_with_path(PARAMS), specs(PARAMS).values(), strict=True
    ):
        for size, axis in zip(leaf.shape, spec, strict=False):
            assert axis is None or size in (SPEC.n_heads, SPEC.d_mlp), path


def test_adams_moments_live_where_their_parameters_do():
    state = jax.eval_shape(optax.chain(optax.identity(), optax.scale_by_adam()).init, PARAMS)
    placed, of_params = specs({"moments": state}), specs(PARAMS)
    for moment in ("mu", "nu"):
        for name, spec in of_params.items():
            assert placed[f"moments.1.{moment}.{name}"] == spec
    assert placed["moments.1.count"] == PartitionSpec()


def test_batches_are_split_by_rows():
    assert row_sharded(mesh_of(1, 1, 1)).spec == PartitionSpec("data")
