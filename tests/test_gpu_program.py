"""The program with frames that go by way of `rtbg.gpu_frames`: on a GPU, and the same code on torch's CPU."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from gpu import assert_alike, needs_rtx, needs_tensorrt, needs_torch_cuda, torch_or_skip, without_gpu
from networks import make_network, make_segmenter

from engines import Engine, EngineError, load, nearest_size, on_device
from engines.on_device import Lent
from engines.onnxruntime_engine import OnnxRuntimeRunner
from engines.openvino_engine import OpenVINORunner
from engines.signature import adapt
from engines.spec import find_model
from engines.swap import Swapping
from engines.tensorrt_engine import NO_GPU, Target, import_flavour
from engines.torch_engine import TorchRunner
from rtbg import cli
from rtbg.backgrounds import parse_background
from rtbg.backgrounds.solid import SolidBackground
from rtbg.errors import Aborted, MattingError
from rtbg.frame import Frame
from rtbg.gpu_frames import GpuFrames, open_frames
from rtbg.matting import Matting, Refinement
from rtbg.pipeline import run
from rtbg.sources.demo import DemoSource
from rtbg.stats import Stats, Stop
from tests.media import make_video
from tests.test_pipeline import Boom, Keeper

torch = torch_or_skip()

GREEN = parse_background("green")


@pytest.fixture
def cpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done with frames on a GPU is done on the CPU."""
    monkeypatch.setattr(on_device, "KINDS", {"cuda", "cpu"})


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """What the command line sets for its process is as before."""
    kept = logging.getLogger().level, cv2.getNumThreads(), sys.getswitchinterval()
    yield
    logging.getLogger().setLevel(kept[0])
    cv2.setNumThreads(kept[1])
    sys.setswitchinterval(kept[2])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's person, 14 pictures at uneven times with a cut before the tenth, and sound; without loss."""
    path = tmp_path_factory.mktemp("clip") / "in.mkv"
    source = DemoSource(size=(640, 360), seconds=0.5, rate=30)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        sound = out.add_stream("flac", rate=48000, layout="mono")
        for k in range(14):
            frame = source.read()
            assert frame is not None
            planes = [p[:, ::-1] if k >= 10 else p for p in frame.planes[:3]]
            rows = np.concatenate([p.ravel() for p in planes]).reshape(-1, 640)
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(rows), format="yuv420p")
            picture.pts, picture.time_base = 33 * k + 5 * (k % 3), Fraction(1, 1000)
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
        tone = (8000 * np.sin(np.arange(22000) / 20)).astype(np.int16)
        part = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        part.sample_rate, part.pts, part.time_base = 48000, 0, Fraction(1, 48000)
        for packet in (*sound.encode(part), *sound.encode(None)):
            out.mux(packet)
    return path


def rtbg(capfd: pytest.CaptureFixture[str], *args: object) -> str:
    """Runs the program in this process; what it said."""
    code = cli.main([str(a) for a in args])
    said = capfd.readouterr().err
    assert code == 0, said
    return said


def decoded(path: Path) -> tuple[list[tuple[Fraction, list[np.ndarray]]], bytes]:
    """((time in seconds, planes) of each picture, the sound)."""
    pictures = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            assert frame.pts is not None and frame.time_base is not None and frame.format.name == "yuv420p"
            rows = frame.to_ndarray()
            luma, chroma = rows[: frame.height], rows[frame.height :].reshape(2, -1)
            pictures.append((frame.pts * frame.time_base, [luma, *chroma]))
    with av.open(str(path)) as container:
        sound = b"".join(f.to_ndarray().tobytes() for f in container.decode(audio=0))
    return pictures, sound


def compare(one: Path, other: Path) -> None:
    (wanted, sound), (got, same) = decoded(one), decoded(other)
    assert [t for t, _ in got] == [t for t, _ in wanted]
    assert len(sound) > 10_000
    assert same == sound
    for (_, planes), (_, others) in zip(wanted, got, strict=True):
        assert_alike(planes, others)


# ---- from file to file


@pytest.mark.parametrize("background", ["blur", "dusk", "a moving one"])
def test_a_file_comes_out_as_by_the_cpu(background, clip, tmp_path, capfd, monkeypatch):
    if background == "a moving one":
        background = str(make_video(tmp_path / "loop.mp4", size=(320, 180), frames=5))
    options = ["--engine", "torch", "--device", "cpu", "--bg", background, "--codec", "ffv1", "-v"]
    said = rtbg(capfd, clip, "-o", tmp_path / "cpu.mkv", *options)
    assert said.count("frames are composited on the CPU: torch CPU f32 runs the network\n") == 1
    assert "frames by torch" not in said
    monkeypatch.setattr(on_device, "KINDS", {"cpu"})
    said = rtbg(capfd, clip, "-o", tmp_path / "gpu.mkv", *options)
    assert "14 frames" in said and "torch CPU f32, frames by torch\n" in said
    assert "gpu " in said.splitlines()[-1] and "matting" not in said and "composited" not in said
    compare(tmp_path / "cpu.mkv", tmp_path / "gpu.mkv")


