"""Define TopK and BatchTopK, which keep the features with the largest outputs.

The output of a feature is the pre-activation times the decoder norm. TopK keeps the k features with
the largest outputs for each input. BatchTopK keeps the `k * batch_size` largest outputs of a batch,
so the number of active features varies between inputs. Training keeps a running mean of the
smallest output that BatchTopK selects. For inference, a feature is active if the output of the
feature exceeds this running mean.

TopK and BatchTopK have an auxiliary loss, AuxK. AuxK trains dead features to predict the
reconstruction error.

Sources: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", section 2 and A.2; Bussmann,
Leask and Nanda 2024, "BatchTopK sparse autoencoders". The reconstruction error in AuxK is the
target minus the output. OpenSAE uses the output minus the target, which trains dead features to
predict the negative error.
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

_RATE = 0.01  # update rate of the running threshold
# With several threads, dense products are faster if d_sae / max_k is at most this ratio.
_MAX_DENSE_RATIO = 32


class AuxK(ActivationFn):
    """Base class of activation functions with the AuxK loss for dead features."""

    aux: float
    sparsity_kind: ClassVar[str] = "k"

    def terms(
        self, architecture: Architecture, params: Params, forward: ForwardPass
    ) -> dict[str, Scalar]:
        """Return the AuxK loss, multiplied by the coefficient `aux`."""
        return {"aux": self.aux * auxiliary(architecture, params, forward)}


@dataclass(frozen=True)
class TopK(AuxK):
    """TopK activation. The sparsity is k, the number of active features per input.

    Attributes:
      max_k: maximum of `sparsity` over the dictionaries that share a compiled program.
      aux: coefficient of the AuxK loss.
    """

    max_k: int = 16
    aux: float = 1.0

    name: ClassVar[str] = "topk"
    saelens_architecture: ClassVar[str] = "topk"

    def encode(
        self, architecture: Architecture, params: Params, x: Inputs, sparsity: Scalar
    ) -> Encoded:
        """Return the activations of the k features with the largest outputs.

        The output of a feature is the pre-activation times the decoder norm. No gradient flows
        through the selection.
        """
        if architecture.d_sae <= _MAX_DENSE_RATIO * self.max_k and not _one_thread():
            return self._encode_all(architecture, params, x, sparsity)
        # The selection has no gradient.
        projected = jax.lax.stop_gradient(architecture.project(params, x))
        pre = projected + jax.lax.stop_gradient(params["b_enc"])[None]
        written = pre * jax.lax.stop_gradient(architecture.norms(params))[None]
        chosen = jax.lax.top_k(written, min(self.max_k, architecture.d_sae))[1]
        value = architecture.project_at(params, x, chosen, projected) + params["b_enc"][chosen]
        few = jnp.arange(chosen.shape[1])[None] < sparsity  # top_k returns descending order
        return Encoded(Sparse(jnp.where(few, jax.nn.relu(value), 0.0), chosen), pre)

    def _encode_all(
        self, architecture: Architecture, params: Params, x: Inputs, sparsity: Scalar
    ) -> Encoded:
        """Compute activations densely; for few features, this is faster than gathering rows."""
        pre = architecture.project(params, x) + params["b_enc"][None]
        written = jax.lax.stop_gradient(pre * architecture.norms(params)[None]).astype(jnp.float32)
        return Encoded(jnp.where(largest_few(written, sparsity), jax.nn.relu(pre), 0.0), pre)


@dataclass(frozen=True)
class BatchTopK(AuxK):
    """BatchTopK activation. The sparsity is the mean number of active features per input.

    Attributes:
      aux: coefficient of the AuxK loss.
    """

    aux: float = 1.0

    name: ClassVar[str] = "batch_topk"
    saelens_architecture: ClassVar[str] = "jumprelu"

    def encode(
        self, architecture: Architecture, params: Params, x: Inputs, sparsity: Scalar
    ) -> Encoded:
        """Keep the `sparsity * batch_size` activations with the largest outputs in the batch.

        The output of a feature is the activation times the decoder norm. All activations with
        smaller outputs are set to 0.
        """
        pre = architecture.project(params, x) + params["b_enc"][None]
        acts = jax.nn.relu(pre)
        written = jax.lax.stop_gradient(acts * architecture.norms(params)[None]).astype(jnp.float32)
        least = largest(written.reshape(-1), jnp.floor(sparsity * len(x)).astype(jnp.int32))
        return Encoded(jnp.where((written >= least) & (written > 0), acts, 0.0), pre)

    def observe(
        self, architecture: Architecture, params: Params, threshold: Scalar, encoded: Encoded
    ) -> Scalar:
        """Update the running mean of the smallest positive output in a batch.

        The output of a feature is the activation times the decoder norm.
        """
        written = encoded.dense * architecture.norms(params)[None]
        least = jnp.where(written > 0, written, jnp.inf).min()
        moved = jnp.where(threshold > 0, threshold + _RATE * (least - threshold), least)
        return jnp.where(jnp.isfinite(least), moved, threshold)

    def scaled(self, params: Params, norms: Float[Array, " d_sae"], threshold: Scalar) -> Params:
        """Return parameters for a JumpReLU in which all features have the threshold `threshold`."""
        own = super().scaled(params, norms, threshold)
        return own | {"threshold": jnp.broadcast_to(threshold, norms.shape)}


def auxiliary(architecture: Architecture, params: Params, forward: ForwardPass) -> Scalar:
    """Compute AuxK, the squared error when dead features predict the reconstruction error.

    AuxK uses the `d_in // 2` dead features with the largest pre-activation times decoder norm. If
    there are only n < `d_in // 2` dead features, AuxK uses all n features, and the loss is
    multiplied by `n / (d_in // 2)`. As in SAELens, AuxK also uses negative pre-activations.
    """
    most = min(architecture.d_in // 2, architecture.d_sae)
    missing, n_dead = jax.lax.stop_gradient(forward.y - forward.out), forward.dead.sum()

    def of_some() -> Scalar:
        """Use all dead features; there are at most `most`, so no selection is needed."""
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
    """Return whether the traced program runs on one CPU core, because members are sharded."""
    return jax.default_backend() == "cpu" and jax.sharding.get_abstract_mesh().size > 1


def largest_few(values: Float[Array, "row number"], count: Scalar) -> Array:
    """Return a mask of the `count` largest numbers of each row.

    If numbers are equal, the mask selects the number with the lowest index. The function takes
    `count` successive maxima. For 16 of 512 numbers, this method takes a third of the time of a
    sort. If equal numbers make the mask too large, a slower method computes an exact mask.
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
    """Find the `count`-th largest number of each row, by bisection over bit patterns.

    The function first flips all bits of negative numbers except the sign bit. The bit patterns,
    read as integers, then have the same order as the floats. A sort would take ten times as long on
    CPUs and GPUs.
    """
    bits = _ordered(jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.int32))
    least = jnp.full((*values.shape[:-1], 1), jnp.iinfo(jnp.int32).min)

    def set_bit(number: Array, found: Array) -> Array:
        # The highest bit is the sign bit. Adding it moves from the minimum to 0.
        step = jnp.where(number == 0, jnp.iinfo(jnp.int32).min, jnp.int32(1) << (31 - number))
        tried = found + step
        return jnp.where((bits >= tried).sum(-1, keepdims=True) >= count, tried, found)

    found = _ordered(jax.lax.fori_loop(0, 32, set_bit, least))
    return jax.lax.bitcast_convert_type(found, jnp.float32)[..., 0]


def _ordered(bits: Int[Array, "*any"]) -> Int[Array, "*any"]:
    """Map float bits to integers of the same order. The map is its own inverse."""
    return jnp.where(bits < 0, bits ^ jnp.iinfo(jnp.int32).max, bits)
