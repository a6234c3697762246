"""The flow of frames by way of the GPU, with real threads: order, stopping, failing stages, an engine that follows."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gpu import needs_torch_cuda, torch_or_skip
from networks import make_segmenter

from engines import Engine, EngineError, load, nearest_size, on_device
from engines.on_device import Lent
from engines.onnxruntime_engine import OnnxRuntimeRunner
from engines.openvino_engine import OpenVINORunner
from engines.signature import adapt
from engines.spec import find_model
from engines.swap import Swapping
from engines.torch_engine import TorchRunner
from rtbg.backgrounds import parse_background
from rtbg.backgrounds.solid import SolidBackground
from rtbg.errors import Aborted, MattingError
from rtbg.frame import Frame
from rtbg.gpu_frames import GpuFrames, open_frames
from rtbg.matting import Matting, Refinement
from rtbg.pipeline import run
from rtbg.sources.demo import DemoSource
from rtbg.stats import Stats, Stop
from tests.test_pipeline import Boom, Keeper

torch = torch_or_skip()

GREEN = parse_background("green")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    loaded = load("fast", engine="torch", device="cpu")
    yield loaded
    loaded.close()


class Source(DemoSource):
    """The demo, 320x180; may fail."""

    def __init__(self, seconds: float = 60, fail_at: int | None = None) -> None:
        super().__init__(size=(320, 180), seconds=seconds, rate=30)
        self.given, self.closed, self.fail_at = 0, False, fail_at

    def read(self) -> Frame | None:
        if self.given == self.fail_at:
            raise Boom("read")
        frame = super().read()
        self.given += frame is not None
        return frame

    def close(self) -> None:
        self.closed = True
        super().close()


class Wall(SolidBackground):
    """Green; may fail."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__((0, 255, 0))
        self.calls, self.fail_at, self.closed = 0, fail_at, False

    def at(self, frame, alpha):
        if self.calls == self.fail_at:
            raise Boom("background")
        self.calls += 1
        return super().at(frame, alpha)

    def close(self) -> None:
        self.closed = True


def go(engine: Engine, source: Source, sink: Keeper, behind: Wall | None = None, **more) -> Stats:
    frames = more.pop("frames", None) or open_frames(
        engine, source.info, Refinement(lookahead=2), GREEN, show="composite", wrap=0
    )
    assert frames is not None
    behind = behind or Wall()
    try:
        return run(source, Matting(engine, source.info), behind, [sink], frames=frames, **more)
    finally:
        assert source.closed and behind.closed
        assert not frames._flying and not frames._waiting


@pytest.mark.timeout(60)
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_every_frame_in_order(count, engine, cpu_too):
    source, sink = Source(seconds=count / 30), Keeper()
    stats = go(engine, source, sink)
    assert [f.pts for f in sink.frames] == list(range(count))
    assert stats.frames_in == stats.frames_out == count
    assert sink.closed is False
    assert stats.engine == "torch CPU f32, frames by torch"


@pytest.mark.timeout(60)
def test_the_end_finishes_what_was_read(engine, cpu_too):
    source, sink, stop = Source(), Keeper(), Stop()

    def progress(stats: Stats) -> None:
        if stats.frames_out > 3:
            stop.end()

    stats = go(engine, source, sink, stop=stop, progress=progress)
    assert stats.interrupted and sink.closed is True
    assert [f.pts for f in sink.frames] == list(range(source.given))


@pytest.mark.timeout(60)
def test_abort_drops_everything(engine, cpu_too):
    stop = Stop()
    sink = Keeper()
    threading.Timer(0.5, stop.abort).start()
    with pytest.raises(Aborted):
        go(engine, Source(), sink, stop=stop)
    assert sink.aborted


@pytest.mark.timeout(60)
@pytest.mark.parametrize("stage", ["read", "background", "write", "nonsense", "network", "torch"])
def test_a_failing_stage_ends_everything(stage, engine, cpu_too):
    source = Source(seconds=1, fail_at=4 if stage == "read" else None)
    behind, sink = Wall(4 if stage == "background" else None), Keeper(4 if stage == "write" else None)
    lent, calls = Lent(engine, engine.spec.sizes[0]), []

    def network(frame):
        calls.append(1)
        if len(calls) > 4 and stage == "network":
            raise EngineError("the GPU has fallen off the bus")
        if len(calls) > 4 and stage == "torch":
            return lent(frame) @ lent(frame)  # what torch complains about
        return lent(frame) + (9 if len(calls) > 4 and stage == "nonsense" else 0)

    frames = GpuFrames(network, engine.spec.sizes, source.info)
    says = {"nonsense": "cannot be trusted", "network": "the GPU has fallen off the bus", "torch": "GPU failed"}
    with pytest.raises(MattingError if stage in says else Boom, match=says.get(stage, stage)) as info:
        go(engine, source, sink, behind, frames=frames)
    assert "\n" not in str(info.value)
    assert sink.aborted


