"""Find the sites, checkpoints and shapes of the dictionaries that a configuration specifies."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from implicit_reasoning import imports, renames
from implicit_reasoning.dictionaries import fields
from implicit_reasoning.dictionaries.activations import ACTIVATIONS, ActivationFn
from implicit_reasoning.dictionaries.architectures import (
    ARCHITECTURES,
    Architecture,
    Crosscoder,
    CrossLayer,
)
from implicit_reasoning.dictionaries.checks import check_sparsities
from implicit_reasoning.dictionaries.dictionary import Dictionary
from implicit_reasoning.dictionaries.splice import Sites
from implicit_reasoning.dictionaries.steps import DictionaryRecipe, DictionaryTrainingSettings
from implicit_reasoning.dictionaries.store import Member
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Transformer
from implicit_reasoning.runs import Run


@dataclass(frozen=True)
class ResolvedSet:
    """The dictionaries that a configuration specifies for a run, with training settings.

    Attributes:
      recipe: the shape of the dictionaries and the training settings.
      stages: the dictionaries of each training stage. The dictionaries of a stage are trained at
        the same time. Every stage after the first stage starts from the final parameters of the
        previous stage.
      positions: names of the positions of the training states. An empty tuple means all positions.
      normalize: whether training scales states to a mean norm of sqrt(width).
      log_every: number of steps between rows in the metrics file.
      resume_every: number of steps between saves of the full training state.
      progress: whether to show a progress bar on standard error.
    """

    recipe: DictionaryRecipe
    stages: tuple[tuple[Member, ...], ...]
    positions: tuple[str, ...]
    normalize: bool
    log_every: int
    resume_every: int
    progress: bool

    @property
    def members(self) -> tuple[Member, ...]:
        """The dictionaries of all stages, in the order of training."""
        return tuple(member for stage in self.stages for member in stage)


def resolve(run: Run, config: ConfigDict) -> ResolvedSet:
    """Find the dictionaries and training settings that a configuration specifies for a run.

    Training uses only the returned settings and does not read `config`.

    Raises:
      InputError: a checkpoint or site does not exist in the run, a value is invalid, or two values
        contradict each other.
    """
    fields.check_config(config)
    if config.architecture not in ARCHITECTURES:
        raise InputError(
            f"config.architecture is {config.architecture!r}; it must be one of "
            f"{', '.join(ARCHITECTURES)}"
        )
    steps = _steps(run, config.steps, config.checkpoints)
    groups = _sites(run.model, config.architecture, tuple(config.read), tuple(config.write))
    together = config.architecture == "crosscoder"
    if together and config.start != "cold":
        raise InputError(
            f"config.start is {config.start!r}; it must be 'cold' for a crosscoder, because a "
            "crosscoder reads all checkpoints at once"
        )
    each = [steps] if together else [(step,) for step in steps]
    if config.start == "backwards":
        each.reverse()
    stages = []
    for stage in [each] if config.start == "cold" else [[one] for one in each]:
        combinations = product(stage, groups, config.sparsities, range(config.seeds))
        stages.append(
            tuple(
                Member(of, sites.read, sites.write, float(sparsity), seed)
                for of, sites, sparsity, seed in combinations
            )
        )
    architecture = _architecture(
        run.model, config.architecture, config.width, groups[0], len(steps)
    )
    settings = DictionaryTrainingSettings(**config.training.to_dict())
    activation_fn = _activation_fn(
        config.activation_fn, config.options.to_dict(), config.sparsities
    )
    check_sparsities(
        config.sparsities, settings.batch_size, architecture, config.activation_fn, activation_fn
    )
    return ResolvedSet(
        recipe=DictionaryRecipe(Dictionary(architecture, activation_fn), settings),
        stages=tuple(stages),
        positions=tuple(config.positions),
        normalize=config.normalize,
        log_every=config.log_every,
        resume_every=config.resume_every,
        progress=config.progress,
    )


def _steps(run: Run, chosen: Sequence[int], count: int) -> tuple[int, ...]:
    """Return the chosen checkpoints, or `count` evenly spaced checkpoints if none is chosen."""
    if chosen:
        missing = [step for step in chosen if step not in run.steps]
        if missing:
            raise InputError(
                f"{run} has no checkpoint of step {missing[0]}; its steps are "
                f"{', '.join(map(str, run.steps)) or 'none'}"
            )
        return tuple(sorted(chosen))
    if not run.steps:
        raise InputError(f"{run} has no checkpoints; train its model first")
    # The spacing begins with the last checkpoint, so a count of 1 selects the last checkpoint.
    places = np.linspace(len(run.steps) - 1, 0, min(count, len(run.steps))).round().astype(int)
    return tuple(sorted(run.steps[place] for place in places))


def _sites(
    model: Transformer, architecture: str, read: tuple[str, ...], write: tuple[str, ...]
) -> list[Sites]:
    """Return the sites that each dictionary of one checkpoint reads and writes."""
    blocks, same = range(model.spec.depth), architecture in ("autoencoder", "crosscoder")
    if not read:
        normalized = model.spec.normalization != "none"
        before = "ln2.hook_normalized" if normalized else "hook_resid_mid"
        name = "hook_resid_post" if same else before
        read = tuple(f"blocks.{block}.{name}" for block in blocks)
        write = write or tuple(f"blocks.{block}.hook_mlp_out" for block in blocks)
    if same:
        write = read
    if len(read) != len(write):
        raise InputError(
            f"read has {len(read)} sites and write has {len(write)} sites; read and write must "
            "have equal length"
        )
    unknown = [site for site in (*read, *write) if site not in model.sites]
    if unknown:
        raise InputError(f"there is no site {unknown[0]!r}; choose sites from model.sites")
    if architecture == "cross_layer":
        return [Sites(read, write)]
    return [Sites((a,), (b,)) for a, b in zip(read, write, strict=True)]


def _architecture(
    model: Transformer, name: str, width: int, sites: Sites, n_steps: int
) -> Architecture:
    parts = n_steps if name == "crosscoder" else len(sites.read)
    d_in, d_out = (parts * _width(model, names[0]) for names in (sites.read, sites.write))
    make = ARCHITECTURES[name]
    if make is Crosscoder:
        return Crosscoder(d_in, d_out, width, n_parts=parts)
    if make is CrossLayer:
        return CrossLayer(d_in, d_out, width, n_layers=parts)
    return make(d_in, d_out, width)


def _width(model: Transformer, site: str) -> int:
    """Return the width of a site, which is the length of its vector at one position."""
    dims = model.sites[site]
    if dims[:-1] != ("batch", "pos"):
        raise InputError(
            f"site {site!r} has the dimensions {', '.join(dims)}; choose a site with the "
            "dimensions batch, pos and one more dimension"
        )
    return model.dims[dims[-1]]


def _activation_fn(
    name: str, given: Mapping[str, Any], sparsities: Sequence[float]
) -> ActivationFn:
    """Return the activation function with its options; set `max_k` to the largest sparsity."""
    options = {key: value for key, value in given.items() if value is not None}
    make: Any = imports.find(name, ACTIVATIONS, "activation function", ActivationFn)
    known = {field.name for field in dataclasses.fields(make)}
    if "max_k" in known:
        options["max_k"] = int(max(sparsities))
    elif "most" in known:  # a user-defined function that was written before the field was renamed
        renames.note("field of an activation function", "most", "max_k")
        options["most"] = int(max(sparsities))
    unknown = [key for key in options if key not in known]
    if unknown:
        raise InputError(
            f"activation function {name!r} has no option {unknown[0]!r}; the options are "
            f"{', '.join(sorted(known))}"
        )
    made: ActivationFn = make(**options)
    return made
