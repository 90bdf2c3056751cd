"""Measure the reconstruction quality and sparsity of a dictionary on held-out states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Array

from implicit_reasoning.analysis.instrument import EXAMPLE, Examples
from implicit_reasoning.dictionaries.instrument import (
    DictionaryInstrument,
    DictionarySubject,
    EncodedStates,
    ExampleSource,
)
from implicit_reasoning.dictionaries.measures.metrics import activity, quality
from implicit_reasoning.dictionaries.states import first_fact_keys


class Reconstruction(DictionaryInstrument):
    """Measures the reconstruction of held-out states and the activity of features."""

    name = "reconstruction"
    definition = (
        "On distinct states of prefixes that no dictionary was trained on: active features "
        "(l0), sum of activations (l1), squared error (mse), explained variance relative to the "
        "mean of the targets (legacy: mean over states of the same ratio), cosine and ratio of "
        "norms of output and target. On all states: how often each feature is active (density), "
        "shares of features that are never active (dead) and active on more than a tenth of "
        "states (dense)."
    )
    outputs = {
        "l0": (EXAMPLE,),
        "l1": (EXAMPLE,),
        "mse": (EXAMPLE,),
        "explained_variance": (),
        "explained_variance_legacy": (EXAMPLE,),
        "cossim": (EXAMPLE,),
        "l2_ratio": (EXAMPLE,),
        "density": ("feature",),
        "dead": (),
        "dense": (),
    }

    def examples(self, source: ExampleSource) -> Examples:
        """Choose all held-out states as examples.

        States are clustered by the first fact (e1, r1). States at the first position are clustered
        by their token.
        """
        held_out = np.flatnonzero(source.split.held_out)
        keys = first_fact_keys(source.run.dataset, source.split.places)[held_out]
        return Examples(held_out, ("held-out states",), np.zeros(len(held_out), int), keys)

    def measure(
        self,
        subject: DictionarySubject,
        shared: Mapping[str, Any],
        encoded: EncodedStates,
        inputs: Any,
    ) -> dict[str, Array]:
        """Measure reconstruction quality on held-out states and feature activity on all states."""
        x, y = subject.x[inputs], subject.y[inputs]
        found = quality(encoded.dictionary, encoded.params, x, y)
        return {**found._asdict(), **activity(encoded.acts)._asdict()}
