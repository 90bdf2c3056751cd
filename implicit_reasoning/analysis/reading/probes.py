"""Linear probes, which decode variables from held-out states by ridge regression.

A ridge regression to one-hot classes is fitted at every (layer, position), with cross-validation.
There are two ways to assign states to folds. With held-out prefixes, all states with the same
prefix are in the same fold. With held-out e1, all states with the same e1 are in the same fold,
which is the harder test. There are three controls:

- If labels are shuffled between states, the accuracy must be at chance level.
- In the control task (Hewitt and Liang 2019), each e1 is assigned a random label. A probe with a
  high accuracy on this task can memorize a label for each e1. The selectivity is the accuracy on
  the variable minus the accuracy on the control task.
- For a variable that is unknown at a position, such as r2 at position r1, the accuracy must be at
  chance level.

Claims require a high accuracy with held-out e1, which excludes memorized labels. Claims do not use
the selectivity. If a state represents both e1 and the bridge, probes with held-out prefixes solve
both tasks, so the selectivity is 0.

Sparse probes for e2 (Gurnee et al. 2023) use k dimensions of the residual stream, or k neurons of
the last MLP before the state. The dimensions are chosen separately for each class. The chosen
dimensions have the largest difference between the mean of the class and the mean of all other
classes. Only states in the training folds are used for the choice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float, Int, Key

from implicit_reasoning.analysis.claims import (
    MIN_LOWER_BOUND,
    MIN_TIMES_CHANCE,
    Claim,
    above_chance,
    claimed,
)
from implicit_reasoning.analysis.drawing import curves, heat_maps
from implicit_reasoning.analysis.facts import (
    fact_rows,
    first_known_position,
    first_occurrences,
    state_folds,
)
from implicit_reasoning.analysis.instrument import Examples, Instrument, NotApplicable
from implicit_reasoning.analysis.reading.ridge import (
    STRENGTH,
    FoldRows,
    Sums,
    arrange_by_fold,
    leave_fold_out_sums,
    predict,
    ridge,
    sparse_ridge,
)
from implicit_reasoning.analysis.states import (
    Variables,
    chain_variables,
    neuron_sites,
    prompts,
    residuals,
    state_keys,
)
from implicit_reasoning.figures import GREY, ORANGE, Figure
from implicit_reasoning.formatting import plural
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.worlds import Dataset

HELD_OUT = ("prefix", "e1")
TRUTHS = ("true", "shuffled", "control")
BASES = ("residual", "neurons")
SIZES = (1, 4, 16)
_FOLDS = 5
_MAX_FACTS = 4000  # maximum number of facts; larger worlds use all facts of some bridges


class Probes(Instrument):
    """Instrument that decodes each variable from held-out states with a linear probe."""

    name = "probes"
    version = 2
    definition = (
        "accuracy: share of distinct states S[layer, pos] whose class a probe reads. The probe "
        f"is a ridge regression to one-hot classes (ridge {STRENGTH:g} x trace / width); the "
        "class with the largest output is its prediction. There is one chain per first fact, "
        f"and there are {_FOLDS} folds. held_out: folds hold out prefixes, or all states with "
        "the same e1 (the accuracy for e1 itself is then 0 by construction). At layer 0, where "
        "a state is the embedding of its token, folds hold out tokens. truth: the true "
        "classes; the classes shuffled between states; or control, a random label for each e1 "
        "(Hewitt and Liang 2019). selectivity: accuracy for the true classes minus accuracy "
        "for control. sparse: accuracy for e2 of a probe that reads k dimensions per class, "
        "chosen by difference of means (Gurnee et al. 2023), with prefixes held out; 0 for "
        "neurons at layer 0, which no neuron writes to. chance: accuracy of the best constant "
        "answer. n_classes: number of classes that occur."
    )
    outputs = {
        "accuracy": ("held_out", "truth", "variable", "layer", "pos", "example"),
        "selectivity": ("held_out", "variable", "layer", "pos", "example"),
        "sparse": ("basis", "k", "truth", "layer", "pos", "example"),
        "chance": ("variable", "pos"),
        "n_classes": ("variable",),
    }
    nulls = {
        "shuffled truth": {"truth": "shuffled"},
        "control task": {"truth": "control"},
        "best constant answer": "chance",
    }

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose one chain for each first fact, and assign states to folds.

        Labels are assigned for the variables and for the controls.
        """
        require_gpt2(model.spec, f"the instrument {self.name!r}", NotApplicable)
        facts = fact_rows(dataset, _MAX_FACTS)
        variables = chain_variables(dataset, facts.rows)
        tokens, prefixes = prompts(dataset, facts.rows), state_keys(dataset, facts.rows)
        counted, layers = first_occurrences(prefixes), model.spec.depth + 1
        e1 = variables.values[variables.names.index("e1")]
        folds = np.stack(
            [
                state_folds(tokens.T, prefixes, layers, _FOLDS, together)
                for together in (None, e1.astype(np.int64))
            ]
        )
        labels, n_classes = _labels(variables, e1)
        weights = np.broadcast_to(counted, folds.shape)
        inputs = {
            "tokens": tokens,
            "layout": arrange_by_fold(folds, weights, _FOLDS)._asdict(),
            "labels": labels,
            "n_classes": n_classes,
            "chance": _commonest(labels[0], counted),
            "outputs": _outputs(np.tile(n_classes, len(TRUTHS)))._asdict(),
            "outputs_e2": _outputs(n_classes[[2] * len(TRUTHS)])._asdict(),
        }
        return Examples(
            inputs,
            groups=facts.groups,
            group=facts.group,
            clusters=np.where(counted, prefixes, -1),
            cluster_dim="pos",
            coords={
                "held_out": HELD_OUT,
                "truth": TRUTHS,
                "variable": variables.names,
                "basis": BASES,
                "k": SIZES,
            },
        )

    def sites(self, model: Transformer) -> tuple[str, ...]:
        """Return the names of the sites of the residual stream and of the MLP neurons."""
        return (*model.resid_sites, *neuron_sites(model))

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute whether probes classify each state correctly.

        The probe of a state is fitted to the folds that do not contain the state.
        """
        states = residuals(model, params, inputs["tokens"])
        _, found = model.forward(params, inputs["tokens"], sites=neuron_sites(model))
        neurons = jnp.stack([found[site] for site in neuron_sites(model)])
        layout, labels = FoldRows(**inputs["layout"]), jnp.asarray(inputs["labels"])
        by_place = [jnp.swapaxes(x, 1, 2) for x in (states, neurons)]  # [layer, pos, row, ...]

        right = _cells(
            lambda cell: _read(cell[0], FoldRows(*cell[1]), labels, inputs),
            (jnp.stack([by_place[0]] * len(HELD_OUT)), tuple(layout)),
            axes=3,
        )
        accuracy = jnp.moveaxis(right, (1, 2), (3, 4))
        by_prefix = tuple(jnp.asarray(part)[0] for part in layout)
        few = [
            _cells(
                lambda cell: _read_few(cell[0], FoldRows(*cell[1]), labels[:, 2], inputs),
                (values, tuple(part[-len(values) :] for part in by_prefix)),
                axes=2,
            )
            for values in by_place
        ]
        few[1] = jnp.concatenate([jnp.zeros_like(few[1][:1]), few[1]])  # no MLP precedes layer 0
        return {
            "accuracy": accuracy,
            "selectivity": accuracy[:, 0].astype(jnp.int8) - accuracy[:, 2].astype(jnp.int8),
            "sparse": jnp.moveaxis(jnp.stack(few), (1, 2), (3, 4)),
            "chance": jnp.asarray(inputs["chance"]),
            "n_classes": jnp.asarray(inputs["n_classes"]),
        }

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """Claim "decodable" where probes are accurate with held-out prefixes and held-out e1.

        For the variable e1, a high accuracy with held-out prefixes is sufficient. The accuracy must
        also be above the accuracy for shuffled labels, and above the accuracy of the best constant
        answer. Claims do not use the control task, because a probe that memorizes a label for each
        e1 fails with held-out e1.
        """
        best = result.isel(group=0)
        low = best["accuracy_low"].sel(truth="true", drop=True)
        by_prefix, by_e1 = (low.sel(held_out=scheme, drop=True) for scheme in HELD_OUT)
        itself = result["variable"] == "e1"  # e1 cannot be held out by e1
        of_prefix = best.sel(held_out="prefix", drop=True)
        there = (by_prefix >= MIN_LOWER_BOUND) & (itself | (by_e1 >= MIN_LOWER_BOUND))
        there &= above_chance(of_prefix, "accuracy", {"truth": ("true", "shuffled")})
        there &= by_prefix >= MIN_TIMES_CHANCE * result["chance"]
        return claimed("decodable", there)

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the accuracy of the probes.

        The figures show e2 over training, all variables at the last checkpoint, and sparse probes.
        """
        return [_over_training(result), _everything(result), _few_dimensions(result)]


