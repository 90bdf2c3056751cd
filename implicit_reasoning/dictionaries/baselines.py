"""Make baselines with which trained dictionaries are compared.

Each baseline corresponds to a dictionary of the last checkpoint with the median sparsity. Baselines
with fitted parameters use the training states of this dictionary, with the same weight for all
positions. Baselines are measured with the same code as dictionaries. The baselines are:

- `k-means`: each state is replaced by the nearest of d_sae centroids;
- `linear`: a linear map, fitted by least squares, predicts the target from the input. Each
  principal direction of the predictions defines two features, one per sign. The k largest features
  of a state are active. For an autoencoder, this baseline is PCA;
- `neurons`: for a transcoder, the features are the neurons of the MLP. For an autoencoder, the
  features are the coordinates of the activation vector. The k features with the largest activation
  times decoder norm are active in a state;
- `class means`: each state is replaced by the nearest class mean. A class contains all states with
  the same bridge (intermediate entity) and the same position. The scores are upper bounds for
  features that represent bridges;
- `frozen decoder`: a dictionary that is trained with a fixed random decoder;
- `untrained model`: a dictionary that is trained on states of the model at step 0. This baseline is
  omitted if the set already contains dictionaries of step 0.

For TopK dictionaries, k is the sparsity. For all other dictionaries, k is the mean number of active
features of the corresponding dictionary.

Sources: `frozen decoder`: Korznikov et al. 2026 (frozen SAEs). `untrained model`: Heap et al. 2025
(random transformers).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.vq import kmeans2

from implicit_reasoning.analysis.instrument import NotApplicable
from implicit_reasoning.analysis.states import need_chains
from implicit_reasoning.analysis.subject import tree_rows
from implicit_reasoning.dictionaries.architectures import Autoencoder, Features, Inputs, Transcoder
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.dictionaries.measures.bridges import bridge_position
from implicit_reasoning.dictionaries.resolved import resolve
from implicit_reasoning.dictionaries.sparse import Sparse
from implicit_reasoning.dictionaries.states import Split, states
from implicit_reasoning.dictionaries.store import ALL_STEPS, UNTRAINED, Dictionaries, Member
from implicit_reasoning.dictionaries.train import train_members
from implicit_reasoning.model import Params
from implicit_reasoning.model.blocks import GPT2Block
from implicit_reasoning.model.blocks.mlp import ACTIVATIONS
from implicit_reasoning.runs import Run
from implicit_reasoning.runtime.machine import highest_precision

FROZEN = "frozen decoder"
_SAMPLE = 8192  # number of states to which clusters and linear maps are fitted
_ROUNDS = 20  # iterations of k-means


class Candidate(NamedTuple):
    """A trained dictionary or a baseline that is measured.

    Attributes:
      name: name of the baseline in tables, or `TRAINED` for a trained dictionary.
      member: the checkpoint and the hook sites that the candidate reads and writes.
      dictionary: the encoder and decoder of the candidate.
      params: the parameters of this candidate only.
    """

    name: str
    member: Member
    dictionary: InferenceDictionary
    params: Params


@dataclass(frozen=True)
class NearestCentroid(InferenceDictionary):
    """A dictionary in which only the feature of the nearest centroid is active.

    There is one feature per centroid. The active feature has activation 1. The columns of `W_enc`
    are the centroids `c`, and the entries of `b_enc` are `-|c|^2 / 2`.
    """

    @highest_precision
    def encode(self, params: Params, x: Inputs) -> Features:
        """Return one-hot activations, which are 1 for the nearest centroid."""
        closeness = self.architecture.project(params, x) + params["b_enc"][None]
        return jax.nn.one_hot(closeness.argmax(-1), self.architecture.d_sae, dtype=x.dtype)


@dataclass(frozen=True)
class Neurons(InferenceDictionary):
    """A dictionary whose features are the neurons of an MLP.

    For each input, the `k` neurons with the largest activation times decoder norm keep their
    activation. All other neurons, and neurons with negative activation, are set to 0.

    Attributes:
      act_fn: name of the MLP's activation function, such as "relu".
    """

    act_fn: str = "relu"

    @highest_precision
    def encode(self, params: Params, x: Inputs) -> Features:
        """Return the activations of at most k neurons per input, and 0 for all other neurons."""
        acts = ACTIVATIONS[self.act_fn](
            self.architecture.project(params, x) + params["b_enc"][None]
        )
        written = acts * self.architecture.norms(params)[None]
        few = jnp.arange(self.max_k)[None] < params["k"]
        index = jax.lax.top_k(written, self.max_k)[1]
        value = jnp.take_along_axis(jax.nn.relu(acts), index, axis=1)
        return Sparse(jnp.where(few, value, 0.0), index).dense(self.architecture.d_sae)


def make_baselines(run: Run, made: Dictionaries, split: Split) -> list[Candidate]:
    """Make all baselines that apply to a set of dictionaries.

    For cross-layer transcoders, only `frozen decoder` and `untrained model` are made. All other
    baselines would treat layers separately, but the outputs of early layers change the inputs of
    later layers.
    """
    found = list(_trained(run, made))
    for number in made.shown:
        if len(made.members[number].write) == 1:
            found += _fitted(run, made, split, number)
    return found


def _trained(run: Run, made: Dictionaries) -> Iterator[Candidate]:
    """Train the baselines `frozen decoder` and `untrained model`."""
    resolved, wanted = resolve(run, made.config), [made.members[n] for n in made.shown]
    settings = dataclasses.replace(resolved.recipe.settings, frozen_decoder=True)
    frozen = dataclasses.replace(resolved.recipe, settings=settings)
    arms = {FROZEN: (dataclasses.replace(resolved, recipe=frozen), wanted)}
    if wanted[0].step != ALL_STEPS and 0 in run.steps and not made.numbers(step=0):
        first = [member._replace(steps=(0,)) for member in wanted]
        arms[UNTRAINED] = resolved, first
    for name, (how, members) in arms.items():
        params = train_members(run, how, tuple(members))
        for number, member in enumerate(members):
            yield Candidate(name, member, made.dictionary, tree_rows(params, number))


def _fitted(run: Run, made: Dictionaries, split: Split, number: int) -> list[Candidate]:
    """Make, for one dictionary, the baselines that need no gradient training."""
    member, architecture = made.members[number], made.dictionary.architecture
    x, y, numbers = _sample(run, split, member)
    k, width = _active(made, number, x), architecture.d_sae
    mean_x, mean_y = x.mean(0), y.mean(0)
    found = {"k-means": _clusters(x, y, _k_means(x, width), width)}
    slope = np.eye(x.shape[1]) if x is y else np.linalg.lstsq(x - mean_x, y - mean_y, rcond=None)[0]
    directions = np.linalg.svd((x - mean_x) @ slope, full_matrices=False)[2]
    found["linear"] = _signed(slope @ directions.T, directions, mean_x, mean_y, k)
    if isinstance(architecture, Autoencoder):
        eye = np.eye(architecture.d_in, dtype=np.float32)
        found["neurons"] = _signed(eye, eye, mean_x, mean_y, k)
    elif (mlp := _mlp(run, member, k)) is not None:
        found["neurons"] = mlp
    if (classes := _bridge_classes(run, split, numbers)) is not None:
        found["class means"] = _clusters(x, y, classes, width)
    return [Candidate(name, member, *made_) for name, made_ in found.items()]


def _sample(
    run: Run, split: Split, member: Member
) -> tuple[np.ndarray, np.ndarray, Int[np.ndarray, " sample"]]:
    """Sample training states, with the same number of states from each position.

    Returns:
      `(x, y, numbers)`: inputs, targets, and the index of each sampled state among the states of
      the split. `y` is the same array as `x` if the dictionary reads and writes the same site.
    """
    places = split.places
    random, there = np.random.default_rng(0), np.flatnonzero(split.trained)
    pos = places.pos[there]
    groups = [there[pos == one] for one in np.unique(pos)]
    each = _SAMPLE // len(groups)
    numbers = np.concatenate([random.permutation(np.resize(g, max(each, 1))) for g in groups])
    compiled = jax.jit(partial(states, run.model, places), static_argnums=1)
    params = run.params(member.steps)
    x = np.asarray(compiled(params, member.read))[numbers]
    same = member.read == member.write
    y = x if same else np.asarray(compiled(params, member.write))[numbers]
    return x, y, numbers


def _active(made: Dictionaries, number: int, x: Float[np.ndarray, "sample d_in"]) -> int:
    """Return a dictionary's k, or its mean number of active features (rounded) if it has no k."""
    params = made.params_of(number)
    if "k" in params:
        return int(params["k"])
    acts = made.dictionary.encode(params, jnp.asarray(x))
    return max(1, round(float((acts > 0).sum(1).mean())))


