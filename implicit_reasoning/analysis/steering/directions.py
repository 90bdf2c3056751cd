"""Fit directions that stand for the values of a variable, at one (layer, position).

A `Direction` has a name and a function. The function gets the states of training chains, and
returns one vector for each value of the variable. A vector is what must be added to a state to
steer it towards the value. Only its direction matters, because the instrument `steering` scales all
vectors to the same norm.

`DIRECTIONS` has the built-in directions. `given` makes a direction from vectors that were computed
elsewhere. For example, the decoder rows of a sparse dictionary can be used as follows. `feature` is
the index of the feature that stands for each entity, or -1:

    rows = numpy.where(feature[:, None] >= 0, W_dec[feature], 0)    # [entity, d_model]
    steering = Steering(directions=(*DIRECTIONS, given("dictionary", rows)))
    analyze(run, steering, steps=[run.steps[-1]])

A value whose vector is 0 is left out for this direction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from implicit_reasoning.analysis.patching.functions import find_function
from implicit_reasoning.analysis.reading.ridge import affine
from implicit_reasoning.analysis.variables.alignment import (
    AlignmentData,
    SearchSettings,
    align,
    orthonormal,
    start,
)
from implicit_reasoning.analysis.variables.subspaces import ClassMeans, whiten
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Params, Transformer, unembedding_matrix

_SHRINKAGE = 0.1  # of the within-class covariance, as in the decoder of `erasure`
_RANK = 32  # of the aligned subspace
_SEARCH_STEPS = 150
_PROBE_STEPS, _PROBE_RATE, _PROBE_DECAY = 300, 0.05, 1e-3


class FitData(NamedTuple):
    """The states of one (layer, position), and what else a direction may be fitted to.

    Attributes:
      states: the states of training chains.
      values: the value of the variable in each chain.
      weight: 1 for the first of equal states, else 0.
      means: the mean state of every value.
      n_values: the number of values of the variable.
      model: the model.
      params: the parameters of the model.
      layer: the number of blocks before the states.
      resid: the residual stream of the chains at this layer, at all positions.
      place: the index of the position.
      base, source, expected: training pairs for a search. The base and the source of each pair are
        indices of chains, and `expected` is the answer token to the base with the value of the
        source; -1 if there is no pair.
      key: a random key.
    """

    states: Float[Array, "row d_model"]
    values: Int[Array, " row"]
    weight: Float[Array, " row"]
    means: ClassMeans
    n_values: int
    model: Transformer
    params: Params
    layer: int
    resid: Float[Array, "row pos d_model"]
    place: Int[Array, ""]
    base: Int[Array, " pair"]
    source: Int[Array, " pair"]
    expected: Int[Array, " pair"]
    key: Key[Array, ""]


Fit = Callable[[FitData], Float[Array, "value d_model"]]


@dataclass(frozen=True)
class Direction:
    """A named method that returns a steering vector for every value.

    Attributes:
      name: the name, which is a label in the result.
      fit: function of `FitData`. JAX traces it, so it must be pure. It returns one vector for each
        value; 0 means that there is no vector.
      source: a digest of what the function depends on besides its data, such as given vectors.
    """

    name: str
    fit: Fit
    source: str = ""

    def identity(self) -> dict[str, Any]:
        """Return the name and the source, for the options of the instrument."""
        built_in = self in DIRECTIONS
        source = "" if built_in else self.source or find_function(self.fit, {}, "direction").source
        return {"name": self.name, "source": source}


def class_mean(data: FitData) -> Float[Array, "value d_model"]:
    """Return the mean state of each value minus the mean over values (difference of means)."""
    return _centred(data.means.mean, data.means)


def discriminant(data: FitData) -> Float[Array, "value d_model"]:
    """Return the directions of linear discriminant analysis (LDA).

    A direction is the inverse within-class covariance times the centered class mean. The covariance
    is shrunk, because there are few states in many dimensions.

    Source: Fisher 1936; Ledoit and Wolf 2004 (shrinkage).
    """
    within = data.states - data.means.mean[data.values]
    inverse = whiten(within, data.weight, _SHRINKAGE).inverse
    centred = _centred(data.means.mean, data.means)
    return _product(_product(centred, inverse), inverse)


def ridge_probe(data: FitData) -> Float[Array, "value d_model"]:
    """Return the weights of the linear probe of the instrument `probes`: ridge regression."""
    target = jax.nn.one_hot(data.values, data.n_values)
    weights, _ = affine(data.states, target, data.weight)
    return weights.T * _known(data.means)


def logistic_probe(data: FitData) -> Float[Array, "value d_model"]:
    """Return the weights of a linear probe that is fitted by multinomial logistic regression.

    States are scaled to unit variance for the fit. Weights have a quadratic penalty. Adam minimizes
    the loss.
    """
    share = data.weight / data.weight.sum()
    mean = _product(share[None], data.states)[0]
    centred = data.states - mean[None]
    scale = jnp.sqrt((share[:, None] * centred**2).sum(0).mean()) + 1e-12
    inputs = centred / scale

    def loss(weights: Array) -> Array:
        logits = _product(inputs, weights.T)
        lost = optax.softmax_cross_entropy_with_integer_labels(logits, data.values)
        return (share * lost).sum() + _PROBE_DECAY * jnp.sum(weights**2)

    optimizer = optax.adam(_PROBE_RATE)

    def step(carry: Any, _: Any) -> tuple[Any, None]:
        weights, state = carry
        updates, state = optimizer.update(jax.grad(loss)(weights), state)
        return (optax.apply_updates(weights, updates), state), None

    first = jnp.zeros((data.n_values, data.states.shape[1]))
    (found, _), _ = jax.lax.scan(step, (first, optimizer.init(first)), None, _PROBE_STEPS)
    return _centred(found, data.means)


def aligned(data: FitData) -> Float[Array, "value d_model"]:
    """Return centered class means, projected onto a subspace from distributed alignment search.

    The search finds the subspace in which interchanges change answers as predicted (see
    `variables/alignment.py`). Its pairs have the prefixes to which all directions are fitted, with
    any relation.
    """
    rank = min(_RANK, data.model.spec.d_model // 2)
    settings = SearchSettings(rank, _SEARCH_STEPS)
    begin, draw = jax.random.split(data.key)
    material = AlignmentData(
        data.resid[None],
        data.place[None],
        data.base,
        data.source[None],
        data.expected[None],
    )
    weights = start(data.model, 1, rank, begin)[:1]
    layers = (data.layer,)
    found = align(data.model, data.params, material, weights, settings, draw, layers=layers)
    basis = orthonormal(found[0, 0])
    return _product(_product(_centred(data.means.mean, data.means), basis), basis.T)


def unembedding(data: FitData) -> Float[Array, "value d_model"]:
    """Return the column of the unembedding for each value, minus the mean over values."""
    columns = unembedding_matrix(data.params).T[: data.n_values]  # entities are the first tokens
    return _centred(columns, data.means)


def random(data: FitData) -> Float[Array, "value d_model"]:
    """Return independent Gaussian vectors, as a null control."""
    drawn = jax.random.normal(data.key, data.means.mean.shape)
    return drawn * _known(data.means)


DIRECTIONS = (
    Direction("class mean", class_mean),
    Direction("LDA", discriminant),
    Direction("ridge probe", ridge_probe),
    Direction("logistic probe", logistic_probe),
    Direction("DAS", aligned),
    Direction("unembedding", unembedding),
)
"""The built-in directions. The instrument `steering` adds the null controls."""


def given(name: str, vectors: Any) -> Direction:
    """Make a direction from vectors that were computed elsewhere.

    Args:
      name: the name of the direction.
      vectors: [value, d_model] numbers, one vector for each value of the variable; 0 if there is
        none.

    Raises:
      InputError: the array does not have two axes, or contains a number that is not finite.
    """
    vectors = np.asarray(vectors, np.float32)
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise InputError(
            f"vectors of the direction {name!r} must be finite numbers of shape [value, d_model]; "
            f"got an array of shape {vectors.shape}"
        )

    def fit(data: FitData) -> Float[Array, "value d_model"]:
        wanted = data.means.mean.shape
        if vectors.shape != wanted:
            raise InputError(
                f"vectors of the direction {name!r} have shape {vectors.shape}; the variable and "
                f"the model need {wanted}"
            )
        return jnp.asarray(vectors)

    return Direction(name, fit, hashlib.sha256(vectors.tobytes()).hexdigest()[:16])


def _known(means: ClassMeans) -> Float[Array, "value 1"]:
    return (means.size > 0).astype(means.mean.dtype)[:, None]


def _centred(vectors: Array, means: ClassMeans) -> Float[Array, "value d_model"]:
    """Subtract the mean over the values that occur. Vectors of other values are 0."""
    known = _known(means)
    centre = (vectors * known).sum(0) / jnp.maximum(known.sum(), 1)
    return (vectors - centre[None]) * known


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")