def _labels(
    variables: Variables, e1: Int[np.ndarray, " row"]
) -> tuple[Int[np.ndarray, "truth variable row"], Int[np.ndarray, " variable"]]:
    """Return the labels as classes 0, 1, ..., and the number of classes of each variable.

    There are true labels, labels shuffled between rows, and labels of the control task. The control
    task draws a random label for each e1.
    """
    random = np.random.default_rng(0)
    true = np.stack([np.unique(values, return_inverse=True)[1] for values in variables.values])
    n_classes = true.max(axis=1) + 1
    lots = [random.integers(count, size=e1.max() + 1)[e1] for count in n_classes]
    shuffled = true[:, random.permutation(len(e1))]
    return np.stack([true, shuffled, np.stack(lots)]).astype(np.int32), n_classes.astype(np.int32)


class Outputs(NamedTuple):
    """Layout of the outputs of a regression that predicts several labels.

    The regression has one output for each class of each label.

    Attributes:
      label: int32 [out], the index of the label of each output.
      number: int32 [out], the class of each output.
      place: int32 [label, most], the index of the output for each label and class. If the label has
        no such class, the entry is the number of outputs.
    """

    label: Int[Array | np.ndarray, " out"]
    number: Int[Array | np.ndarray, " out"]
    place: Int[Array | np.ndarray, "label most"]