def _clusters(
    x: Float[np.ndarray, "sample d_in"],
    y: Float[np.ndarray, "sample d_out"],
    cluster: Int[np.ndarray, " sample"],
    width: int,
) -> tuple[InferenceDictionary, Params]:
    """Make a dictionary that returns the mean y of the cluster whose mean x is nearest.

    If there are fewer than `width` clusters, features that are never active are added.
    """
    numbers, cluster = np.unique(cluster, return_inverse=True)
    member = np.eye(len(numbers), dtype=np.float32)[cluster]
    member /= member.sum(0)
    missing = [(0, max(0, width - len(numbers))), (0, 0)]
    reads, writes = (np.pad(member.T @ of, missing) for of in (x, y))
    bias = np.where(np.arange(len(reads)) < len(numbers), -(reads**2).sum(1) / 2, -np.inf)
    params = {"W_enc": reads.T, "b_enc": bias, "W_dec": writes, "b_dec": np.zeros(y.shape[1])}
    architecture = Transcoder(x.shape[1], y.shape[1], len(reads))
    return NearestCentroid(architecture, "standard"), _float32(params)


def _k_means(x: Float[np.ndarray, "sample width"], count: int) -> Int[np.ndarray, " sample"]:
    with warnings.catch_warnings():
        # With fewer distinct states than centroids, some clusters are empty.
        warnings.filterwarnings("ignore", "One of the clusters is empty")
        cluster: np.ndarray = kmeans2(x, count, _ROUNDS, minit="points", rng=0)[1]
    return cluster


