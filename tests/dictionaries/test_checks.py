"""Impossible numbers in a configuration are refused before anything is written."""

import pytest

from implicit_reasoning.analysis import InMemory
from implicit_reasoning.dictionaries import resolved
from implicit_reasoning.dictionaries.architectures import Autoencoder
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import Run
from tests.analysis.subjects import DATASET, random_checkpoints
from tests.dictionaries.small import config


class Opened(Run):
    """A run whose checkpoints are in memory."""

    steps = (0, 1)

    def __init__(self, subject: InMemory):
        self.__dict__.update(model=subject.model, dataset=DATASET)


@pytest.fixture(scope="module")
def run():
    return Opened(random_checkpoints(1))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"sparsities": (25.0,)},
            "contains 25; .*k and must be a whole number from 1 to the width, 24",
        ),
        ({"sparsities": (2.0, 0.0)}, "contains 0; .*whole number"),
        ({"sparsities": (2.5,)}, "contains 2.5; .*whole number"),
        ({"sparsities": (-3.0,)}, "contains -3; .*whole number"),
        ({"sparsities": ()}, "sparsities is empty"),
        (
            {"activation_fn": "batch_topk", "sparsities": (24.5,)},
            "mean number of active features per input; it must be at most the width, 24",
        ),
        (
            {"activation_fn": "batch_topk", "sparsities": (0.01,)},
            "contains 0.01; .*at least 1 / batch_size",
        ),
        (
            {"activation_fn": "matryoshka", "options__widths": (4,), "sparsities": (30.0,)},
            "mean number of active features per input; it must be at most the width, 24",
        ),
        ({"activation_fn": "matryoshka", "options__widths": (4, 24)}, "smaller than the width"),
        ({"activation_fn": "relu", "sparsities": (-0.1,)}, "coefficient of a penalty and must be"),
        ({"activation_fn": "jumprelu", "sparsities": (-1.0,)}, "coefficient of a penalty"),
        ({"activation_fn": "jumprelu", "options__bandwidth": 0.0}, "options.bandwidth is 0.0"),
        ({"options__aux": -1.0}, "options.aux is -1.0; it must be between 0 and"),
        ({"width": 0}, "width is 0; it must be between 1"),
        ({"seeds": 0}, "seeds is 0"),
        ({"checkpoints": 0}, "checkpoints is 0"),
        ({"log_every": 0}, "log_every is 0"),
        ({"resume_every": -1}, "resume_every is -1"),
        ({"training__steps": 0}, "training.steps is 0"),
        ({"training__batch_size": 0}, "training.batch_size is 0"),
        ({"training__learning_rate": -1e-3}, "training.learning_rate is -0.001"),
        ({"training__b2": 1.0}, "training.b2 is 1.0"),
        ({"name": "../other"}, "name is '../other'; it must be the name of a folder"),
        ({"name": ""}, "name is ''"),
    ],
)
def test_it_is_refused_by_name(run, changes, said):
    with pytest.raises(InputError, match=said):
        resolved.resolve(run, config(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"sparsities": (1.0, 24.0)},
        {"activation_fn": "batch_topk", "sparsities": (0.5, 24.0)},
        {"activation_fn": "matryoshka", "options__widths": (4, 23)},
        {"activation_fn": "relu", "sparsities": (0.0, 5.0)},
    ],
)
def test_what_can_be_is_planned(run, changes):
    assert resolved.resolve(run, config(**changes)).members


def test_a_finished_one_with_more_active_features_than_there_are_says_so():
    with pytest.raises(InputError, match="max_k is 7; it must be at most d_sae = 6"):
        InferenceDictionary(Autoencoder(4, 4, 6), "topk", 7)
    InferenceDictionary(Autoencoder(4, 4, 6), "topk", 6)
