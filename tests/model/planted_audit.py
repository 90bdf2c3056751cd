"""Compares the claims of a planted model with its states and the effects of interventions.

Codes are found by regression of a state on the variables. The audit does not know in which
dimensions they were written.
"""

import functools

import jax
import numpy as np

from implicit_reasoning.model import Edit, mask
from implicit_reasoning.model.planted import Knowledge
from implicit_reasoning.model.units import State
from implicit_reasoning.worlds import enumerate_chains, make_world

VARIABLES = ("e1", "r1", "e2", "r2", "answer")
POSITIONS = ("e1", "r1", "r2")


def knowledge(n_entities=20, n_relations=5, out_degree=4, seed=0, share=1.0):
    """Return a small world, with a share of its chains for look-ups."""
    world = make_world(n_entities, n_relations, out_degree, 0.1, seed)
    chains = enumerate_chains(world, 2)
    (e1, e2, e3), (r1, r2) = chains.entities.T, chains.relations.T
    rows = np.stack([e1, r1, e2, r2, e3], axis=1)
    rows = rows[np.random.default_rng(seed).permutation(len(rows))[: round(share * len(rows))]]
    facts = np.stack([world.facts.head, world.facts.relation, world.facts.tail])
    return Knowledge(facts, rows, n_entities, n_relations)


def prompts(known, chains):
    e1, r1, _, r2, _ = chains.T
    return np.stack([e1, known.n_entities + r1, known.n_entities + r2], axis=1)


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens, where, new):
    """Return logits and the residual of every layer, with `new` patched in where `where[layer,
    pos]`.

    All patches of a model share one program.
    """
    masks = {
        site: Edit(mask, (where[layer][None, :, None], new[:, None]))
        for layer, site in enumerate(model.resid_sites)
    }
    logits, found = model.forward(params, tokens, edits=masks, sites=model.resid_sites)
    return logits, [found[site] for site in model.resid_sites]


def run(planted, tokens, where=None, new=None):
    """Return the same in numpy; by default nothing is patched."""
    spec = planted.model.spec
    where = np.zeros((spec.depth + 1, 3), bool) if where is None else where
    new = np.zeros((len(tokens), spec.d_model)) if new is None else new
    found = forward(planted.model, planted.params, tokens, where, new.astype(np.float32))
    return jax.device_get(found)