# ---- an engine that is to be followed by another


@pytest.mark.timeout(60)
def test_a_file_goes_on_with_the_next_engine():
    """On the CPU path too; what is shown and reported at the end is what ran then."""
    spec = find_model("fast")
    first = OpenVINORunner(spec, threads=1, precision="f32")
    swap = Swapping(first, lambda _s, _c: OnnxRuntimeRunner(spec, threads=1))
    width, height = nearest_size(spec.sizes, 320, 180)
    shape = (1, 4, height, width)

    class Waiting(Source):
        def read(self):
            if self.given == 6:  # the first picture is done, as the links between hold fewer
                deadline = time.monotonic() + 30
                while not swap.due(shape) and swap.current(shape) is first and time.monotonic() < deadline:
                    time.sleep(0.01)
            return super().read()

    shown: set[str] = set()
    source, sink, engine = Waiting(seconds=20 / 30), Keeper(wait=0.02), adapt(spec, swap)
    stats = run(source, Matting(engine, source.info), Wall(), [sink], progress=lambda s: shown.add(s.engine))
    engine.close()
    assert stats.engine == "ONNX Runtime CPU f32"
    assert "OpenVINO CPU f32" in shown
    assert [f.pts for f in sink.frames] == list(range(20))


FIRST_DONE = threading.Event()  # the first frame that could begin a change is through: the next engine may come


def swapping(second, device: str = "cpu") -> Engine:
    spec = find_model("fast")
    FIRST_DONE.clear()

    def later(shapes, cancelled):
        assert FIRST_DONE.wait(60)
        return second(shapes, cancelled)

    return adapt(spec, Swapping(TorchRunner(spec, threads=1, device=device), later))


def pushed(engine: Engine, *, settle: bool) -> tuple[list[Frame], list[str]]:
    """Eight frames by way of the GPU, and what the engine was called after each."""
    source = Source(seconds=8 / 30)
    frames = open_frames(engine, source.info, Refinement(), GREEN, show="composite", wrap=0)
    assert frames is not None
    done, names, behind = [], [], Wall()
    while (frame := source.read()) is not None:
        done += frames.push(frame, behind.at(frame, frame.planes[0]))
        names.append(engine.device)
        deadline = time.monotonic() + 30
        if len(names) == 2:
            FIRST_DONE.set()
        while settle and FIRST_DONE.is_set() and any(n._thread.is_alive() for n in engine._runner._next.values()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    done += frames.flush()
    assert (frames._graph is not None) == frames._cuda
    frames.close()
    return done, names


def same(wanted: list[Frame], got: list[Frame], apart: int = 0) -> None:
    assert len(wanted) == 8
    for one, other in zip(wanted, got, strict=True):
        assert one.pts == other.pts
        for a, b in zip(one.planes, other.planes, strict=True):
            np.testing.assert_allclose(a.astype(int), b, rtol=0, atol=apart)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_torch_cuda)])
def test_the_next_engine_takes_over_between_two_frames(device, cpu_too, caplog):
    """And all that is remembered goes on: one that computes the same gives the same pictures, on the CPU to the bit."""
    calls = []

    class Second(TorchRunner):
        def __init__(self) -> None:
            super().__init__(find_model("fast"), threads=1, device=device)
            self.device = "the second"

        def tensors(self, frame):
            calls.append(1)
            return super().tensors(frame)

    changing, alone = swapping(lambda _s, _c: Second(), device), load("fast", engine="torch", device=device)
    with caplog.at_level(logging.INFO, "engines"):
        got, names = pushed(changing, settle=True)
    assert names == [alone.device] * 2 + ["the second"] * 6
    assert len(calls) == (6 if device == "cpu" else 3)  # the third is captured
    assert caplog.text.count(f"the second runs the network from here on, before it was {alone.device}") == 1
    same(pushed(alone, settle=False)[0], got, apart=0 if device == "cpu" else 8)
    changing.close()
    alone.close()


def test_a_wrong_engine_does_not_take_over(engine, cpu_too, caplog):
    class Wrong(TorchRunner):
        def run(self, feeds, wanted):
            return [1 - out for out in super().run(feeds, wanted)]

    spec = find_model("fast")
    changing = swapping(lambda _s, _c: Wrong(spec, threads=1, device="cpu"))
    got, names = pushed(changing, settle=True)
    assert set(names) == {"torch CPU f32"}
    assert "the test portrait differs by" in caplog.text
    same(pushed(engine, settle=False)[0], got)
    changing.close()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_torch_cuda)])
