"""The program with frames that go by way of `rtbg.gpu_frames`: on a GPU, and the same code on torch's CPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from gpu import assert_alike, needs_tensorrt, needs_torch_cuda, torch_or_skip, without_gpu

from engines import on_device
from engines.spec import MODELS
from rtbg import cli
from rtbg.sources.demo import DemoSource
from tests.media import make_video

torch_or_skip()
pytestmark = pytest.mark.usefixtures("settings")


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


def test_the_precision_is_the_users(clip, tmp_path, capfd):
    options = ["--device", "cpu", "--precision", "f32", "--duration", 0.1]
    for engine in ("openvino", "onnxruntime", "torch"):
        said = rtbg(capfd, clip, "-o", tmp_path / f"{engine}.mkv", "--engine", engine, *options)
        assert said.splitlines()[-1].endswith(" CPU f32")


# ---- what is not here


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--engine", "onnxruntime", "--device", "cuda"], "pip install onnxruntime-gpu in place of onnxruntime"),
        (["--engine", "onnxruntime", "--device", "azure"], "leaves this whole network to the CPU"),
        (["--engine", "torch", "--device", "mps"], "shows no mps here"),
        (["--engine", "torch", "--device", "cpu", "--precision", "int8"], "use precision f32, bf16"),
        pytest.param(["--engine", "torch", "--device", "cuda"], "shows no cuda here", marks=without_gpu),
        pytest.param(["--engine", "tensorrt"], "TensorRT cannot run: ", marks=without_gpu),
    ],
)
def test_an_engine_that_is_not_here_is_one_line(args, says, clip, tmp_path, capfd):
    refused(args, says, clip, tmp_path / "out.mkv", capfd)


def test_no_8_bit_graph_is_one_line(clip, tmp_path, tmp_path_factory, capfd):
    model = tmp_path_factory.mktemp("model") / "bare.onnx"
    card = json.loads((MODELS / "fast.json").read_text())
    shutil.copy(MODELS / card["graph"], model)
    del card["int8"]
    model.with_suffix(".json").write_text(json.dumps(card | {"graph": model.name}))
    args = ["--engine", "openvino", "--precision", "int8", "--model", str(model)]
    refused(args, " has no 8-bit graph", clip, tmp_path / "out.mkv", capfd)


def refused(args, says, clip, out, capfd):
    assert cli.main([str(clip), "-o", str(out), *args]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("rtbg: error: ") and says in line
    assert not list(out.parent.iterdir())


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
