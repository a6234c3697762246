"""A faster engine takes over between two pictures, or does not: a good one, a slow, a crashing and a wrong one."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from apart import JOB, PYTHON, gone, pretend, until
from gpu import needs_rtx, needs_tensorrt
from networks import SIZES, expected, make_mattor, make_network, noise

import engines.swap
import engines.tensorrt_engine as trt
import rtbg
from engines import EngineError, available_models, load
from engines.compile_job import compile_apart
from engines.cuda import Gpu
from engines.onnxruntime_engine import OnnxRuntimeRunner
from engines.openvino_engine import OpenVINORunner
from engines.segmenter import probe_picture
from engines.signature import adapt
from engines.spec import find_model
from engines.swap import Swapping
from engines.tensorrt_engine import Graphs
from rtbg import api

ROOT = Path(__file__).parent.parent
ADA = Gpu("NVIDIA GeForce RTX 4090", (8, 9), "13.0")


@pytest.fixture
def spec(network):
    return find_model(network)


def first(spec) -> OpenVINORunner:
    return OpenVINORunner(spec, threads=1, precision="f32")


def second(spec) -> Callable[..., OnnxRuntimeRunner]:
    return lambda _shapes, _cancelled: OnnxRuntimeRunner(spec, threads=1)


def settled(swapping: Swapping) -> None:
    """Waits until nothing more is being prepared."""
    until(lambda: not any(n._thread.is_alive() for n in swapping._next.values()))


def right_answers(engine, swapping: Swapping, pictures: int) -> list[str]:
    """Which engine gave each of so many pictures; all answers must be right."""
    names = []
    for seed in range(pictures):
        frame = noise(SIZES[0], seed)
        np.testing.assert_allclose(engine.infer({"frame": frame})["alpha"], expected(frame), atol=1e-4)
        names.append(engine.name)
        settled(swapping)
    return names


# ---- the swap


def test_a_good_engine_takes_over_between_two_pictures(spec, caplog):
    swapping = Swapping(first(spec), second(spec))
    engine = adapt(spec, swapping)
    with caplog.at_level(logging.INFO, "engines"):
        names = right_answers(engine, swapping, 4)
    # The first answers, the second is checked beside it on a live picture, and has the next.
    assert names == ["openvino", "openvino", "onnxruntime", "onnxruntime"] or names[1:] == ["onnxruntime"] * 3
    assert engine.device == "ONNX Runtime CPU f32"
    assert "ONNX Runtime CPU f32 runs the network from here on, before it was OpenVINO CPU f32" in caplog.text
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.infer({"frame": noise(SIZES[0])})


@pytest.mark.parametrize("model", available_models())
def test_the_past_is_kept(model):
    """The matte that is fed back goes on across the swap as if there had been none."""
    spec = find_model(model)
    alone = adapt(spec, first(spec))
    swapping = Swapping(first(spec), second(spec))
    engine = adapt(spec, swapping)
    frames = [probe_picture(*spec.sizes[0]) for _ in range(2)]
    seen = set()
    for k in range(6):
        alphas = [e.infer({"frame": f})["alpha"].copy() for e, f in zip((alone, engine), frames, strict=True)]
        np.testing.assert_allclose(*alphas, atol=1e-3)
        for frame, alpha in zip(frames, alphas, strict=True):
            frame[0, :3] = np.roll(probe_picture(*spec.sizes[0])[0, :3], 3 * k, axis=2)
            frame[:, 3:] = alpha
        seen.add(engine.name)
        settled(swapping)
    assert seen == {"openvino", "onnxruntime"}
    engine.close()
    alone.close()


def test_a_networks_own_memory_is_kept(tmp_path):
    spec = find_model(make_mattor(tmp_path / "mattor.onnx"))
    alone, swapping = adapt(spec, first(spec)), Swapping(first(spec), second(spec))
    engine = adapt(spec, swapping)
    width, height = engine.spec.sizes[0]
    for seed in range(5):
        frame = np.full((1, 4, height, width), seed / 5, np.float32)
        expect = alone.infer({"frame": frame})["alpha"].copy()
        np.testing.assert_allclose(engine.infer({"frame": frame})["alpha"], expect, atol=1e-4)
        settled(swapping)
    assert engine.name == "onnxruntime"
    engine.close()
    alone.close()


def test_each_size_on_its_own(spec):
    swapping = Swapping(first(spec), second(spec))
    engine = adapt(spec, swapping)
    for size in [*SIZES, *SIZES, *SIZES]:
        frame = noise(size)
        np.testing.assert_allclose(engine.infer({"frame": frame})["alpha"], expected(frame), atol=1e-4)
        settled(swapping)
    assert engine.name == "onnxruntime"
    assert len(swapping._next) == 3
    engine.close()


def test_a_slow_one_holds_up_nothing(spec):
    asked = threading.Event()

    def slow(_shapes, cancelled):
        asked.set()
        compile_apart(JOB, cancelled=cancelled, command=(*PYTHON, "import time; time.sleep(600)"))
        raise AssertionError

    engine = adapt(spec, Swapping(first(spec), slow))
    for seed in range(20):
        frame = noise(SIZES[0], seed)
        np.testing.assert_allclose(engine.infer({"frame": frame})["alpha"], expected(frame), atol=1e-4)
    assert asked.wait(20)
    assert engine.name == "openvino"
    began = time.monotonic()
    engine.close()
    assert time.monotonic() - began < 20


def stays(spec, opener, says: str, caplog) -> None:
    """The first engine goes on, and one warning says why."""
    swapping = Swapping(first(spec), opener)
    engine = adapt(spec, swapping)
    for seed in range(4):
        frame = noise(SIZES[0], seed)
        np.testing.assert_allclose(engine.infer({"frame": frame})["alpha"], expected(frame), atol=1e-4)
        settled(swapping)
    assert engine.device == "OpenVINO CPU f32"
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert says in record.getMessage()
    assert "\n" not in record.getMessage()
    engine.close()


def test_a_crashing_compiler_changes_nothing(spec, caplog):
    def crash(_shapes, cancelled):
        compile_apart(JOB, cancelled=cancelled, command=(*PYTHON, "import os; os.abort()"))
        raise AssertionError

    stays(spec, crash, "SIGABRT" if os.name == "posix" else "ended with code", caplog)


def test_an_error_of_any_kind_changes_nothing(spec, caplog):
    def fail(_shapes, _cancelled):
        raise MemoryError("no memory on the GPU")

    stays(spec, fail, "no memory on the GPU", caplog)


class Altered(OnnxRuntimeRunner):
    """Answers what `alter` makes of the right answer and the number of the call."""

    def __init__(self, spec, alter) -> None:
        super().__init__(spec, threads=1)
        self._alter, self._calls = alter, 0

    def run(self, feeds, wanted):
        self._calls += 1
        return [self._alter(out, self._calls) for out in super().run(feeds, wanted)]


def test_a_wrong_engine_is_not_taken(spec, tmp_path, caplog):
    other = find_model(make_network(tmp_path / "other.onnx", seed=9))
    stays(spec, second(other), "the test portrait differs by 0.", caplog)


@pytest.mark.parametrize(
    "alter",
    [lambda out, _: np.full_like(out, np.nan), lambda out, _: out[..., :-1], lambda out, _: out + 0.03],
    ids=["nan", "shape", "a little off"],
)
def test_nonsense_is_not_taken(alter, spec, caplog):
    stays(spec, lambda _s, _c: Altered(spec, alter), "the test portrait differs", caplog)


def test_right_about_the_portrait_and_wrong_about_the_live_picture(spec, caplog):
    stays(
        spec,
        lambda _s, _c: Altered(spec, lambda out, call: out if call == 1 else 1 - out),
        "the live picture differs",
        caplog,
    )


def test_no_number_about_the_live_picture(spec, caplog):
    alter = lambda out, call: out if call == 1 else np.full_like(out, np.nan)  # noqa: E731
    stays(spec, lambda _s, _c: Altered(spec, alter), "the live picture differs by nan", caplog)


def test_the_portrait_is_the_stored_one(spec, caplog):
    """Not the live picture: that may be dark, or of nobody, and any engine would agree about it."""
    stored = probe_picture(*SIZES[0])

    class Wrong(OnnxRuntimeRunner):
        def run(self, feeds, wanted):
            out = super().run(feeds, wanted)
            return [1 - o for o in out] if np.array_equal(feeds["frame"], stored) else out

    stays(spec, lambda _s, _c: Wrong(spec, threads=1), "the test portrait differs", caplog)


def test_an_engine_that_fails_later_is_left_again(spec, caplog):
    def fails(out, call):
        if call > 3:
            raise EngineError("the GPU has fallen off the bus")
        return out

    swapping = Swapping(first(spec), lambda _s, _c: Altered(spec, fails))
    engine = adapt(spec, swapping)
    names = right_answers(engine, swapping, 6)
    assert "onnxruntime" in names
    assert names[-1] == "openvino"
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert record.getMessage() == "OpenVINO CPU f32 takes over again: the GPU has fallen off the bus"
    engine.close()


@pytest.mark.parametrize(
    "alter,said",
    [
        (lambda out: out * np.nan, "it answered what is no number"),
        (lambda out: out[..., :-1], "it answered float32 (1, 1, "),
        (lambda out: out.astype(np.float64), "it answered float64 (1, 1, "),
    ],
    ids=["nan", "shape", "dtype"],
)
def test_an_engine_that_answers_nothing_of_use_is_left_for_good(alter, said, spec, caplog):
    swapping = Swapping(first(spec), lambda _s, _c: Altered(spec, lambda out, call: alter(out) if call > 3 else out))
    engine = adapt(spec, swapping)
    names = right_answers(engine, swapping, 7)
    assert "onnxruntime" in names and names[-2:] == ["openvino"] * 2
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert f"takes over again: {said}" in record.getMessage()
    engine.close()


class Reusing(Altered):
    """As TensorRT does: answers into the same arrays again and again, and its next feeds may be these."""

    def run(self, feeds, wanted):
        self.kept = getattr(self, "kept", {})
        answers = super().run(feeds, wanted)
        for name, answer in zip(wanted, answers, strict=True):
            np.copyto(self.kept.setdefault((name, answer.shape), np.empty_like(answer)), answer)
        return [self.kept[name, answer.shape] for name, answer in zip(wanted, answers, strict=True)]


def test_a_networks_own_memory_outlives_an_engine_that_is_left(tmp_path, caplog):
    spec = find_model(make_mattor(tmp_path / "mattor.onnx"))
    alone = adapt(spec, first(spec))
    # What it answers from its sixth call on, states too, would stay in the network's memory for good.
    swapping = Swapping(first(spec), lambda _s, _c: Reusing(spec, lambda out, n: out * np.nan if n > 5 else out))
    engine = adapt(spec, swapping)
    width, height = engine.spec.sizes[0]
    names = []
    for seed in range(9):
        frame = np.full((1, 4, height, width), seed / 9, np.float32)
        expect = alone.infer({"frame": frame})["alpha"].copy()
        np.testing.assert_allclose(engine.infer({"frame": frame})["alpha"], expect, atol=1e-4)
        names.append(engine.name)
        settled(swapping)
    assert "onnxruntime" in names and names[-1] == "openvino"
    assert "it answered what is no number" in caplog.text
    engine.close()
    alone.close()


def test_a_small_difference_is_accepted(spec):
    swapping = Swapping(first(spec), lambda _s, _c: Altered(spec, lambda out, _: out + 0.015))
    engine = adapt(spec, swapping)
    for _ in range(3):
        engine.infer({"frame": noise(SIZES[0])})
        settled(swapping)
    assert engine.name == "onnxruntime"
    engine.close()


def test_a_process_that_ends_is_not_held_up(tmp_path):
    """Nor does its end leave the compiler behind, or a message."""
    path = make_network(tmp_path / "net.onnx")
    pid = tmp_path / "pid"
    compiler = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    code = f"""