@pytest.mark.parametrize("wrong", [EngineError, RuntimeError])  # the second as torch raises it
def test_an_engine_that_fails_later_is_left_again(wrong, device, cpu_too, caplog):
    """On the way by the GPU too: a file is finished by the engine before, with one warning."""
    calls = []

    class Failing(TorchRunner):
        def __init__(self) -> None:
            super().__init__(find_model("fast"), threads=1, device=device)
            self.device = "the second"

        def tensors(self, frame):
            calls.append(1)
            if len(calls) > 1:
                raise wrong("TensorRT did not run the network")
            return super().tensors(frame)

    changing, alone = swapping(lambda _s, _c: Failing(), device), load("fast", engine="torch", device=device)
    got, names = pushed(changing, settle=True)
    assert names == [alone.device] * 2 + ["the second"] + [alone.device] * 5
    assert len(calls) == 2
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert record.getMessage() == f"{alone.device} takes over again: TensorRT did not run the network"
    same(pushed(alone, settle=False)[0], got, apart=0 if device == "cpu" else 8)
    assert changing.name == "torch"
    changing.close()
    alone.close()


def test_an_engine_that_fails_with_none_before_it_on_the_gpu(cpu_too):
    """One that began on the CPU cannot go on with frames that lie on the GPU: one line, and no warning of another."""
    spec = find_model("fast")

    class Failing(TorchRunner):
        def tensors(self, frame):
            raise EngineError("TensorRT did not run the network: try the engine openvino")

    swap = Swapping(OpenVINORunner(spec, threads=1), lambda _s, _c: Failing(spec, threads=1, device="cpu"))
    engine = adapt(spec, swap)
    width, height = nearest_size(spec.sizes, 320, 180)
    frame = np.zeros((1, 4, height, width), np.float32)
    deadline = time.monotonic() + 30
    while engine.name != "torch" and time.monotonic() < deadline:
        engine.infer({"frame": frame})
    sink = Keeper()
    with pytest.raises(MattingError, match=r"^TensorRT did not run the network: try the engine openvino$"):
        go(engine, Source(seconds=1), sink)
    assert sink.aborted
    engine.close()


def test_frames_that_stay_on_the_cpu_wait_for_no_torch(tmp_path):
    """With TensorRT as the engine, which itself needs none; one that is open, as far as that goes without a GPU."""
    code = """
import sys
from engines.adapter import Own
from engines.on_device import Lent
from engines.spec import Port, find_model
from engines.tensorrt_engine import TensorRTRunner
from rtbg.backgrounds import parse_background
from rtbg.gpu_frames import open_frames
from rtbg.matting import Refinement
from rtbg.sources.demo import DemoSource
runner = TensorRTRunner.__new__(TensorRTRunner)
runner.device, runner.inputs, runner.outputs = "TensorRT", [Port("frame", "float32", ())], [Port("a", "float32", ())]
engine, info = Own(find_model("fast"), runner), DemoSource(size=(320, 180), seconds=1).info
for show, wrap in (("matte", 0), ("composite", 0.5)):
    assert open_frames(engine, info, Refinement(), parse_background("green"), show=show, wrap=wrap) is None
assert "torch" not in sys.modules
Lent(engine, find_model("fast").sizes[0])
assert "torch" not in sys.modules
"""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_which_engines_lend_their_network(engine, cpu_too, tmp_path, monkeypatch):
    lent = Lent(engine, engine.spec.sizes[0])
    assert lent.device.type == "cpu"
    size = engine.spec.sizes[0]
    frame = np.random.default_rng(0).random((1, 4, size[1], size[0]), np.float32)
    with torch.inference_mode():
        alpha = lent(torch.from_numpy(frame)).numpy()
    np.testing.assert_allclose(alpha, engine.infer({"frame": frame})["alpha"], atol=1e-5)
    segmenter = load(make_segmenter(tmp_path / "net.onnx"), engine="torch", device="cpu")
    with pytest.raises(EngineError, match="net is not a network of rtbg's own kind"):
        Lent(segmenter, segmenter.spec.sizes[0])
    segmenter.close()
    monkeypatch.setattr(on_device, "KINDS", {"cuda"})
    for name in ("openvino", "torch"):
        other = load("fast", engine=name, device="cpu")
        with pytest.raises(EngineError, match=r"CPU .* runs the network"):
            Lent(other, size)
        other.close()
