"""What is measured of dictionaries, a file each.

reconstruction.py   how well states are written, with how few features (numbers: metrics.py)
answers.py          what the model answers with the dictionary in it
concepts.py         features that stand for values of truth variables (matching.py)
roles.py            the same feature in and out of distribution?
absorption.py       bridges that a fact's feature speaks for
superposition.py    directions against dimensions
use.py              does the model go on with what a feature says?

base.py             what a measure is
bridges.py          states that first know the bridge
"""

from implicit_reasoning.dictionaries.measures.absorption import Absorption
from implicit_reasoning.dictionaries.measures.answers import Spliced
from implicit_reasoning.dictionaries.measures.base import Asked, Coded, Found, Measure, Subject
from implicit_reasoning.dictionaries.measures.concepts import Concepts
from implicit_reasoning.dictionaries.measures.reconstruction import Reconstruction
from implicit_reasoning.dictionaries.measures.roles import Roles
from implicit_reasoning.dictionaries.measures.superposition import Superposition
from implicit_reasoning.dictionaries.measures.use import Use

MEASURES: tuple[type[Measure], ...] = (
    Reconstruction,
    Spliced,
    Concepts,
    Roles,
    Absorption,
    Superposition,
    Use,
)
"""In the order of their computation."""

__all__ = ["MEASURES", "Asked", "Coded", "Found", "Measure", "Subject"]
