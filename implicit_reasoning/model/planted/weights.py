"""Weights of a planted model: heads and neurons that do what a draft says, in one of several forms.

In the simplest form, all codes are orthonormal, neurons are rectified linear, and there is no norm.
Three changes bring a planted model closer to a trained one, and each leaves its mechanism as it is:

- *Superposed* codes: the n codes of a space share fewer than n dimensions, so they are not
  orthogonal. The codes are a tight frame: a head that reads and writes them copies a code exactly.
  A neuron reads other codes of the same space by mistake, but too weakly to become active.
- *gelu*: neurons are scaled so that the activation function is nearly rectified linear.
- *Layer norm*: it divides a state by its length, which depends on the number of codes in the state.
  At each position and layer of a prompt that number is the same for all prompts, so the weights
  undo the division.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from implicit_reasoning.errors import InputError
from implicit_reasoning.model.planted.draft import POSITIONS, Draft, attended
from implicit_reasoning.model.spec import Spec
from implicit_reasoning.model.transformer import Params, Transformer
from implicit_reasoning.model.units import Head, Neuron

HEADS = 3  # per block; no planted model makes more moves than this in one block

# The attention score of the attended position; all other scores are 0. The attention to all other
# positions is then below e^-30 = 1e-13, a millionth of the rounding error of a float32 near 1.
_SCORE = 30.0
# The logit of the right answer; all other logits are 0. With 100 tokens, the probability of the
# right answer is then above .99.
_LOGIT = 10.0
# gelu is within 1e-4 of rectified linear units at inputs of at least 4 in absolute value. With this
# factor, a neuron whose keys add up to at most its threshold less .1 has an input of -4 or less.
_SHARPNESS = 40.0
_PACKED = 0.75  # dimensions of a space with superposed codes, as a share of its number of codes
_DRAWS = 4  # frames from which the one with the least interference is chosen
_ROUNDS, _MORE_ROUNDS = 40, 400  # of the alternating projection: of every frame, of the best one


class Form(NamedTuple):
    """How a mechanism is written into weights; see the module.

    Attributes:
      superposed: whether the codes of entities and of relations are not orthogonal.
      act_fn: activation function, `relu` or `gelu_new`.
      normalization: `none` or `LN`. Layer norm needs tables that work at one position.
    """

    superposed: bool = False
    act_fn: str = "relu"
    normalization: str = "none"


def build(
    draft: Draft,
    rng: np.random.Generator | None,
    form: Form = Form(),  # noqa: B008 - a named tuple is immutable
    example: tuple[int, int, int] | None = None,
) -> tuple[Transformer, Params]:
    """Return the model of a draft and its weights, and number the heads and neurons of the draft.

    Args:
      draft: the draft. `heads` and `neurons` are filled.
      rng: random generator for a rotation of the residual stream and for the order of the heads in
        each block. None: no rotation, and heads in the order of the moves.
      form: the form of the weights.
      example: e1, r1 and r2 of a chain that the model knows. Layer norm needs it.

    Raises:
      InputError: a block has more moves than heads, or layer norm has no example.
    """
    codes = _codes(draft, form)
    widest = max(len(POSITIONS), *(len(move.read) for move in draft.moves))
    width = codes.shape[1] + (form.normalization == "LN")
    d_head = max(-(-width // HEADS), widest)
    own = [table for table in draft.tables if table.same_as is None]
    spec = Spec(
        d_vocab=len(draft.entity) + len(draft.relation),
        n_ctx=len(POSITIONS),
        n_layers=draft.n_layers,
        n_loops=draft.n_loops,
        d_model=HEADS * d_head,
        n_heads=HEADS,
        # Every block has room for all neurons, so the blocks of the tables do not change the
        # shapes.
        d_mlp=max(draft.min_neurons, sum(table.keys.shape[1] for table in own)),
        act_fn=form.act_fn,
        normalization=form.normalization,
    )
    model = Transformer(spec)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params: Params = jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes)
    writer = _Writer(draft, spec, codes, params, example)
    for block in range(draft.n_layers):
        writer.heads(block, np.arange(HEADS) if rng is None else rng.permutation(HEADS))
        writer.neurons(block)
    writer.embed()
    _rotate(params, codes @ _directions(spec, codes.shape[1], rng))
    # `jnp.asarray` would compile one program per shape.
    return model, jax.device_put(jax.tree.map(lambda leaf: leaf.astype(np.float32), params))


class _Writer:
    """Writes the weights of a draft into arrays, in the one-hot dimensions of the draft."""

    def __init__(
        self,
        draft: Draft,
        spec: Spec,
        codes: Float[np.ndarray, "width packed"],
        params: Params,
        example: tuple[int, int, int] | None,
    ):
        self.draft, self.params, self.spec = draft, params, spec
        # The weights have one row for each dimension of the draft until they are rotated.
        _resize(params, draft.width)
        self.scales = _scales(draft, spec, codes, example)
        # Reading superposed codes and writing them again multiplies them by this number.
        self.gain = {
            len(space): float(np.square(codes[space]).sum() / np.linalg.matrix_rank(codes[space]))
            for space in draft.spaces
            if space is not draft.position  # no head copies positions
        }

    def embed(self) -> None:
        draft, params = self.draft, self.params
        tokens = np.concatenate([draft.entity, draft.relation])
        params["embed"]["W_E"][np.arange(len(tokens)), tokens] = 1
        params["pos_embed"]["W_pos"][np.arange(len(POSITIONS)), draft.position] = 1
        logit = _LOGIT * self.scales.last
        params["unembed"]["W_U"][draft.output, np.arange(len(draft.output))] = logit
        for norm in _norms(params):
            norm["w"] += 1

    def heads(self, block: int, heads: Int[np.ndarray, " head"]) -> None:
        draft, attn = self.draft, self.params["blocks"][str(block)]["attn"]
        moves = draft.in_block(draft.moves, block)
        if len(moves) > HEADS:
            raise InputError(
                f"block {block} has {len(moves)} moves, but only {HEADS} heads; each move needs "
                "its own head"
            )
        for head, move in zip(heads, moves, strict=False):
            number = next(n for n, other in enumerate(draft.moves) if other is move)
            draft.heads[number] = Head(move.block, int(head))
            width = np.arange(len(move.read))
            size = self.scales.attn[move.block, move.source] / self.gain[len(move.read)]
            attn["W_V"][head, move.read, width] = size
            if move.once:
                attn["W_V"][head, move.write, width] = -size
            attn["W_O"][head, width, move.write] = 1
            # The query at a position matches the position code of the position that it attends to.
            sharp = _SCORE * attn["W_Q"].shape[-1] ** 0.5
            for query in range(len(POSITIONS)):
                attn["W_Q"][head, draft.position[query], attended(query, move)] = sharp
            attn["W_K"][head, draft.position, np.arange(len(POSITIONS))] = 1

    def neurons(self, block: int) -> None:
        draft, mlp = self.draft, self.params["blocks"][str(block)]["mlp"]
        sharpness = 1.0 if self.spec.act_fn == "relu" else _SHARPNESS
        first = 0
        for number, table in enumerate(draft.tables):
            if table.block % draft.n_layers != block:
                continue
            if table.same_as is not None:
                here = [neuron.index for neuron in draft.neurons[table.same_as]]
                draft.neurons[number] = [Neuron(table.block, index) for index in here]
                continue
            neurons = first + np.arange(table.keys.shape[1])
            draft.neurons[number] = [Neuron(table.block, int(neuron)) for neuron in neurons]
            mlp["W_in"][table.keys, neurons] = sharpness * self.scales.mlp[table.block, table.pos]
            mlp["b_in"][neurons] = sharpness * (0.5 - len(table.keys))
            # The activation of an active neuron is half the sharpness.
            mlp["W_out"][neurons, table.values] = 2 * table.strength / sharpness
            first += len(neurons)


class _Scales(NamedTuple):
    """By what layer norm divides states: for each block and position, and at the answer."""

    attn: Float[np.ndarray, "block pos"]
    mlp: Float[np.ndarray, "block pos"]
    last: float


def _scales(
    draft: Draft,
    spec: Spec,
    codes: Float[np.ndarray, "width packed"],
    example: tuple[int, int, int] | None,
) -> _Scales:
    """Return the scales of layer norm for a chain, which are those of all chains; 1 without norms.

    Raises:
      InputError: the model has layer norm, and there is no example.
    """
    if spec.normalization == "none":
        ones = np.ones((draft.depth, len(POSITIONS)))
        return _Scales(ones, ones, 1.0)
    if example is None:
        raise InputError("layer norm needs an example of a chain, to compute the length of states")
    states = draft.states(example[0], example[1:])
    # The mean over the dimensions is 0; see `_directions`.
    before, between = (
        np.sqrt(np.square(part @ codes).sum(-1) / spec.d_model + spec.eps) for part in states
    )
    return _Scales(before[:-1], between, float(before[-1, -1]))


def _codes(draft: Draft, form: Form) -> Float[np.ndarray, "width packed"]:
    """Return the code of every one-hot dimension of a draft, as a row of length 1.

    Codes of different spaces are orthogonal. Spaces of equal size have equal codes.
    """
    parts = []
    for space in draft.spaces:
        orthogonal = space is draft.position or not form.superposed
        parts.append(np.eye(len(space)) if orthogonal else _frame(len(space)))
    found = np.zeros((draft.width, sum(part.shape[1] for part in parts)))
    column = 0
    for space, part in zip(draft.spaces, parts, strict=True):
        found[space, column : column + part.shape[1]] = part
        column += part.shape[1]
    return found


@functools.cache
def _frame(size: int) -> Float[np.ndarray, "size packed"]:
    """Return unit vectors in fewer dimensions that form a tight frame with little interference.

    The product of two vectors is at most .34 for up to 100 vectors. A neuron with one wrong key
    therefore stays .16 below its threshold.

    Source: alternating projection (Tropp et al. 2005, "Designing structured tight frames via an
    alternating projection method").
    """
    packed = int(np.ceil(_PACKED * size))
    found = []
    for draw in range(_DRAWS):
        frame = np.random.default_rng([size, draw]).standard_normal((size, packed))
        frame = _tightened(frame, _ROUNDS)
        found.append((float(np.abs(frame @ frame.T - np.eye(size)).max()), draw, frame))
    return _tightened(min(found, key=lambda one: one[:2])[2], _MORE_ROUNDS)


def _tightened(frame: Float[np.ndarray, "size packed"], rounds: int) -> np.ndarray:
    """Return a frame after some rounds of alternating projection, with rows of length 1."""
    size, packed = frame.shape
    for _ in range(rounds):
        frame = frame / np.linalg.norm(frame, axis=1, keepdims=True)
        left, _, right = np.linalg.svd(frame, full_matrices=False)
        frame = (left @ right) * np.sqrt(size / packed)
    return frame / np.linalg.norm(frame, axis=1, keepdims=True)


def _directions(
    spec: Spec, packed: int, rng: np.random.Generator | None
) -> Float[np.ndarray, "packed d_model"]:
    """Return orthonormal directions in the residual stream.

    With layer norm they are orthogonal to the vector of ones, so the mean over dimensions is 0.
    """
    if rng is None and spec.normalization == "none":
        return np.eye(packed, spec.d_model)
    size = spec.d_model
    drawn = np.eye(size) if rng is None else rng.standard_normal((size, size))
    if spec.normalization == "none":
        return np.linalg.qr(drawn)[0][:packed]
    basis = np.linalg.qr(np.column_stack([np.ones(size), drawn[:, :-1]]))[0]
    return basis[:, 1 : packed + 1].T


def _rotate(params: Params, directions: Float[np.ndarray, "width d_model"]) -> None:
    """Turn dimensions of the draft into directions, in all weights that read or write them."""
    params["embed"]["W_E"] = params["embed"]["W_E"] @ directions
    params["pos_embed"]["W_pos"] = params["pos_embed"]["W_pos"] @ directions
    params["unembed"]["W_U"] = directions.T @ params["unembed"]["W_U"]
    for block in params["blocks"].values():
        attn, mlp = block["attn"], block["mlp"]
        attn |= {name: directions.T @ attn[name] for name in ("W_Q", "W_K", "W_V")}
        attn["W_O"] = attn["W_O"] @ directions
        mlp |= {"W_in": directions.T @ mlp["W_in"], "W_out": mlp["W_out"] @ directions}


def _resize(params: Params, width: int) -> None:
    """Replace the residual stream in all weight matrices by one of another width, of zeros."""

    def zeros(old: np.ndarray, axis: int) -> np.ndarray:
        shape = list(old.shape)
        shape[axis] = width
        return np.zeros(shape)

    for group, name in (("embed", "W_E"), ("pos_embed", "W_pos")):
        params[group][name] = zeros(params[group][name], -1)
    params["unembed"]["W_U"] = zeros(params["unembed"]["W_U"], 0)
    for block in params["blocks"].values():
        attn, mlp = block["attn"], block["mlp"]
        attn |= {name: zeros(attn[name], -2) for name in ("W_Q", "W_K", "W_V")}
        attn["W_O"] = zeros(attn["W_O"], -1)
        mlp |= {"W_in": zeros(mlp["W_in"], 0), "W_out": zeros(mlp["W_out"], -1)}


def _norms(params: Params) -> list[dict[str, np.ndarray]]:
    """Return the parameters of all norms."""
    found = [
        block[name]
        for block in params["blocks"].values()
        for name in ("ln1", "ln2")
        if name in block
    ]
    return [*found, *([params["ln_final"]] if "ln_final" in params else [])]
