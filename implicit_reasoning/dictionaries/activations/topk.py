"""TopK: the k features that would write most are active, and no others.

BatchTopK takes the k times batch largest of a whole batch instead, so that some inputs may have
more; what is then the smallest activation is averaged over steps, and becomes the threshold by
which the finished dictionary decides one input at a time.

Both give dead features something to do (AuxK): the error that is left is to be written by those
dead features that would write most.

Sources: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", section 2 and A.2; Bussmann,
Leask and Nanda 2024, "BatchTopK sparse autoencoders". The target of AuxK is the error that is left,
target minus output (OpenSAE takes its negative, which makes dead features write the opposite).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from implicit_reasoning.dictionaries.activations.base import (
    ActivationFn,
    Encoded,
    ForwardPass,
    Scalar,
)
from implicit_reasoning.dictionaries.architectures import Architecture, Inputs
from implicit_reasoning.dictionaries.sparse import Sparse
from implicit_reasoning.model import Params

_RATE = 0.01  # of the running threshold
_MAX_DENSE_RATIO = (
    32  # times k: up to so many features are all computed, where products have many threads
)


@dataclass(frozen=True)
class TopK(ActivationFn):
    """See the module; `sparsity` is k.

    Attributes:
      max_k: the largest k there will be; that many features are gathered.
      aux: coefficient of AuxK.
    """

    max_k: int = 16
    aux: float = 1.0

    name: ClassVar[str] = "topk"
    sparsity_kind: ClassVar[str] = "k"
    saelens_architecture: ClassVar[str] = "topk"

    def encode(
        self, architecture: Architecture, params: Params, x: Inputs, sparsity: Scalar
    ) -> Encoded:
        """Chosen by what all would write, then computed, and differentiated, for the chosen."""
        if architecture.d_sae <= _MAX_DENSE_RATIO * self.max_k and not _one_thread():
            return self._encode_all(architecture, params, x, sparsity)
        # No gradient passes where features are chosen by.
        projected = jax.lax.stop_gradient(architecture.project(params, x))
        pre = projected + jax.lax.stop_gradient(params["b_enc"])[None]
        written = pre * jax.lax.stop_gradient(architecture.norms(params))[None]
        chosen = jax.lax.top_k(written, min(self.max_k, architecture.d_sae))[1]
        value = architecture.project_at(params, x, chosen, projected) + params["b_enc"][chosen]
        few = jnp.arange(chosen.shape[1])[None] < sparsity  # they are in order
        return Encoded(Sparse(jnp.where(few, jax.nn.relu(value), 0.0), chosen), pre)

    def _encode_all(
        self, architecture: Architecture, params: Params, x: Inputs, sparsity: Scalar
    ) -> Encoded:
        """The same where there are few to choose from: choosing them takes longer than to write."""
        pre = architecture.project(params, x) + params["b_enc"][None]
        written = jax.lax.stop_gradient(pre * architecture.norms(params)[None]).astype(jnp.float32)
        return Encoded(jnp.where(largest_few(written, sparsity), jax.nn.relu(pre), 0.0), pre)

    def terms(
        self, architecture: Architecture, params: Params, forward: ForwardPass
    ) -> dict[str, Scalar]:
        """AuxK."""
        return {"aux": self.aux * auxiliary(architecture, params, forward)}


@dataclass(frozen=True)
class BatchTopK(ActivationFn):
    """See the module; `sparsity` is the mean of k."""

    aux: float = 1.0

    name: ClassVar[str] = "batch_topk"
    sparsity_kind: ClassVar[str] = "k"
    saelens_architecture: ClassVar[str] = "jumprelu"

    def encode(
        self, architecture: Architecture, params: Params, x: Inputs, sparsity: Scalar
    ) -> Encoded:
        """The largest of the batch, by what they would write."""
        pre = architecture.project(params, x) + params["b_enc"][None]
        acts = jax.nn.relu(pre)
        written = jax.lax.stop_gradient(acts * architecture.norms(params)[None]).astype(jnp.float32)
        least = largest(written.reshape(-1), jnp.floor(sparsity * len(x)).astype(jnp.int32))
        return Encoded(jnp.where((written >= least) & (written > 0), acts, 0.0), pre)

    def terms(
        self, architecture: Architecture, params: Params, forward: ForwardPass
    ) -> dict[str, Scalar]:
        """AuxK."""
        return {"aux": self.aux * auxiliary(architecture, params, forward)}

    def observe(
        self, architecture: Architecture, params: Params, threshold: Scalar, encoded: Encoded
    ) -> Scalar:
        """A running mean of the least that an active feature writes."""
        written = encoded.dense * architecture.norms(params)[None]
        least = jnp.where(written > 0, written, jnp.inf).min()
        moved = jnp.where(threshold > 0, threshold + _RATE * (least - threshold), least)
        return jnp.where(jnp.isfinite(least), moved, threshold)

    def scaled(self, params: Params, norms: Float[Array, " d_sae"], threshold: Scalar) -> Params:
        """A JumpReLU's, with one threshold for all."""
        own = super().scaled(params, norms, threshold)
        return own | {"threshold": jnp.broadcast_to(threshold, norms.shape)}


