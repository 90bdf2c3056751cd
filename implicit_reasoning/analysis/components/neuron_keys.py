"""Find the key and the value of each MLP neuron: what activates the neuron, and what it writes.

An MLP is a key-value memory (Geva et al. 2021). The key of a neuron is the trigger that matches its
activity best: a token, the bridge e2, a fact or a whole chain. `triggers.py` lists the triggers,
and `key_scores.py` matches them. The value of a neuron is what its output weights write into the
logits. The input weights are compared with token embeddings.

Sources: Geva et al. 2021, "Transformer feed-forward layers are key-value memories"; Geva et al.
2022, "Transformer feed-forward layers build predictions by promoting concepts in the vocabulary
space" (values in vocabulary space); Dar et al. 2023, "Analyzing transformers in embedding space".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float, Int, Key
from scipy.special import gammaincinv

from implicit_reasoning.analysis.claims import MAJORITY, MIN_LOWER_BOUND, Claim
from implicit_reasoning.analysis.components.key_scores import (
    ACTIVITIES,
    active_states,
    best_keys,
    best_of,
    best_shared,
)
from implicit_reasoning.analysis.components.neuron_figures import (
    key_scores,
    kinds_of_keys,
    values_of_keys,
)
from implicit_reasoning.analysis.components.neuron_weights import embedded_inputs, written_logits
from implicit_reasoning.analysis.components.triggers import (
    CHAIN,
    PositionStates,
    position_states,
    specificity,
)
from implicit_reasoning.analysis.instrument import Examples, Instrument, NotApplicable
from implicit_reasoning.analysis.reading.ranking import ranks
from implicit_reasoning.analysis.states import neuron_sites
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.model.units import Fact, Neuron
from implicit_reasoning.model.wirings import forward_at
from implicit_reasoning.worlds import Dataset

_MAX_CHAINS = 10_000
_MAX_ACTIVATIONS = 2**25  # of all states at one position, 128 MB
_AT_ONCE = 512  # states per forward pass
_DRAWS = 19  # the fewest with which a p-value can be .05
_ACTIVE_IN = (1, 2, 3)
_CHANCE = 0.05  # share of neurons that are active in one state by chance, in a population
_LEVEL = 0.95  # of the upper bound on this share
_AMONG = ("all triggers", "facts", "facts in two states of each half")
_WHOSE = ("own", "another's")

_NEURONS = ("activity", "block", "neuron", "pos")


class NeuronKeys(Instrument):
    """Instrument that finds what activates each neuron, and what the neuron writes."""

    name = "neuron_keys"
    definition = (
        "States are the distinct prefixes of chains at a position; all chains of the world are "
        "used, or a random sample of 10,000. A neuron is active where mlp.hook_post is positive, "
        "or above half of its maximum over the states. variable, key: the trigger (a value of a "
        "variable) with the highest F1 of 'the neuron is active' against 'the trigger is "
        "present', chosen on one half of the states; -1 if the neuron is never active. Facts are "
        "(e1, r1) and (e2, r2). first_f1: F1 on this half. f1: F1 on the other half, which has "
        "other first facts. A trigger that is present in one state only is scored on all states. "
        "shared_f1: f1 of the best trigger that is present in several states. null_f1: the mean "
        "of shared_f1 over draws in which facts are permuted among the states. highest_null_f1: "
        "the maximum over neurons in each draw, for the best of all triggers, of facts, or of "
        "facts in two states of each half. ambiguous: another trigger is present in the same "
        "states as the key. one_state: the key is present in one state only. often: it is "
        "present in two states of each half. n_active: number of states in which the neuron is "
        "active. rarely_active: number of neurons that are active in exactly 1, 2 or 3 states; "
        "the last two are a null for keys that are present in one state only. kinds: number of "
        "neurons with f1 of at least .5, by trigger, the variable of the key. null_kinds: the "
        "same number for the best trigger that is present in several states, as the mean over "
        "the draws. value_rank: rank of the entity to which the key leads (the tail of a fact, "
        "the answer of a chain, or the entity itself) among the entities, by W_out W_U with the "
        "gain of the final norm; 0 is the highest. input_rank: rank of the tokens of the key by "
        "W_E W_in with the gain of ln2. nan: the key has no such entity or token. whose: the "
        "neuron's own key, or the key of another neuron of the block, which is a null."
    )
    outputs = {
        "variable": _NEURONS,
        "key": (*_NEURONS, "part"),
        "f1": _NEURONS,
        "first_f1": _NEURONS,
        "shared_f1": _NEURONS,
        "null_f1": _NEURONS,
        "highest_null_f1": ("activity", "block", "among", "draw", "pos"),
        "ambiguous": _NEURONS,
        "one_state": _NEURONS,
        "often": _NEURONS,
        "n_active": _NEURONS,
        "n_states": ("pos",),
        "rarely_active": ("activity", "block", "pos", "active_in"),
        "kinds": ("activity", "trigger", "block", "pos"),
        "null_kinds": ("activity", "block", "pos"),
        "value_rank": ("whose", *_NEURONS),
        "input_rank": ("whose", "input", *_NEURONS),
    }
    nulls = {
        "permuted facts": "null_f1",
        "permuted facts, highest of all neurons": "highest_null_f1",
        "neurons that are active in two or three states": "rarely_active",
        "key of another neuron": {"whose": _WHOSE[1]},
    }
    default = False

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """List the states and the triggers. The outputs have no outcomes by example.

        Raises:
          NotApplicable: the task is not a chain task, or the model has another block than `gpt2`.
        """
        require_gpt2(model.spec, f"the instrument {self.name!r}", NotApplicable)
        most = min(_MAX_CHAINS, _MAX_ACTIVATIONS // (model.spec.depth * model.spec.d_mlp))
        states = position_states(dataset, max(1, most))
        none = np.zeros(1, np.int64)
        parts = ["e1", *(f"r{hop + 1}" for hop in range(dataset.hops))]
        coords = {"trigger": _names(tuple(states.values())), "part": parts}
        return Examples(tuple(states.values()), ("states",), none, none, coords=coords)

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the labels of all dimensions except `trigger` and `part`."""
        return super().coords(model, dataset) | {
            "activity": ACTIVITIES,
            "block": range(model.spec.depth),
            "neuron": range(model.spec.d_mlp),
            "draw": range(_DRAWS),
            "among": _AMONG,
            "active_in": _ACTIVE_IN,
            "whose": _WHOSE,
            "input": ("entity", "relation"),
        }

    def sites(self, model: Transformer) -> tuple[str, ...]:
        """Return the names of the sites of neurons."""
        return neuron_sites(model)

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Find the key of each neuron at each position, and rank what the weights write."""
        names = _names(inputs)
        last = inputs[-1].shared | inputs[-1].alone  # all variables are known at the last position
        sizes = len(last["e1"].target), len(last["r1"].target)
        found = [
            _at_position(model, params, states, names, sizes, jax.random.fold_in(key, number))
            for number, states in enumerate(inputs)
        ]
        together = {name: jnp.stack([one[name] for one in found], -1) for name in found[0]}
        return together | {
            "key": jnp.moveaxis(together["key"], -2, -1),
            "rarely_active": jnp.moveaxis(together["rarely_active"], -2, -1),
        }

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the kinds of keys over training, F1 beside its null, and the values of keys."""
        return [kinds_of_keys(result), key_scores(result), values_of_keys(result)]

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """Claim "stores" for a neuron that is active for one fact or chain only.

        At each position where the neuron is active in any state, its key must be the same fact, or
        the same chain. F1 must be at least `MIN_LOWER_BOUND` on both halves, and higher than F1 of
        the best fact of every neuron in every draw of the null control, at this position. Facts in
        two states of each half are compared with such facts, because a fact in few states can match
        by chance. A neuron makes no claim if another trigger is present in the same states as its
        key.

        A trigger that is present in one state only cannot be tested on further states. A neuron
        that is rarely active can be active in one state by chance, about as often as in two or in
        three states. Such triggers therefore support claims only if, in a block and at a position,
        the upper bound on the mean number of neurons that are active in two or in three states is
        at most 5% of the number of neurons that are active in one state.
        """
        of = result.sel(activity=ACTIVITIES[0])
        highest = of["highest_null_f1"].max(("block", "draw")).fillna(0)
        chance = highest.sel(among=_AMONG[1], drop=True)
        chance = chance.where(of.often == 0, highest.sel(among=_AMONG[2], drop=True))
        chance = chance.where(of.one_state == 0, 0)  # permuted facts are no null for these keys
        fits = (of.f1 >= MIN_LOWER_BOUND) & (of.first_f1 >= MIN_LOWER_BOUND) & (of.f1 > chance)
        fits &= (of.one_state == 0) | _more_than_chance(of["rarely_active"])
        names = [str(name) for name in of["trigger"].values]
        specific = of["variable"].isin([n for n, name in enumerate(names) if specificity(name)])
        there = of.n_active > 0
        good = ((fits & specific & (of.ambiguous == 0)) | ~there).all("pos") & there.any("pos")
        claims = set()
        for block, neuron in np.argwhere(good.transpose("block", "neuron").values):
            here = of.isel(block=block, neuron=neuron)
            stored = {
                _stored(names[int(at["variable"])], at["key"].values)
                for at in (here.isel(pos=place) for place in np.flatnonzero(here.n_active > 0))
            }
            if len(stored) == 1:
                labels = int(here["block"]), int(here["neuron"])
                claims.add(Claim("stores", stored.pop(), Neuron(*labels)))
        return claims


