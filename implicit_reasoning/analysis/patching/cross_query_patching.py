"""Cross-query semantic patching: patches the bridge state of one query into another query.

The source query is (e1', r1', r2') with bridge b'; the target query is (e1, r1, r2). `S[layer,
pos]` of the source's run replaces that of the target's run. If the state represents b', the answer
becomes the tail of (b', r2). This is the answer of the composed chain (e1', r1', r2).

Source: Ye et al. 2025, section 4. The differences from the paper are:

- The composed chain is absent from training. Otherwise a model that memorised it would also give
  its answer, without any bridge.
- The composed answer differs from the clean answer.
- The source's own answer differs from the composed answer, so that only the bridge can explain it.
- The last layer is before the final norm.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Key

from implicit_reasoning.analysis import queries
from implicit_reasoning.analysis.chunks import map_in_chunks
from implicit_reasoning.analysis.claims import (
    MAJORITY,
    MAX_UPPER_BOUND,
    MIN_CLUSTERS,
    MIN_LOWER_BOUND,
    Claim,
    above_chance,
    claimed,
)
from implicit_reasoning.analysis.drawing import maps_over_steps
from implicit_reasoning.analysis.instrument import Examples, Instrument
from implicit_reasoning.analysis.patching.grids import patch_states
from implicit_reasoning.analysis.patching.outcomes import (
    GRADED_METRICS,
    OUTCOMES,
    answers_with,
    graded_metrics,
    outcomes_of,
)
from implicit_reasoning.analysis.patching.query_pairs import (
    BRIDGE,
    GROUPS,
    OOD,
    SAME,
    TRAINED,
    choose_pairs,
)
from implicit_reasoning.analysis.states import need_chains
from implicit_reasoning.analysis.suffix import final_logits
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.cones import cache_sites
from implicit_reasoning.model.wirings import forward_at
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.dataset import world_of

_SEED = 0


class CrossQueryPatching(Instrument):
    """Instrument for cross-query patching; see the module docstring."""

    name = "cross_query_patching"
    version = 2
    definition = (
        "Share of predictions that are the clean answer, the composed one (tail of the source's "
        "bridge and the target's r2; Ye et al. 2025), or another, when S[layer, pos] of a "
        "source question replaces the target's; over targets answered correctly when clean. "
        "Composed chains are not in training, except in the group 'trained chain'. Null "
        "'shuffled': the composed answer of another pair. logit_difference: clean minus "
        "composed answer (compared: where there is one); probability: of the clean answer; "
        "divergence: KL(clean run || patched run), nats. direct: the share of composed "
        "questions that the model answers correctly."
    )
    outputs = {
        "fraction": ("expected", "outcome", "layer", "pos", "example"),
        **dict.fromkeys(GRADED_METRICS, ("layer", "pos", "example")),
        "correct": ("example",),
        "compared": ("example",),
        "direct": ("example",),
    }
    given = {
        **dict.fromkeys(("fraction", *GRADED_METRICS), "correct"),
        "logit_difference": "compared",
    }
    nulls = {"composed answer of another pair": {"expected": "shuffled"}}

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose pairs of queries; clusters are the bridges of the sources."""
        need_chains(dataset)
        pairs = choose_pairs(dataset)
        source, target, composed = pairs.source, pairs.target, pairs.composed
        same = pairs.group == GROUPS.index(SAME)
        shuffled = _another(composed.answer, target.answer, pairs.group)
        inputs = {
            "source": queries.prompt_tokens(dataset, source.parts),
            "target": queries.prompt_tokens(dataset, target.parts),
            "composed": queries.prompt_tokens(dataset, composed.parts),
            "clean": target.answer,
            "direct": composed.answer,
            # With the same bridge no other answer is expected, so any change is damage.
            "true": np.where(same, np.int32(-1), composed.answer),
            "shuffled": shuffled,
        }
        return Examples(
            inputs,
            groups=GROUPS,
            group=pairs.group,
            clusters=world_of(dataset).facts.tail[source.facts[:, 0]].astype(np.int64),
            coords={"outcome": OUTCOMES, "expected": ("true", "shuffled")},
        )

    def sites(self, model: Transformer) -> tuple[str, ...]:
        """Return the residual stream, and the keys and values of earlier positions."""
        return cache_sites(model)

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute the outcomes of every pair whose target is answered correctly."""
        sites = cache_sites(model)

        def outcomes(pair: dict[str, Array]) -> dict[str, Array]:
            _, donor = forward_at(model, params, pair["source"], sites=sites)
            whole, base = forward_at(model, params, pair["target"], sites=sites)
            logits = patch_states(model, params, base, donor)
            fractions = [outcomes_of(logits, pair["clean"], pair[e]) for e in ("true", "shuffled")]
            of_grid = graded_metrics(logits, pair["clean"], pair["true"], whole[:, 0])
            return {"fraction": jnp.stack(fractions), **of_grid}

        def right(asked: str, answer: str) -> Array:
            return answers_with(final_logits(model, params, inputs[asked]), inputs[answer])

        correct = right("target", "clean")
        direct = right("composed", "direct")
        found = map_in_chunks(outcomes, inputs, correct) | {"correct": correct, "direct": direct}
        return found | {"compared": correct & (jnp.asarray(inputs["true"]) >= 0)}

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the share of composed answers by (layer, position), for all groups and the null."""
        known = result.fraction.where(result.fraction_n >= MIN_CLUSTERS)
        true, shuffled = (known.sel(expected=e) for e in ("true", "shuffled"))
        new, old = (true.sel(outcome=outcome) for outcome in (OUTCOMES[1], OUTCOMES[0]))
        rows = {f"{group}:\ncomposed": new.sel(group=group) for group in (BRIDGE, OOD, TRAINED)}
        rows["null: shuffled\nanswer"] = shuffled.sel(outcome=OUTCOMES[1], group=BRIDGE)
        rows[f"{SAME}:\nunchanged"] = old.sel(group=SAME)
        caption = (
            "Of targets answered correctly when clean, the share whose answer becomes the tail "
            "of the source's bridge and the target's r2 when S[layer, pos] of the source "
            "replaces theirs. Only in 'trained chain' is that chain in training, so a share "
            "that is high only there shows memorisation. A state that represents the bridge is "
            "high in the first row and, with the same bridge from another prefix (last row), "
            "does not change the answer. The null counts the answer of another pair. White: "
            f"fewer than {MIN_CLUSTERS} source bridges counted."
        )
        drawing = maps_over_steps(rows, "share of predictions")
        return [
            Figure(
                "cross_query_patching", "Is another question's bridge followed?", caption, drawing
            )
        ]

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """Claim where e2 is carried, and whether the model composes or has memorised.

        Carried: both statements are true at a (layer, position).

        - Most answers follow another bridge to the answer of a chain that is absent from training.
          The lower end of their share is at least `MAJORITY`, and at least `MIN_TIMES_CHANCE` times
          the null.
        - Most answers stay if another prefix with the same bridge is patched in.

        Composes: at some (layer, position) where e2 is carried, answers also follow sources whose
        first fact begins no training chain.

        Memorised: answers follow another bridge at no (layer, position), and composed chains are
        answered correctly if and only if they are training chains. The absent chains consist of
        facts that occur in training chains, and some have the bridge of a chain that is answered
        correctly.
        """
        followed, followed_ood = self._followed(result, BRIDGE), self._followed(result, OOD)
        same = result.fraction_low.sel(expected="true", outcome=OUTCOMES[0], group=SAME) >= MAJORITY
        same &= self._enough(result, SAME)
        # Both conditions are needed: at position 0, patches in the last layers change no answer.
        there = followed & same
        claims = claimed("carried", there.expand_dims(variable=["e2"]))
        if (there & followed_ood).any():
            claims.add(Claim("composes", "e2"))
        if not followed.any() and self._remembers(result):
            claims.add(Claim("memorised", "e2"))
        return claims

    def _followed(self, result: xr.Dataset, group: str) -> xr.DataArray:
        """Return where a group's composed answers are given; bool [layer, pos]."""
        composed = result.sel(outcome=OUTCOMES[1], group=group, drop=True)
        most = composed.fraction_low.sel(expected="true", drop=True) >= MAJORITY
        not_by_chance = above_chance(composed, "fraction", {"expected": ("true", "shuffled")})
        return most & not_by_chance & self._enough(result, group)

    def _enough(self, result: xr.Dataset, group: str) -> xr.DataArray:
        n = result.fraction_n.sel(expected="true", outcome=OUTCOMES[0], group=group)
        return n.fillna(0) >= MIN_CLUSTERS

    def _remembers(self, result: xr.Dataset) -> bool:
        return bool(
            result.direct_low.sel(group=TRAINED) >= MIN_LOWER_BOUND
            and result.correct_low.sel(group=TRAINED) >= MIN_LOWER_BOUND
            and result.direct_high.sel(group=BRIDGE) <= MAX_UPPER_BOUND
            and result.direct_high.sel(group=SAME) <= MAX_UPPER_BOUND
            and self._enough(result, BRIDGE).all()
        )


def _another(expected: np.ndarray, clean: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return the expected answer of another pair of the group; -1 if it is the clean answer."""
    random, found = np.random.default_rng(_SEED), expected.copy()
    for number in np.unique(group):
        rows = np.flatnonzero(group == number)
        found[rows] = expected[random.permutation(rows)]
    return np.where(found == clean, np.int32(-1), found)