def auxiliary(architecture: Architecture, params: Params, forward: ForwardPass) -> Scalar:
    """Squared error of dead features writing what is missing; 0 where none is dead.

    At most half as many as the input has numbers, those that would write most; with fewer dead than
    that, the error counts for less. As in SAELens, their pre-activations count, also if negative.
    """
    most = min(architecture.d_in // 2, architecture.d_sae)
    missing, n_dead = jax.lax.stop_gradient(forward.y - forward.out), forward.dead.sum()

    def of_some() -> Scalar:
        """Of all dead features, where they are at most so many: nobody need choose."""
        index = jnp.argsort(~forward.dead)[:most]
        pre = architecture.project_some(params, forward.x, index) + params["b_enc"][index][None]
        said = jnp.where(forward.dead[index][None], pre, 0.0) @ architecture.rows(params)[index]
        return ((said - missing) ** 2).sum(-1).mean()

    def of_many() -> Scalar:
        written = jax.lax.stop_gradient(forward.encoded.pre * architecture.norms(params)[None])
        written = jnp.where(forward.dead[None], written, -jnp.inf)
        chosen = written >= largest(written, most)[:, None]
        pre = architecture.project(params, forward.x) + params["b_enc"][None]
        said = architecture.write(params, jnp.where(chosen, pre, 0.0))
        return ((said - missing) ** 2).sum(-1).mean()

    which = (n_dead > 0).astype(jnp.int32) + (n_dead > most)
    nothing = jnp.zeros((), missing.dtype)
    found: Scalar = jax.lax.switch(which, [lambda: nothing, of_some, of_many])
    return jnp.minimum(n_dead / most, 1.0) * found


def _one_thread() -> bool:
    """Whether this is traced for a core of its own: members dealt out to a CPU's cores."""
    return jax.default_backend() == "cpu" and jax.sharding.get_abstract_mesh().size > 1


def largest_few(values: Float[Array, "row number"], count: Scalar) -> Array:
    """Which numbers are among the `count` largest of their row; of equal ones the first.

    Maximum after maximum, each below the one before: a third of the time of a sort for 16 of 512.
    Where equal numbers make that too many, they are counted.
    """
    count = count.astype(jnp.int32)

    def below(_: Array, least: Array) -> Array:
        return jnp.where(values < least, values, -jnp.inf).max(-1, keepdims=True)

    start = jnp.full((len(values), 1), jnp.inf)
    chosen = values >= jax.lax.fori_loop(0, count, below, start)

    def counted() -> Array:
        least = largest(values, count)[:, None]
        more, same = values > least, values == least
        missing = count - more.sum(-1, keepdims=True)
        return more | (same & (jnp.cumsum(same, axis=-1) <= missing))

    alike = (chosen.sum(-1) == jnp.minimum(count, values.shape[1])).all()
    found: Array = jax.lax.cond(alike, lambda: chosen, counted)
    return found


def largest(values: Float[Array, "*row number"], count: Int[Array, ""] | int) -> Array:
    """The `count`-th largest number of each row, of any sign; by bisection of their bits.

    Floats are ordered as the integers that their bits make, negative ones once all but their sign
    is flipped. Sorting takes ten times as long, on a CPU and on a GPU.
    """
    bits = _ordered(jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.int32))
    least = jnp.full((*values.shape[:-1], 1), jnp.iinfo(jnp.int32).min)

    def set_bit(number: Array, found: Array) -> Array:
        # The highest bit is the sign: with it, numbers from 0 on.
        step = jnp.where(number == 0, jnp.iinfo(jnp.int32).min, jnp.int32(1) << (31 - number))
        tried = found + step
        return jnp.where((bits >= tried).sum(-1, keepdims=True) >= count, tried, found)

    found = _ordered(jax.lax.fori_loop(0, 32, set_bit, least))
    return jax.lax.bitcast_convert_type(found, jnp.float32)[..., 0]


def _ordered(bits: Int[Array, "*any"]) -> Int[Array, "*any"]:
    """Bits of floats as integers of the same order, and back."""
    return jnp.where(bits < 0, bits ^ jnp.iinfo(jnp.int32).max, bits)
