"""A launcher that trains nothing, for tests of which trials are chosen and in which order."""

import json

from implicit_reasoning.sweeps.directory import DONE, RUNNING


def pretend(work, board, shutdown):
    """Finish every trial at once, with a falling loss that depends on its learning rate."""
    for trial, stop in work.stops.items():
        board.note(trial, RUNNING)
        files = work.files.trial(trial)
        files.workdir.mkdir(parents=True, exist_ok=True)
        rate = work.sweep.config(trial).optimizer.learning_rate
        with files.metrics.open("a", encoding="utf-8") as rows:
            rows.write(json.dumps({"step": stop, "loss": 1 / stop + rate}) + "\n")
        board.note(trial, DONE, step=stop)
