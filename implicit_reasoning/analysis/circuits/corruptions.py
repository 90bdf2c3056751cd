"""Values that edges carry outside of a circuit, besides those of a run on a corrupt prompt.

`scores.two_runs` takes the values from a counterfactual prompt. The functions here take them from a
mean over reference prompts, from zero, or from a run on noisy embeddings. Every function returns
`[batch, pos, sender, d_model]`, the `other` of `scores.Runs`:

    runs = two_runs(model, params, clean, corrupt)
    runs = runs._replace(other=mean_outputs(model, params, reference, len(clean)))

Sources: Wang et al. 2023, "Interpretability in the wild", section 2.2 (means over a reference set);
Meng et al. 2022, "Locating and editing factual associations in GPT", section 2.1 (noise of three
standard deviations of the embeddings); Zhang and Nanda 2024, "Towards best practices of activation
patching" (comparison of corruptions).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from implicit_reasoning.model import Edit, Params, Transformer, add
from implicit_reasoning.model.graph import sender_outputs, sender_sites

Outputs = Float[Array, "batch pos sender d_model"]


def mean_outputs(
    model: Transformer,
    params: Params,
    reference: Int[Array | np.ndarray, "reference pos"],
    n_rows: int,
) -> Outputs:
    """Return the mean output of each sender at each position, over reference prompts.

    Args:
      model: the model.
      params: the parameters of one model.
      reference: the reference prompts, such as the clean prompts themselves.
      n_rows: the number of rows of the batch. All rows have the same values.
    """
    mean = sender_outputs(model, params, reference)[1].mean(0)
    return jnp.broadcast_to(mean, (n_rows, *mean.shape))


def zero_outputs(own: Outputs) -> Outputs:
    """Return zeros in the shape of the outputs of all senders.

    Heads write no output bias, so a head that is set to zero is a head without an output matrix. An
    MLP that is set to zero also loses its output bias.

    Args:
      own: the outputs of all senders in the clean run.
    """
    return jnp.zeros_like(own)


def noisy_outputs(
    model: Transformer,
    params: Params,
    tokens: Int[Array | np.ndarray, "batch pos"],
    key: Key[Array, ""],
    *,
    scale: float = 3.0,
    positions: Sequence[int] | None = None,
) -> Outputs:
    """Return the outputs of all senders in a run with Gaussian noise on the embeddings.

    Args:
      model: the model.
      params: the parameters of one model.
      tokens: the clean prompts.
      key: the key of the noise.
      scale: the standard deviation of the noise, in standard deviations of the entries of the token
        embedding matrix.
      positions: the positions with noise; the default is all positions.
    """
    spread = scale * params["embed"]["W_E"].std()
    shape = (*tokens.shape, model.spec.d_model)
    where = np.zeros(tokens.shape[1], np.float32)
    where[list(range(tokens.shape[1]) if positions is None else positions)] = 1
    noise = spread * jax.random.normal(key, shape) * where[None, :, None]
    edits = {sender_sites(model)[0]: Edit(add, noise)}
    return sender_outputs(model, params, tokens, edits=edits)[1]