def _more_than_chance(counts: xr.DataArray) -> xr.DataArray:
    """Return whether most neurons that are active in one state are not so by chance.

    Args:
      counts: the number of neurons that are active in 1, 2 and 3 states.
    """
    control = counts.sel(active_in=list(_ACTIVE_IN[1:]))
    # The upper end of the interval of the mean of a Poisson distribution (Garwood 1936).
    highest = gammaincinv(control.sum("active_in") + 1, _LEVEL) / control.sizes["active_in"]
    enough: xr.DataArray = highest <= _CHANCE * counts.sel(active_in=1, drop=True)
    return enough


def _stored(variable: str, key: Int[np.ndarray, " part"]) -> str:
    """Return the text of a fact or a chain, as claims name it."""
    parts = tuple(int(part) for part in key)
    return f"{CHAIN} {parts}" if variable == CHAIN else str(Fact(*parts[:2]))


def _names(inputs: Sequence[PositionStates]) -> list[str]:
    """Return the names of all variables, in a fixed order."""
    names = {name for states in inputs for name in (*states.shared, *states.alone)}
    return sorted(names, key=lambda name: (specificity(name), name == "answer", name))


def _activations(
    model: Transformer, params: Params, tokens: Int[Array, "state token"]
) -> Float[Array, "block state neuron"]:
    """Return the activations of all neurons at the last token of each state."""
    sites, count = neuron_sites(model), len(tokens)
    size = min(_AT_ONCE, count)
    padded = jnp.concatenate([tokens, tokens[: -count % size]])

    def part(tokens: Array) -> Array:
        found = forward_at(model, params, tokens, sites=sites)[1]
        return jnp.stack([found[site][:, -1] for site in sites])

    acts = jax.lax.map(part, padded.reshape(-1, size, tokens.shape[1]))
    return jnp.swapaxes(acts, 0, 1).reshape(len(sites), -1, acts.shape[-1])[:, :count]