def test_the_comparison_can_fail(clip, tmp_path, capfd):
    """An edge that is five pixels off is too much for it."""
    for name, shift in (("a", 0), ("b", -15)):
        options = ["--bg", "white", "--codec", "ffv1", "--edge", f"shift={shift}"]
        rtbg(capfd, clip, "-o", tmp_path / f"{name}.mkv", *options)
    with pytest.raises(AssertionError):
        compare(tmp_path / "a.mkv", tmp_path / "b.mkv")
    with pytest.raises(AssertionError):
        compare(tmp_path / "a.mkv", clip)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--edge", "feather=3"], "the GPU path has no --edge and no --light-wrap"),
        (["--show", "matte"], "the GPU path makes composites only"),
        (["--engine", "openvino"], "OpenVINO CPU"),
    ],
)
def test_what_it_cannot_do_takes_the_cpu_and_says_so(options, says, clip, tmp_path, capfd, cpu_too):
    said = rtbg(capfd, clip, "-o", tmp_path / "out.mkv", "-v", "--engine", "torch", "--device", "cpu", *options)
    (line,) = [s for s in said.splitlines() if "frames are composited on the CPU: " in s]
    assert says in line
    assert "matting" in said and "frames by torch" not in said
    said = rtbg(capfd, clip, "-y", "-o", tmp_path / "out.mkv", "--engine", "torch", "--device", "cpu", *options)
    assert "composited" not in said


def test_without_a_gpu_a_file_needs_no_torch(clip, tmp_path):
    """Nor waits for it where it is installed: in a process of its own; a GPU is hidden."""
    code = (
        "import sys; from rtbg import cli; assert cli.main(sys.argv[1:]) == 0\n"
        "print([m for m in ('torch', 'onnx', 'tensorrt', 'tensorrt_rtx') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(clip), "-o", str(tmp_path / "out.mkv"), "-q"],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


# ---- what is not here


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--engine", "onnxruntime", "--device", "cuda"], "pip install onnxruntime-gpu in place of onnxruntime"),
        (["--engine", "onnxruntime", "--device", "azure"], "leaves this whole network to the CPU"),
        (["--engine", "torch", "--device", "mps"], "shows no mps here"),
        pytest.param(["--engine", "torch", "--device", "cuda"], "shows no cuda here", marks=without_gpu),
        pytest.param(["--engine", "tensorrt"], "TensorRT cannot run: ", marks=without_gpu),
    ],
)
def test_an_engine_that_is_not_here_is_one_line(args, says, clip, tmp_path, capfd):
    assert cli.main([str(clip), "-o", str(tmp_path / "out.mkv"), *args]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("rtbg: error: ") and says in line
    assert not list(tmp_path.iterdir())


@without_gpu
def test_build_engines_says_what_is_missing(capfd):
    assert cli.main(["--build-engines"]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("rtbg: error: TensorRT cannot run: ") and "NVIDIA" in line


@needs_rtx
def test_build_engines_shows_its_progress(tmp_path, monkeypatch, capfd):
    """With everything real but the GPU; of a small network in place of the shipped ones."""
    path = make_network(tmp_path / "net.onnx")
    path.with_suffix(".json").write_text('{"sizes": [[64, 48], [48, 64]]}')
    monkeypatch.setenv("RTBG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("engines.swap.available_models", lambda: [str(path)])
    target = Target(import_flavour("tensorrt_rtx"), "tensorrt_rtx", NO_GPU)
    monkeypatch.setattr("engines.tensorrt_engine.find_target", lambda **_: target)
    assert cli.main(["--build-engines"]) == 0
    assert capfd.readouterr().err.splitlines() == [
        "rtbg: 0 of 2 compiled, now net 64x48 f16",
        "rtbg: 1 of 2 compiled, now net 48x64 f16",
        "rtbg: 2 of 2 compiled",
    ]
    assert len(list((tmp_path / "cache").rglob("*.plan"))) == 2
    assert cli.main(["--build-engines", "-q"]) == 0
    assert capfd.readouterr().err == ""


# ---- the flow


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


def swapping(second, device: str = "cpu") -> Engine:
    spec = find_model("fast")
    return adapt(spec, Swapping(TorchRunner(spec, threads=1, device=device), second))


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
        while settle and any(n._thread.is_alive() for n in engine._runner._next.values()):
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


# ---- on a GPU


@needs_torch_cuda
@pytest.mark.parametrize("background", ["blur", "dusk"])
@pytest.mark.parametrize("name", ["torch", pytest.param("tensorrt", marks=needs_tensorrt)])
def test_a_file_on_a_gpu(name, background, clip, tmp_path, capfd):
    options = ["--bg", background, "--codec", "ffv1", "-v"]
    rtbg(capfd, clip, "-o", tmp_path / "cpu.mkv", "--engine", "torch", "--device", "cpu", *options)
    said = rtbg(capfd, clip, "-o", tmp_path / "gpu.mkv", "--engine", name, "--device", "cuda", *options)
    assert ", frames by torch\n" in said
    compare(tmp_path / "cpu.mkv", tmp_path / "gpu.mkv")


@needs_torch_cuda
def test_auto_on_a_gpu(clip, tmp_path, capfd):
    said = rtbg(capfd, clip, "-o", tmp_path / "gpu.mkv", "-v")
    assert ", frames by torch\n" in said