class Audit:
    """One model on the chains that it knows."""

    def __init__(self, planted, known):
        self.planted, self.known = planted, known
        # Probes need more prefixes to tell superposed codes apart than these worlds have.
        superposed = planted.name.startswith(("superposed", "gpt2"))
        self.least = 0.9 if superposed else 0.95
        self.chains = known.chains
        self.values = dict(zip(VARIABLES, self.chains.T, strict=True))
        self.one_hot = {name: np.eye(v.max() + 1)[v] for name, v in self.values.items()}
        self.tokens = prompts(known, self.chains)
        self.logits, self.states = run(planted, self.tokens)
        head, relation, tail = known.facts
        self.tail = np.full((known.n_entities, known.n_relations), -1)
        self.tail[head, relation] = tail

    def patched(self, layer, pos, new):
        """Return the answers after replacing the state at one place: `new` [row, d_model]."""
        where = np.zeros((len(self.states), 3), bool)
        where[layer, POSITIONS.index(pos)] = True
        logits, _ = run(self.planted, self.tokens, where, new)
        return logits[:, 2].argmax(-1)

    def state(self, layer, pos):
        return self.states[layer][:, POSITIONS.index(pos)]

    def decoded(self, layer, pos):
        """Return the accuracy of linear probes on prefixes that they were not fitted to, by
        variable.

        Only values that occur in the fitted prefixes count, because a probe cannot predict others.
        """
        held_out = np.random.default_rng(0).random(self.tail.shape)
        held_out = held_out[self.values["e1"], self.values["r1"]] < 0.25
        inputs = np.column_stack([self.state(layer, pos), np.ones(len(held_out))])
        train = inputs[~held_out].astype(np.float64)
        target = np.column_stack([one_hot[~held_out] for one_hot in self.one_hot.values()])
        penalty = 1e-4 * np.eye(train.shape[1])
        weights = np.linalg.solve(train.T @ train + penalty, train.T @ target)
        accuracy = {}
        for name, part in self.parts(weights.T).items():
            values = self.values[name]
            seen = held_out & np.isin(values, values[~held_out])
            accuracy[name] = ((inputs[seen] @ part.T).argmax(-1) == values[seen]).mean()
        return accuracy

    def codes(self, layer, pos):
        """Return what each value adds to the state, by regression: {variable: [value, d_model]}."""
        design = np.column_stack(list(self.one_hot.values()))
        return self.parts(np.linalg.lstsq(design, self.state(layer, pos), rcond=None)[0])

    def swapped(self, variable, codes, layer, pos, new):
        """Return the state with the code of the variable replaced by the code of other values."""
        return self.state(layer, pos) + codes[new] - codes[self.values[variable]]

    def parts(self, stacked):
        """Split rows for all values of all variables into one array per variable."""
        ends = np.cumsum([one_hot.shape[1] for one_hot in self.one_hot.values()])
        return dict(zip(VARIABLES, np.split(stacked, ends[:-1]), strict=True))

    def partner(self, variable):
        """Choose a partner for each row, with another value of one variable and otherwise similar.

        Returns `(partner, rows)`; only `rows` have a partner. For e2 the partner has another prefix
        and the same r2. For inputs it differs only in that input. Its answer always differs.
        """
        alike = {
            "e1": ("r1", "r2"),
            "r1": ("e1", "r2"),
            "e2": ("r2",),
            "r2": ("e1", "r1"),
            "answer": (),
        }[variable]
        fits = np.ones((len(self.chains),) * 2, bool)
        for name in alike:
            fits &= np.equal.outer(self.values[name], self.values[name])
        for name in {variable, "answer", "e2" if variable in ("e1", "r1") else variable}:
            fits &= np.not_equal.outer(self.values[name], self.values[name])
        chance = np.random.default_rng(0).random(fits.shape)
        return (fits * chance).argmax(1), fits.any(1)

    def bridge_codes(self):
        """Return the unembedded code of e2, without other codes: [entity, d_model]."""
        columns = np.asarray(self.planted.params["unembed"]["W_U"])[:, : self.known.n_entities]
        return (columns / np.linalg.norm(columns, axis=0)).T

    def says(self, kind, variable, layer, pos):
        """Return True, False, or None if the claim is open."""
        claim = (kind, variable, State(layer, pos))
        return True if claim in self.planted.true else None if claim in self.planted.open else False

    def mismatches(self):
        """Return all claims, true or false, that states or interventions contradict."""
        found = []
        for layer in range(len(self.states)):
            for pos in POSITIONS:
                found += self._misread(layer, pos) + self._miscaused(layer, pos)
        return found

    def _misread(self, layer, pos):
        accuracy = self.decoded(layer, pos)
        if pos == "e1":  # every held-out state has an e1 without a fitted state
            del accuracy["e1"]
        cells = [("decodable", name, layer, pos) for name in accuracy]
        return [
            cell
            for cell in cells
            if (says := self.says(*cell)) is not None
            and (accuracy[cell[1]] < self.least if says else accuracy[cell[1]] > 0.8)
        ]

    def _miscaused(self, layer, pos):
        codes, wrong = self.codes(layer, pos), []
        for name in VARIABLES:
            partner, rows = self.partner(name)
            wanted = self.values["answer"][partner]

            whole = self.patched(layer, pos, self.state(layer, pos)[partner])
            followed = (whole == wanted)[rows].mean()
            says = self.says("carried", name, layer, pos)
            if says is not None and (followed < 1 if says else followed > 0.5):
                wrong.append(("carried", name, layer, pos))

            used, unused = (self.says(kind, name, layer, pos) for kind in ("used", "unused"))
            if not (used or unused):
                continue
            # If a bridge has only one prefix, regression attributes the code of the prefix to the
            # bridge.
            beside = name == "e2" and self.planted.name.startswith("prefix")
            code = self.bridge_codes() if beside else codes[name]
            new = self.swapped(name, code, layer, pos, self.values[name][partner])
            after = self.patched(layer, pos, new)
            if used and (after != wanted)[rows].any():
                wrong.append(("used", name, layer, pos))
            if unused and (after != self.values["answer"]).any():
                wrong.append(("unused", name, layer, pos))
        return wrong
