"""Outputs of a live run: what a recording holds, and those that fail or are slow."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest

from rtbg.errors import OutputError
from rtbg.live import Output
from rtbg.matting import Matting
from rtbg.sinks import open_sink
from tests.live_parts import CARD, Recording, Setup, after, lumas


def test_a_recorder_that_fails_does_not_end_the_call(caplog: pytest.LogCaptureFixture) -> None:
    setup = Setup(rate=60)
    recorder = Recording(fail_at=5)
    with caplog.at_level(logging.WARNING):
        stats = setup.run(
            (after(60), setup.stop.end), outputs=[Output(setup.sink), Output(recorder, clocked=False, required=False)]
        )
    assert stats.lost == ["the sink failed: mend it"]
    assert [r.getMessage() for r in caplog.records] == ["the sink failed: mend it: the rest goes on"]
    assert stats.frames_out >= 60
    assert recorder.aborted
    assert not recorder.closed
    assert setup.sink.closed


@pytest.mark.parametrize("fail_at", [0, 10])
def test_a_virtual_camera_that_fails_ends_the_call(fail_at: int) -> None:
    """What was recorded is completed all the same."""
    setup = Setup(rate=60)
    camera, recorder = Recording(fail_at=fail_at), Recording()
    with pytest.raises(OutputError, match="mend it"):
        setup.run(outputs=[Output(camera), Output(recorder, clocked=False, required=False)])
    assert camera.aborted
    assert not camera.closed
    assert recorder.closed
    assert setup.camera.closed
    assert setup.backdrop.closed


def test_the_only_output_that_fails_ends_the_run() -> None:
    setup = Setup(rate=60)
    with pytest.raises(OutputError):
        setup.run(outputs=[Output(Recording(fail_at=5), clocked=False, required=False)])
    assert setup.all_closed()


def test_a_slow_recorder_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """What it lacks is said; the time that it takes to complete its file is not the run's."""
    setup = Setup(rate=100, nominal=10)
    recorder = Recording(slow=0.05)
    completing: list[float] = []
    ended = [0.0]

    def end() -> None:
        ended[0] = time.perf_counter()
        setup.stop.end()

    began = time.perf_counter()
    stats = setup.run(
        (after(80), end),
        outputs=[Output(setup.sink), Output(recorder, clocked=False)],
        completing=lambda: completing.append(time.perf_counter()),
    )
    assert stats.dropped <= 15
    assert len(recorder.frames) < 60
    assert recorder.closed
    lost = [r.getMessage() for r in caplog.records]
    assert len(lost) == 1
    assert "the recording lacks" in lost[0]
    assert "--preset veryfast" in lost[0]
    assert len(completing) == 1
    assert completing[0] > ended[0]
    assert 0 < stats.seconds < ended[0] - began + 0.3 < time.perf_counter() - began
    assert 0 < stats.cpu_seconds < time.process_time()


class Held(Recording):
    """A recorder that does not complete its file before it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may = threading.Event()
        self.in_time = False

    def close(self, *, interrupted: bool = False) -> Path | None:
        self.in_time = self.may.wait(10)
        return super().close(interrupted=interrupted)


def test_the_callers_way_to_wait_goes_on_while_a_recording_is_completed() -> None:
    """A window that is not asked for its events would be called hung."""
    setup, recorder = Setup(rate=50), Held()
    waited: list[bool] = []

    def wait(seconds: float) -> None:
        time.sleep(0.01)
        if setup.sink.closed:
            waited.append(recorder.closed)
            if len(waited) > 5:
                recorder.may.set()

    setup.run((after(5), setup.stop.end), outputs=[Output(setup.sink), Output(recorder, clocked=False)], wait=wait)
    assert recorder.in_time
    assert waited[:5] == [False] * 5


def test_a_recorder_stopped_before_its_first_picture_is_no_fault(tmp_path: Path) -> None:
    setup = Setup(rate=50)
    loaded = threading.Event()
    file = open_sink(tmp_path / "rec.mkv", setup.camera.info)

    def slowly() -> Matting:
        assert loaded.wait(10)
        return setup.opener()

    def end() -> None:
        setup.stop.end()
        threading.Timer(0.5, loaded.set).start()

    stats = setup.run(
        (lambda s: s.seconds > 0.3, end), outputs=[Output(file, clocked=False, required=False)], opener=slowly
    )
    assert not stats.outputs
    assert not stats.lost
    assert not list(tmp_path.iterdir())


def test_a_covering_picture_before_the_first_one_disorders_no_recording() -> None:
    """The source's time is not known then, and may have begun long before."""
    for shift in (0.0, -5.0):
        setup = Setup(rate=50)
        setup.camera.hold.set()
        setup.camera.began += shift
        recorder = Recording()
        setup.run(
            (lambda s: bool(s.trouble) and s.filled > 5, lambda: time.sleep(0.2)),
            (lambda s: True, setup.camera.hold.clear),
            (after(30), setup.stop.end),
            outputs=[Output(setup.sink), Output(recorder, clocked=False, required=False)],
        )
        assert lumas(recorder)[0] == CARD
        assert np.all(np.diff([f.pts for f in recorder.frames]) > 0)
        assert np.all(np.diff([f.captured for f in recorder.frames]) > 0)
        assert len(recorder.frames) > 10, f"{shift}"


def test_a_recording_is_a_real_file(tmp_path: Path) -> None:
    """With the camera gone for a while: times go on, and the last picture lasts to the end."""
    setup = Setup(rate=30)
    info = setup.camera.info
    file = open_sink(tmp_path / "rec.mp4", info)
    stats = setup.run(
        (after(15), setup.camera.hold.set),
        (lambda s: bool(s.trouble), lambda: None),
        (lambda s: s.covered > 30, setup.stop.end),
        outputs=[Output(setup.sink), Output(file, clocked=False, required=False)],
    )
    assert stats.outputs == [tmp_path / "rec.mp4"]
    assert not stats.lost
    with av.open(str(tmp_path / "rec.mp4")) as container:
        frames = list(container.decode(video=0))
        length = float(container.duration / 1_000_000)
    times = [float(f.pts * f.time_base) for f in frames]
    assert len(frames) >= 15
    assert np.all(np.diff(times) > 0)
    assert length > times[14] + 0.8, "as long as the call"
    assert abs(int(frames[-1].to_ndarray(format="gray")[10, 10]) - 16) < 8, "the card, luma 30, in full range"
