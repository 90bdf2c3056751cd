"""Training of models: `train(config, workdir) -> Run`, and the phases of grokking in a run."""

from implicit_reasoning.runtime.distributed import PeerLost
from implicit_reasoning.runtime.shutdown import Interrupted
from implicit_reasoning.training.loop import NonFiniteLoss
from implicit_reasoning.training.models import train
from implicit_reasoning.training.phases import Phases, Splits, phases, run_phases

__all__ = [
    "Interrupted",
    "NonFiniteLoss",
    "PeerLost",
    "Phases",
    "Splits",
    "phases",
    "run_phases",
    "train",
]