import sys, time, engines.swap, numpy as np
from pathlib import Path
from engines.compile_job import compile_apart
from engines.openvino_engine import OpenVINORunner
from engines.spec import find_model
def opener(shapes, cancelled):
    compile_apart({JOB!r}, cancelled=cancelled, command=(sys.executable, "-c", {compiler!r}))
pid = Path({str(pid)!r})
swapping = engines.swap.Swapping(OpenVINORunner(find_model({str(path)!r}), threads=1), opener)
swapping.run({{"frame": np.zeros((1, 4, 48, 64), np.float32)}}, ["alpha"])
while not (pid.exists() and pid.stat().st_size):
    time.sleep(0.02)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    if sys.platform == "linux":
        until(lambda: gone(int(pid.read_text())), 20)


# ---- by way of engines.load


@needs_rtx
def test_auto_compiles_beside_the_next_best_engine(spec, cache, monkeypatch, caplog):
    """With everything real but the GPU: TensorRT compiles, does not run, and OpenVINO goes on."""
    pretend(monkeypatch, ADA)
    with caplog.at_level(logging.INFO, "engines"):
        engine = load(spec.path, precision="f32", device="auto")
        frame = noise(SIZES[0])
        for _ in range(2):
            np.testing.assert_allclose(engine.infer({"frame": frame})["alpha"], expected(frame), atol=1e-4)
            settled(engine._runner)
    assert engine.device == "OpenVINO CPU f32"
    assert len(list(cache.folder.glob("*.plan"))) == 1
    assert "TensorRT compiles the network apart, OpenVINO CPU f32 runs meanwhile" in caplog.text
    assert "is not taken: TensorRT compiles without a GPU but does not run without one" in caplog.text
    engine.close()