def _outputs(n_classes: Int[np.ndarray, " label"]) -> Outputs:
    label = np.repeat(np.arange(len(n_classes)), n_classes)
    first = np.cumsum(n_classes) - n_classes
    number = np.arange(n_classes.sum()) - first[label]
    most = np.arange(n_classes.max())[None]
    place = np.where(most < n_classes[:, None], first[:, None] + most, n_classes.sum())
    return Outputs(*(part.astype(np.int32) for part in (label, number, place)))


def _commonest(
    labels: Int[np.ndarray, "variable row"], counted: Bool[np.ndarray, "pos row"]
) -> Float[np.ndarray, "variable pos"]:
    shares = [
        [np.bincount(line[there]).max() / there.sum() for there in counted] for line in labels
    ]
    return np.array(shares, np.float32)


def _cells(function: Any, stacked: Any, axes: int) -> Array:
    """Apply a function to one cell at a time. Cells are indices of the first `axes` axes."""
    shape = jax.tree.leaves(stacked)[0].shape[:axes]
    flat = jax.tree.map(lambda x: jnp.asarray(x).reshape(-1, *x.shape[axes:]), stacked)
    found: Array = jax.lax.map(function, flat)
    return found.reshape(*shape, *found.shape[1:])


def _read(
    states: Float[Array, "row width"],
    layout: FoldRows,
    labels: Int[Array, "truth variable row"],
    inputs: Any,
) -> Bool[Array, "truth variable row"]:
    """Return whether the class of each state is read by the probe that is fitted without it."""
    flat = labels.reshape(-1, labels.shape[-1]).T[jnp.asarray(layout.members)]
    outputs = Outputs(**inputs["outputs"])
    x, sums = _fit(states, layout, flat, outputs)
    return _right(predict(sums, ridge(sums), x), layout, flat, outputs).reshape(labels.shape)


def _read_few(
    states: Float[Array, "row width"],
    layout: FoldRows,
    labels: Int[Array, "truth row"],
    inputs: Any,
) -> Bool[Array, "k truth row"]:
    """Return what `_read` returns, for e2 and sparse probes of each size in `SIZES`."""
    by_fold = labels.T[jnp.asarray(layout.members)]
    outputs = Outputs(**inputs["outputs_e2"])
    x, sums = _fit(states, layout, by_fold, outputs)
    return jnp.stack(
        [
            _right(predict(sums, weights, x), layout, by_fold, outputs)
            for weights in sparse_ridge(sums, min(max(SIZES), states.shape[1]), SIZES)
        ]
    )


def _fit(
    states: Float[Array, "row width"],
    layout: FoldRows,
    labels: Int[Array, "fold member label"],
    outputs: Outputs,
) -> tuple[Float[Array, "fold member width"], Sums]:
    one_hot = labels[..., outputs.label] == jnp.asarray(outputs.number)[None, None]
    x = states[jnp.asarray(layout.members)]
    return x, leave_fold_out_sums(x, one_hot.astype(jnp.float32), jnp.asarray(layout.weight))