def _float32(arrays: dict[str, np.ndarray]) -> Params:
    return jax.device_put({name: value.astype(np.float32) for name, value in arrays.items()})


def _signed(
    reads: Float[np.ndarray, "d_in direction"],
    writes: Float[np.ndarray, "direction d_out"],
    mean_x: np.ndarray,
    mean_y: np.ndarray,
    k: int,
) -> tuple[InferenceDictionary, Params]:
    """Make a TopK dictionary with two features for each direction, one for each sign."""
    encoder = np.concatenate([reads, -reads], axis=1)
    params = {
        "W_enc": encoder,
        "b_enc": -mean_x @ encoder,
        "W_dec": np.concatenate([writes, -writes]),
        "b_dec": mean_y,
    }
    architecture = Transcoder(len(mean_x), len(mean_y), encoder.shape[1])
    k = min(k, len(writes))
    return InferenceDictionary(architecture, "topk", k), {**_float32(params), "k": jnp.int32(k)}


def _mlp(run: Run, member: Member, k: int) -> tuple[InferenceDictionary, Params] | None:
    """Return the neurons of the MLP between the two sites, or None if there is no such MLP."""
    (read,), (write,) = member.read, member.write
    block = write.removesuffix("hook_mlp_out")
    if write == block or read not in (f"{block}ln2.hook_normalized", f"{block}hook_resid_mid"):
        return None
    if read.endswith("hook_resid_mid") and run.model.spec.normalization != "none":
        return None
    if not issubclass(run.model.block, GPT2Block):
        return None
    number = int(block.split(".")[1]) % run.model.spec.n_layers
    weights = {n: v[0] for n, v in run.params(member.steps)["blocks"][str(number)]["mlp"].items()}
    params = {"W_enc": weights["W_in"], "b_enc": weights["b_in"]}
    params |= {"W_dec": weights["W_out"], "b_dec": weights["b_out"], "k": jnp.int32(k)}
    architecture = Transcoder(len(weights["W_in"]), len(weights["b_out"]), len(weights["b_in"]))
    return Neurons(architecture, "topk", k, run.model.spec.act_fn), params


def _bridge_classes(
    run: Run, split: Split, numbers: Int[np.ndarray, " sample"]
) -> Int[np.ndarray, " sample"] | None:
    """Return the class of each state: the pair of its bridge and its position.

    At positions whose prefix does not determine the bridge, the class is the position alone. The
    result is None for tasks without chains.
    """
    dataset, places = run.dataset, split.places
    try:
        need_chains(dataset)
    except NotApplicable:
        return None
    bridge = dataset.truth["e2"][places.rows[places.row]]
    value = np.where(places.pos >= bridge_position(dataset), bridge, -1)
    classes: np.ndarray = (value + 1) * len(dataset.positions) + places.pos
    return classes[numbers]