def _at_position(
    model: Transformer,
    params: Params,
    states: PositionStates,
    names: Sequence[str],
    sizes: tuple[int, int],
    key: Key[Array, ""],
) -> dict[str, Array]:
    """Return all outputs at one position, without the dimension `pos`."""
    acts = _activations(model, params, jnp.asarray(states.tokens))
    draws = jax.random.split(key, _DRAWS)

    def of_block(acts: Float[Array, "state neuron"]) -> dict[str, Array]:
        def of_activity(active: Bool[Array, "state neuron"]) -> dict[str, Array]:
            found = best_keys(acts, active, states, names)
            null = _null(active, states, draws)
            return found._asdict() | {
                "null_f1": null[0].mean(0),
                "highest_null_f1": null.max(2),
                "null_kinds": (null[0] >= MAJORITY).sum(1).mean(),
            }

        return jax.lax.map(of_activity, active_states(acts))

    by_block = jax.lax.map(of_block, acts)
    found = {name: jnp.swapaxes(value, 0, 1) for name, value in by_block.items()}
    about = _about(states, names, found.pop("value"), found["variable"])
    rarely = found["n_active"][..., None] == jnp.array(_ACTIVE_IN)[None, None, None]
    fits = found["f1"] >= MAJORITY
    kind = found["variable"][None] == jnp.arange(len(names))[:, None, None, None]
    target = about.pop("target")
    return (
        found
        | about
        | {
            "n_states": jnp.asarray(len(states.tokens)),
            "rarely_active": rarely.sum(2),
            "kinds": jnp.swapaxes((kind & fits[None]).sum(-1), 0, 1),
        }
        | _weight_ranks(model, params, about["key"], target, sizes, key)
    )


