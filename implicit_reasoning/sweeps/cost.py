"""Cost estimate of a sweep, from the cost of one trial of each shape.

Trials have the same shape if they can be trained together, as one population (`Sweep.shapes`).
"""

from __future__ import annotations

from implicit_reasoning.sweeps.definition import Sweep
from implicit_reasoning.sweeps.run import default_launcher
from implicit_reasoning.training.estimate import CostEstimate, duration, plan

_SHOWN = 20  # maximum number of trial names in the description


def describe_cost(
    sweep: Sweep, launcher: str | None = None, *, stop_at: int | None = None, measure: bool = True
) -> str:
    """Describe the trials, the cost of the first trial of each shape, and the total cost.

    Trials have the same shape if they differ only in the fields of `population.VARIED`.

    Args:
      sweep: the sweep, as returned by `define`.
      launcher: as for `run_sweep`.
      stop_at: as for `run_sweep`.
      measure: whether to time some training steps of each shape on this machine. The timing takes
        some seconds per shape.
    """
    names = list(sweep.trials)
    lines = [f"{len(names)} trials, launcher {launcher or default_launcher(sweep)}:"]
    lines += [f"  {name}" for name in names[:_SHOWN]]
    if len(names) > _SHOWN:
        lines.append(f"  ... and {len(names) - _SHOWN} more")
    total, disk = 0.0, 0
    for trials in sweep.shapes:
        planned = plan(sweep.config(trials[0]), measure=measure)
        shape = f"trials with the shape of {trials[0]}; each of them:"
        lines += ["", f"{len(trials)} {shape}", planned.describe()]
        total += len(trials) * (_seconds(planned, stop_at) or 0.0)
        disk += len(trials) * planned.checkpoint_bytes
    lines += ["", f"all trials: {disk / 2**30:.3g} GiB on disk when done"]
    if measure:
        how = "if they are trained one after the other, each on this whole machine"
        lines.append(f"            {duration(total)} {how}")
    return "\n".join(lines)


def _seconds(planned: CostEstimate, stop_at: int | None) -> float | None:
    if planned.speed is None or planned.seconds is None:
        return None
    share = 1.0 if stop_at is None else min(1.0, stop_at / planned.steps)
    own = planned.seconds - planned.speed.compile_seconds
    return planned.speed.compile_seconds + share * own
