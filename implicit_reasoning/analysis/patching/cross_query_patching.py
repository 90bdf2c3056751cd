"""Cross-query semantic patching: patch the state of a source query into a target query.

The source query is (e1', r1', r2'), and its bridge is b'. The target query is (e1, r1, r2). The
state of the source at one (layer, position) replaces the state of the target at the same (layer,
position). If the state of the source represents b', the answer becomes the tail of (b', r2). This
tail is the answer to the composed chain (e1', r1', r2).

Source: Ye et al. 2025, section 4. This instrument adds three conditions:

- The composed chain is not in the training data, except in the group `TRAINED`. A model that has
  memorized a chain could give the answer without using a bridge.
- The composed answer differs from the clean answer.
- The answer to the source differs from the composed answer. A patch that only copies the answer to
  the source therefore does not give the composed answer.

Unlike in the paper, the states of the last layer are taken before the final norm.
"""

from __future__ import annotations

import functools
import operator
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
    known_means,
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
    COLD,
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
    """Instrument that patches states of source queries into target queries."""

    name = "cross_query_patching"
    version = 2
    definition = (
        "S[layer, pos] of a source query replaces that of a target query (Ye et al. 2025). "
        "fraction: share of predictions that are the clean answer, the composed answer (the "
        "tail of the source's bridge and the target's r2), or another answer, over targets "
        "that are answered correctly when clean. The composed chains are not in training, "
        "except in the group 'trained chain'. logit_difference: logit of the clean answer "
        "minus that of the composed answer, over the pairs with a composed answer (compared). "
        "probability: probability of the clean answer. divergence: KL(clean run || patched "
        "run), in nats. direct: share of composed queries that the model answers correctly. "
        "Null 'shuffled': the composed answer of another pair."
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
        """Choose pairs of source and target queries.

        In confidence intervals, pairs whose sources have the same bridge (e2) form a cluster.
        """
        need_chains(dataset)
        pairs = choose_pairs(dataset)
        source, target, composed = pairs.source, pairs.target, pairs.composed
        same = pairs.group == pairs.groups.index(SAME)
        shuffled = _another(composed.answer, target.answer, pairs.group)
        inputs = {
            "source": queries.prompt_tokens(dataset, source.parts),
            "target": queries.prompt_tokens(dataset, target.parts),
            "composed": queries.prompt_tokens(dataset, composed.parts),
            "clean": target.answer,
            "direct": composed.answer,
            # If both queries have the same bridge, the answer should not change, so there is no
            # counterfactual answer.
            "true": np.where(same, np.int32(-1), composed.answer),
            "shuffled": shuffled,
        }
        return Examples(
            inputs,
            groups=pairs.groups,
            group=pairs.group,
            clusters=world_of(dataset).facts.tail[source.facts[:, 0]].astype(np.int64),
            coords={"outcome": OUTCOMES, "expected": ("true", "shuffled")},
        )

    def sites(self, model: Transformer) -> tuple[str, ...]:
        """Return the names of the sites that the forward passes cache."""
        return cache_sites(model)

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute the outcomes of all patches.

        Only pairs whose target is answered correctly without a patch are patched.
        """
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
        """Draw the share of answers that become the composed answer, by layer and position."""
        known = known_means(result, "fraction")
        true, shuffled = (known.sel(expected=e) for e in ("true", "shuffled"))
        new, old = (true.sel(outcome=outcome) for outcome in (OUTCOMES[1], OUTCOMES[0]))
        others = [group for group in result["group"].values if group in COLD]
        shown = (BRIDGE, OOD, *others, TRAINED)
        rows = {f"{group}:\ncomposed": new.sel(group=group) for group in shown}
        rows["null: shuffled\nanswer"] = shuffled.sel(outcome=OUTCOMES[1], group=BRIDGE)
        rows[f"{SAME}:\nunchanged"] = old.sel(group=SAME)
        cold = "or a 'c0 source' " if others else ""
        caption = (
            "S[layer, pos] of a source query replaces that of a target query, for targets that "
            "are answered correctly without a patch. In the rows 'composed', a cell is the "
            "share of answers that become the tail of the source's bridge and the target's r2. "
            "This composed chain is in training only for the group 'trained chain', so a share "
            "that is high only there shows memorization. The bridge of an 'O source' "
            f"{cold}follows only from a single fact, and not from training chains. A state that "
            "represents the bridge is high in the first row. It also leaves the answer unchanged "
            "if it comes from a different prefix with the same bridge (last row: the share of "
            "unchanged answers). The row 'null' counts the composed answer of another pair. "
            f"White cells have fewer than {MIN_CLUSTERS} source bridges that count."
        )
        drawing = maps_over_steps(rows, "share of answers")
        return [
            Figure(
                "cross_query_patching",
                "Do answers follow the bridge of another query?",
                caption,
                drawing,
            )
        ]

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """Claim where e2 is carried, and whether the model shares a code of e2 or memorized chains.

        The composed chain has the first fact of the source and the later relations of the target.

        "carried" needs two conditions at the claimed (layer, position):

        - In the group `BRIDGE`, most answers become the composed answer. The share must be above
          chance, and the lower end of its interval must be at least `MAJORITY`. In this group,
          source and target have different bridges, and no composed chain is a training chain.
        - In the group `SAME`, most answers do not change. In this group, source and target have the
          same bridge and different prefixes.

        "factors" needs a (layer, position) that carries e2. The state of a prefix then decides the
        answers to chains that were not trained on, and another prefix of the bridge has the same
        effect.

        "grounded" needs a (layer, position) that carries e2, and at which most answers also become
        the composed answer if training chains do not identify the bridge of the source. These
        sources are the group `OOD`, whose first facts begin no training chain, and the group "c0
        source". Only the atomic facts of these sources say what the bridge is. If both groups have
        enough sources, the answers must follow both.

        "memorised" needs two conditions:

        - At no (layer, position) do most answers of the group `BRIDGE` become the composed answer.
        - The model answers composed chains correctly in the group `TRAINED`, and wrongly in the
          groups `BRIDGE` and `SAME`. A model that composes facts would answer correctly in all
          three groups.
        """
        followed = self._followed(result, BRIDGE)
        same = result.fraction_low.sel(expected="true", outcome=OUTCOMES[0], group=SAME) >= MAJORITY
        same &= self._enough(result, SAME)
        # `same` alone is not enough: patches of position 0 in the last layers change no answer.
        there = followed & same
        claims = claimed("carried", there.expand_dims(variable=["e2"]))
        if there.any():
            claims.add(Claim("factors", "e2"))
        if (there & self._facts_followed(result)).any():
            claims.add(Claim("grounded", "e2"))
        if not followed.any() and self._remembers(result):
            claims.add(Claim("memorised", "e2"))
        return claims

    def _facts_followed(self, result: xr.Dataset) -> xr.DataArray:
        """Return bool [layer, pos]: whether answers follow sources that only a fact identifies.

        Groups with too few sources are ignored; at least one group must have enough.
        """
        groups = [group for group in (OOD, COLD[0]) if group in result["group"].values]
        enough = {group: self._enough(result, group) for group in groups}
        followed = [self._followed(result, group) | ~enough[group] for group in groups]
        return functools.reduce(operator.and_, followed) & functools.reduce(
            operator.or_, enough.values()
        )

    def _followed(self, result: xr.Dataset, group: str) -> xr.DataArray:
        """Return bool [layer, pos]: whether most answers of a group become the composed answer."""
        composed = result.sel(outcome=OUTCOMES[1], group=group, drop=True)
        by_chance = {"expected": ("true", "shuffled")}
        most = above_chance(composed, "fraction", by_chance, least=MAJORITY)
        return most & self._enough(result, group)

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
    """Shuffle the expected answers within each group, as a null control.

    Returns:
      The shuffled answers; -1 where the new answer is equal to the clean answer.
    """
    random, found = np.random.default_rng(_SEED), expected.copy()
    for number in np.unique(group):
        rows = np.flatnonzero(group == number)
        found[rows] = expected[random.permutation(rows)]
    return np.where(found == clean, np.int32(-1), found)
