import itertools
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds import ROLES, Dataset, TASKS, assemble, build, rows_from_chains
from implicit_reasoning.worlds import enumerate_chains, make_world, vocabulary, with_answers


def prompts(dataset, rows):
    length = dataset.truth["position"][rows] + 1
    return [tuple(t[:n]) for t, n in zip(dataset.tokens[rows].tolist(), length, strict=True)]


@pytest.fixture(scope="module")
def small(request):
    """`small(seed, ...)`: a small dataset, built anew."""
    from tests_worlds_settings import settings  # noqa: F401
