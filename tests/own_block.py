"""A block that is not attention, as a user would add one: a gated linear recurrence.

    h[t] = g[t] h[t - 1] + (1 - g[t]) v[t],    output[t] = input[t] + W_out h[t]

with gates g and values v that are read from the input at t.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from implicit_reasoning.model.blocks.base import Block
from implicit_reasoning.model.blocks.cells import insert_suffix
from implicit_reasoning.model.blocks.parameters import Parameter, constant, normal
from implicit_reasoning.model.edits import HookContext, expand_to_rank
from implicit_reasoning.model.sites import RESID

STATE = ("batch", "pos", "d_state")


class GatedRecurrence(Block):
    """A gated linear recurrence whose state has `spec.d_mlp` numbers."""

    mixer: nnx.Dict
    dropout_sites = ("hook_mixer_out",)
    cone_sites = ("hook_resid_pre", "mixer.hook_state")

    @staticmethod
    def parameters(spec):
        shape, weight = (spec.d_model, spec.d_mlp), normal(spec.init_std)
        out = normal(spec.residual_init_std)
        return {
            "mixer.W_value": Parameter(shape, weight, True, ("fsdp", "model")),
            "mixer.W_gate": Parameter(shape, weight, True, ("fsdp", "model")),
            "mixer.b_gate": Parameter(shape[1:], constant(0.0), axes=("model",)),
            "mixer.W_out": Parameter(shape[::-1], out, True, ("model", "fsdp")),
        }

    @staticmethod
    def sites(spec):
        return {
            "hook_resid_pre": RESID,
            "mixer.hook_gate": STATE,
            "mixer.hook_state": STATE,
            "hook_mixer_out": RESID,
            "hook_resid_post": RESID,
        }

    @staticmethod
    def dims(spec):
        return {"d_state": spec.d_mlp}

    @staticmethod
    def flops(spec, n_inputs, n_outputs):
        return 3 * 2 * n_inputs * spec.d_model * spec.d_mlp

    def __call__(self, resid, hooks):
        resid = hooks("hook_resid_pre", resid)
        empty = jnp.zeros((len(resid), self.mixer.W_value.shape[1]), resid.dtype)
        return self._from(resid, empty, hooks)

    def _from(self, resid, state, hooks):
        """Return the output, given the state before the first position."""
        value = resid @ self.mixer.W_value[...]
        gate = resid @ self.mixer.W_gate[...]
        gate = jax.nn.sigmoid(gate + expand_to_rank(self.mixer.b_gate[...], gate))
        gate = hooks("mixer.hook_gate", gate)
        states = []
        for pos in range(resid.shape[1]):
            state = gate[:, pos] * state + (1 - gate[:, pos]) * value[:, pos]
            states.append(state)
        states = hooks("mixer.hook_state", jnp.stack(states, axis=1))
        return hooks(
            "hook_resid_post", resid + hooks("hook_mixer_out", states @ self.mixer.W_out[...])
        )

    def run_cones(self, cones, clean, *, only_end):
        """Continue from the clean state before the start of each cone."""
        after = {}
        for (layer, pos), own in cones.items():
            resid = insert_suffix(clean["hook_resid_pre"], own, pos)[:, :, pos:]
            rows = resid.reshape(-1, *resid.shape[2:])
            before = clean["mixer.hook_state"][:, max(pos - 1, 0)] * (pos > 0)
            before = jnp.broadcast_to(before, (*resid.shape[:2], before.shape[-1]))
            out = self._from(rows, before.reshape(len(rows), -1), HookContext())
            after[layer, pos] = out.reshape(resid.shape)[:, :, -1 if only_end else 0 :]
        return after


class PlainRecurrence(GatedRecurrence):
    """The same block with the default definitions of `Block`."""

    cone_sites = Block.cone_sites
    run_cones = Block.run_cones
