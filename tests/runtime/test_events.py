"""Events for TensorBoard are on disk at once, or the caller gets an error."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from implicit_reasoning.runtime import events


def test_what_is_written_can_be_read_before_the_file_is_closed(tmp_path):
    file = events.EventFile(tmp_path / "new" / "events.out.tfevents.1", begun=1.5)
    for step in range(3):
        file.write(events.scalars({"loss": step / 4, "rate": 2.0}), step=step, when=10.0 + step)
        reader = EventAccumulator(str(tmp_path / "new")).Reload()
        (event,) = reader.Scalars("loss")[step:]
        assert (event.wall_time, event.step, event.value) == (10.0 + step, step, step / 4)
        assert len(reader.Scalars("rate")) == step + 1
    file.close()


# Other systems have no device that is always full. The tested code is the same there.
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_full_disk_is_the_callers_error_not_a_workers_silence():
    with pytest.raises(OSError, match="No space left on device"):
        events.EventFile(Path("/dev/full"), begun=0.0)