def _right(
    said: Float[Array, "fold member out"],
    layout: FoldRows,
    labels: Int[Array, "fold member label"],
    outputs: Outputs,
) -> Bool[Array, "label row"]:
    """Return whether the true class has the largest output of all classes of its label."""
    said = jnp.pad(said, ((0, 0), (0, 0), (0, 1)), constant_values=-jnp.inf)[..., outputs.place]
    # A diverged model has nan outputs, which match no class.
    right = (said.argmax(-1) == labels) & jnp.isfinite(said.max(-1))
    return right.reshape(-1, labels.shape[-1])[jnp.asarray(layout.place)].T


def _over_training(result: xr.Dataset) -> Figure:
    """Draw the accuracy for e2 over training at the first position whose prefix determines e2."""
    pos = first_known_position("e2", list(result.pos.values))
    panels = {
        f"held out by {scheme}": {"held_out": scheme, "variable": "e2", "pos": pos}
        for scheme in HELD_OUT
    }
    lead = str(result.group.values[0])
    drawing = curves(
        result,
        "accuracy",
        panels,
        select={"group": lead, "truth": "true"},
        nulls={
            "null: shuffled truth": ({"group": lead, "truth": "shuffled"}, GREY),
            "control: a random\nlabel for each e1": ({"group": lead, "truth": "control"}, ORANGE),
        },
        label=f"accuracy of linear probes, e2 at {pos}",
    )
    caption = (
        f"Each curve shows the share of held-out states at {pos} from which a linear probe "
        f"reads the bridge e2, for one layer ({_n(result, lead, pos)}). In the left panel, all "
        "states with the same prefix are held out together. In the right panel, all states with "
        "the same e1 are held out together. The shading is the 95% interval over states. The "
        "dashed lines are controls, each as the maximum over layers. The gray line is the null: "
        "the same probes on shuffled truth. The orange line shows the same probes on a random "
        "label for each e1. In the left panel, a probe that memorizes e1 is high on the orange "
        "line too. In the right panel, a probe is accurate only if it reads the bridge itself."
    )
    return Figure("probes", "Accuracy of linear probes for the bridge", caption, drawing)


def _everything(result: xr.Dataset) -> Figure:
    final = result.isel(step=-1, group=0).sel(held_out="prefix")
    maps = {
        f"{name}": final["accuracy"].sel(truth="true", variable=name)
        for name in result["variable"].values
    }
    null = final["accuracy"].sel(truth="shuffled").max("variable")
    maps["null: shuffled truth\n(maximum)"] = null
    drawing = heat_maps(maps, "accuracy, held out by prefix")
    step = int(final["step"])
    caption = (
        "A cell is the accuracy of a linear probe for one variable at one layer and position, "
        f"on held-out prefixes, at step {step:,}. Layer 0 is the embedding. There, all states "
        "with the same token are held out together, so a probe can read only what tokens have "
        "in common. A class with a single state (such as e1 at position e1) cannot be read "
        "either. The last map is the null: the accuracy on shuffled truth, as the maximum over "
        "variables. At positions before a variable is known, its map must look like the null."
    )
    return Figure(
        "probes_map", "What linear probes read at every layer and position", caption, drawing
    )


def _few_dimensions(result: xr.Dataset) -> Figure:
    pos, lead = first_known_position("e2", list(result.pos.values)), str(result.group.values[0])
    panels = {
        f"{plural(k, kind)} per class": {"basis": basis, "k": k}
        for basis, kind in zip(BASES, ("dimension", "neuron"), strict=True)
        for k in SIZES
    }
    drawing = curves(
        result,
        "sparse",
        panels,
        select={"group": lead, "truth": "true", "pos": pos},
        nulls={"null: shuffled truth": ({"group": lead, "truth": "shuffled", "pos": pos}, GREY)},
        label=f"accuracy, e2 at {pos}",
        ncols=len(SIZES),
    )
    caption = (
        f"Each curve shows the share of held-out states at {pos} whose bridge e2 is read from k "
        "dimensions for each class, for one layer. The top row reads dimensions of the residual "
        "stream. The bottom row reads neurons of the last MLP before the state; layer 0 has no "
        "such MLP. The dimensions are those with the largest difference of means on the states "
        "that the probe is fitted to. If the share is high for k = 1, single dimensions "
        "represent single entities. The shading is the 95% interval over states. The dashed "
        "line is the null: shuffled truth, as the maximum over layers."
    )
    return Figure("probes_sparse", "Accuracy of probes that read few dimensions", caption, drawing)


def _n(result: xr.Dataset, group: str, pos: str) -> str:
    return f"{int(result['n_states'].sel(group=group, pos=pos))} distinct states of {group} facts"