def _null(
    active: Bool[Array, "state neuron"], states: PositionStates, draws: Key[Array, " draw"]
) -> Float[Array, "among draw neuron"]:
    """Return F1 of the best shared trigger, with facts permuted among the states.

    The best trigger is chosen among all triggers, among facts, and among facts that are present in
    two states of each half. It is nan if there are no such triggers.
    """
    tables = states.shared
    facts = {name: one for name, one in tables.items() if specificity(name)}

    def one(key: Key[Array, ""]) -> Array:
        # Permuting the activity is the same as permuting the triggers.
        moved = active[jax.random.permutation(key, len(active))]
        found = best_shared(moved, tables)
        of_facts = {name: found[name] for name in facts}
        among = [found, of_facts, best_shared(moved, facts, often=True)]
        none = jnp.full(active.shape[1], jnp.nan)
        return jnp.stack([best_of(some).second if some else none for some in among])

    found: Array = jax.lax.map(one, draws)
    return jnp.swapaxes(found, 0, 1)


def _about(
    states: PositionStates,
    names: Sequence[str],
    value: Int[Array, "activity block neuron"],
    variable: Int[Array, "activity block neuron"],
) -> dict[str, Array]:
    """Look up the key of each neuron's trigger, and what is known about the trigger."""
    tables = states.shared | states.alone
    n_parts = next(iter(tables.values())).key.shape[1]
    key = jnp.full((*value.shape, n_parts), -1)
    target, ambiguous = jnp.full(value.shape, -1), jnp.zeros(value.shape, bool)
    one_state, often = jnp.zeros(value.shape, bool), jnp.zeros(value.shape, bool)
    for name, table in tables.items():
        here = variable == names.index(name)
        of_name = jnp.where(here, value, 0)
        key = jnp.where(here[..., None], jnp.asarray(table.key)[of_name], key)
        target = jnp.where(here, jnp.asarray(table.target)[of_name], target)
        ambiguous = jnp.where(here, jnp.asarray(table.ambiguous)[of_name], ambiguous)
        often = jnp.where(here, jnp.asarray(table.often)[of_name], often)
        one_state |= here & (name in states.alone)
    about = {"key": key, "target": target, "ambiguous": ambiguous}
    return about | {"one_state": one_state, "often": often}


def _weight_ranks(
    model: Transformer,
    params: Params,
    key: Int[Array, "activity block neuron part"],
    target: Int[Array, "activity block neuron"],
    sizes: tuple[int, int],
    random: Key[Array, ""],
) -> dict[str, Array]:
    """Rank the target of each key in what the neuron writes, and its tokens in what it reads.

    Args:
      model: the model; static.
      params: the parameters of the model.
      key: the parts of the key of each neuron.
      target: the entity to which the key of each neuron leads.
      sizes: the numbers of entities and relations.
      random: key for the choice of the other neurons.
    """
    n_entities, n_relations = sizes
    n_neurons = target.shape[-1]
    shift = jax.random.randint(random, (), 1, max(n_neurons, 2))
    whose = jnp.stack([jnp.arange(n_neurons), (jnp.arange(n_neurons) + shift) % n_neurons])
    relation = jnp.where(key[..., -1] >= 0, key[..., -1], key[..., 1])

    def ranked(logits: Float[Array, "neuron token"], wanted: Array) -> Array:
        """Return ranks [whose, activity, neuron]; nan for a key without such a token."""
        chosen = jnp.swapaxes(wanted[:, whose], 0, 1)
        rank = ranks(logits, jnp.maximum(chosen, 0)).astype(jnp.float32)
        return jnp.where(chosen >= 0, rank, jnp.nan)

    values, inputs = [], []
    for block in range(model.spec.depth):
        written = written_logits(model, params, block)[:, :n_entities]
        read = embedded_inputs(model, params, block)
        values.append(ranked(written, target[:, block]))
        of_relations = read[:, n_entities : n_entities + n_relations]
        of_both = [
            ranked(read[:, :n_entities], key[:, block, :, 0]),
            ranked(of_relations, relation[:, block]),
        ]
        inputs.append(jnp.stack(of_both, 1))
    return {"value_rank": jnp.stack(values, 2), "input_rank": jnp.stack(inputs, 3)}