def test_auto_says_as_information_why_there_is_no_tensorrt(spec, monkeypatch, caplog):
    def missing(**_):
        raise EngineError("TensorRT is not installed: pip install 'rtbg[rtx]'")

    monkeypatch.setattr("engines.worth_asking", lambda: False)
    monkeypatch.setattr(engines.swap, "probe", lambda: ADA)
    monkeypatch.setattr(trt, "find_target", missing)
    with caplog.at_level(logging.INFO, "engines"):
        engine = load(spec.path)
    assert engine.name == "openvino"
    assert "pip install 'rtbg[rtx]'" in caplog.text
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert load(spec.path, device="cpu").name == "openvino"


@needs_rtx
def test_nothing_is_compiled_that_could_not_run(spec, monkeypatch, caplog):
    pretend(monkeypatch, ADA)
    for name in [n for n in sys.modules if n.partition(".")[0] == "cuda"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cuda", None)
    with caplog.at_level(logging.INFO, "engines"):
        engine = load(spec.path)
    assert isinstance(engine._runner, OpenVINORunner)
    assert "runs without TensorRT: cuda-bindings is not installed: pip install cuda-bindings" in caplog.text
    engine.close()


@needs_rtx
def test_what_is_compiled_for_an_engine_that_is_kept_ends_with_it(spec, cache, monkeypatch):
    """`rtbg.api` keeps engines for the next call: their compilation goes on, until they are closed."""
    pretend(monkeypatch, ADA)
    picture = np.zeros((48, 64, 3), np.uint8)

    def compiling() -> bool:
        return any(t.name == "rtbg-engine" for t in threading.enumerate())

    with cache.locked(Graphs(spec).key(trt.find_target(), {"frame": (1, 4, 48, 64)})):  # so it has to wait
        rtbg.matte(picture, model=str(spec.path))
        (engine,) = [e for kept in api._idle.values() for e in kept if e.spec.path == spec.path]
        assert compiling()
        rtbg.matte(picture, model=str(spec.path))
        assert compiling()
        api.close_engines()
        assert not compiling()
    with pytest.raises(EngineError, match="closed"):
        engine.infer({"frame": noise(SIZES[0])})
    rtbg.matte(picture, model=str(spec.path), engine="openvino")


@needs_tensorrt
@pytest.mark.parametrize("model", available_models())
def test_tensorrt_takes_over(model, cache):
    engine = load(model)
    begun = engine.name
    frame = probe_picture(*engine.spec.sizes[0])
    alpha = engine.infer({"frame": frame})["alpha"].copy()
    assert engine.name == begun != "tensorrt"
    settled(engine._runner)
    engine.infer({"frame": frame})
    after = engine.infer({"frame": frame})["alpha"].copy()
    assert engine.name == "tensorrt"
    assert np.abs(after - alpha).mean() < 0.02
    engine.close()
