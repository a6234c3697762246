"""The frame path on a GPU against the CPU's: the same pictures, but for rounding. Without a GPU on torch's CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import cv2
import numpy as np
import pytest
from gpu import assert_alike, needs_tensorrt, needs_torch_cuda, torch_or_skip

from engines import available_models, load, nearest_size
from engines.on_device import Lent
from engines.torch_engine import TorchRunner
from rtbg import gpu_ops
from rtbg.backgrounds.blur import BlurBackground
from rtbg.composite import Compositor
from rtbg.errors import MattingError
from rtbg.foreground import Foreground
from rtbg.frame import Frame, StreamInfo
from rtbg.gpu_frames import GpuFrames, refusal
from rtbg.grid import Grid
from rtbg.islands import _small
from rtbg.matting import Matting, Refinement
from rtbg.smoothing import GAP
from rtbg.sources.demo import DemoSource
from rtbg.upsampling import Edge

torch = torch_or_skip()

MODEL = "balanced" if "balanced" in available_models() else available_models()[0]


def pictures(size: tuple[int, int], count: int, *, fps: int = 30) -> tuple[StreamInfo, list[Frame]]:
    """The moving portrait with a camera's noise."""
    source = DemoSource(size=size, seconds=count / fps, rate=fps)
    rng, frames = np.random.default_rng(0), []
    while (frame := source.read()) is not None:
        luma = np.clip(frame.planes[0] + rng.normal(0, 3, frame.planes[0].shape), 0, 255).astype(np.uint8)
        frames.append(frame.with_planes((luma, *frame.planes[1:3])))
    return source.info, frames[:count]


def wall(info: StreamInfo, shade: int = 0) -> tuple[np.ndarray, ...]:
    """A background with something on it."""
    y, x = np.mgrid[0 : info.height, 0 : info.width]
    luma = (60 + shade + 50 * np.sin(x / 40) * np.cos(y / 30)).astype(np.uint8)
    half = (info.height // 2, info.width // 2)
    return luma, np.full(half, 110, np.uint8), np.full(half, 150, np.uint8)


def by_cpu(info, frames, refinement, *, blur=None, foreground=True, engine=None) -> list[Frame]:
    engine = engine or load(MODEL, engine="torch", device="cpu")
    matting = Matting(engine, info, refinement)
    pairs = [p for f in frames for p in matting.push(f)] + matting.flush()
    compositor = Compositor(foreground=Foreground() if foreground else None)
    behind = BlurBackground(blur, info).at if blur is not None else lambda f, _a: wall(info, f.pts % 7)
    return [compositor(f, a, behind(f, a)) for f, a in pairs]


def network(device: str = "cpu") -> tuple[Callable, tuple]:
    engine = load(MODEL, engine="torch", device=device, precision="f32")
    runner = engine._runner
    assert isinstance(runner, TorchRunner)
    return runner.tensors, engine.spec.sizes


def by_gpu(info, frames, refinement, *, blur=None, foreground=True, device="cpu") -> list[Frame]:
    path = GpuFrames(*network(device), info, refinement, device=device, blur=blur, foreground=foreground)
    done = [d for f in frames for d in path.push(f, None if blur is not None else wall(info, f.pts % 7))]
    assert len(done) == max(0, len(frames) - refinement.lookahead - 2)  # two are in flight
    return done + path.flush()


def compare(wanted: list[Frame], got: list[Frame]) -> None:
    assert [f.pts for f in got] == [f.pts for f in wanted]
    for want, have in zip(wanted, got, strict=True):
        assert (have.color, have.captured) == (want.color, want.captured)
        assert_alike(want.planes, have.planes)


CASES = {
    "as it is": ((640, 360), Refinement(), {}),
    "with a future": ((640, 360), Refinement(lookahead=2), {}),
    "blurred": ((640, 360), Refinement(lookahead=2), {"blur": 0.5}),
    "strongly blurred": ((480, 270), Refinement(), {"blur": 1.0}),
    "cells that hang over": ((854, 480), Refinement(), {}),
    "upright": ((360, 640), Refinement(), {}),
    "larger": ((1280, 720), Refinement(), {}),
    "no smoothing": ((640, 360), Refinement(smoothing=0.0, lookahead=2), {}),
    "not guided": ((640, 360), Refinement(guided=False), {}),
    "no islands": ((640, 360), Refinement(islands=False), {}),
    "the camera's colours": ((640, 360), Refinement(), {"foreground": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_as_on_the_cpu(case):
    size, refinement, options = CASES[case]
    info, frames = pictures(size, 4 if size[0] > 640 else 6)
    if refinement.smoothing == 0:
        refinement = replace(refinement, lookahead=0)
    compare(by_cpu(info, frames, refinement, **options), by_gpu(info, frames, refinement, **options))


def test_texture_as_on_the_cpu():
    """Stripes finer than a cell, which neither follows where the small matte knows of no edge."""
    info, frames = pictures((1280, 720), 3)
    stripes = np.where(np.arange(info.width) // 2 % 2, 40, 0).astype(np.uint8)
    frames = [f.with_planes((np.clip(f.planes[0], 0, 200) + stripes, *f.planes[1:3])) for f in frames]
    compare(by_cpu(info, frames, Refinement()), by_gpu(info, frames, Refinement()))


@pytest.mark.parametrize("what", ["cut", "gap", "backwards"])
@pytest.mark.parametrize("lookahead", [0, 2])
def test_the_past_ends_where_it_does_on_the_cpu(what, lookahead):
    info, frames = pictures((320, 180), 9)
    if what == "cut":
        frames[4:] = [f.with_planes((255 - f.planes[0], *f.planes[1:])) for f in frames[4:]]
    else:
        shift = round((GAP + 0.1) / info.time_base) if what == "gap" else -frames[4].pts
        frames[4:] = [replace(f, pts=f.pts + shift) for f in frames[4:]]
    refinement = Refinement(lookahead=lookahead)
    compare(by_cpu(info, frames, refinement), by_gpu(info, frames, refinement))


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_turned_pictures(turn):
    info, frames = pictures((320, 240), 4)
    quarter = turn // 90  # the stored picture is the upright one turned back
    frames = [f.with_planes(tuple(np.ascontiguousarray(np.rot90(p, -quarter)) for p in f.planes)) for f in frames]
    height, width = frames[0].planes[0].shape
    info = replace(info, width=width, height=height, rotation=turn)
    compare(by_cpu(info, frames, Refinement()), by_gpu(info, frames, Refinement()))


def test_the_comparison_can_fail():
    """Other settings lie further off than the same ones, and a picture upside down is refused."""
    info, frames = pictures((320, 180), 12)
    wanted = by_cpu(info, frames, Refinement())

    def apart(refinement: Refinement) -> float:
        made = zip(wanted, by_gpu(info, frames, refinement), strict=True)
        return float(np.mean([np.abs(a.planes[0].astype(int) - b.planes[0]) > 2 for a, b in made]))

    right = apart(Refinement())
    assert all(apart(wrong) > 1.5 * right for wrong in (Refinement(smoothing=0.0), Refinement(guided=False)))
    with pytest.raises(AssertionError):
        compare(wanted, [f.with_planes((f.planes[0][::-1], *f.planes[1:])) for f in wanted])


def test_a_stream_after_another():
    info, frames = pictures((320, 180), 4)
    path = GpuFrames(*network(), info, Refinement(lookahead=1))
    runs = []
    for _ in range(2):
        done = [d for f in frames for d in path.push(f, wall(info))]
        runs.append(done + path.flush())
    assert path.flush() == []
    for one, other in zip(*runs, strict=True):
        for a, b in zip(one.planes, other.planes, strict=True):
            np.testing.assert_array_equal(a, b)


def test_given_frames_are_not_touched_and_outputs_stay():
    info, frames = pictures((320, 180), 6)
    before = [[p.copy() for p in f.planes] for f in frames]
    path = GpuFrames(*network(), info)
    kept: list[tuple[Frame, list[np.ndarray]]] = []
    for frame in frames:
        kept += [(d, [p.copy() for p in d.planes]) for d in path.push(frame, wall(info))]
    path.flush()
    for frame, planes in [*zip(frames, before, strict=True), *kept]:
        for a, b in zip(frame.planes, planes, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("bad", [float("nan"), 2.0, -1.0])
def test_nonsense_of_the_network_is_no_picture(bad):
    info, frames = pictures((320, 180), 4)
    inner, sizes = network()
    calls = []

    def broken(x):
        calls.append(1)
        alpha = inner(x)
        return torch.where(torch.arange(alpha.shape[-1]) == 5, bad, alpha) if len(calls) == 2 else alpha

    path = GpuFrames(broken, sizes, info)
    done: list[Frame] = []
    with pytest.raises(MattingError, match="cannot be trusted"):
        for frame in frames:
            done += path.push(frame, wall(info))
    assert [f.pts for f in done] == [frames[0].pts]


def test_what_goes_by_the_cpu():
    info, frames = pictures((320, 180), 1)
    assert refusal(info, Refinement()) == ""
    for other in (
        replace(info, bits=10),
        replace(info, chroma=(1, 1)),
        replace(info, width=321),
        replace(info, width=256, height=144),
    ):
        assert refusal(other, Refinement())
        with pytest.raises(ValueError, match="GPU path"):
            GpuFrames(*network(), other)
    assert refusal(info, Refinement(edge=Edge(feather=3)))
    assert refusal(info, Refinement(), show="matte")
    assert refusal(info, Refinement(), transparent=True)
    assert refusal(info, Refinement(), wrap=0.5)
    path = GpuFrames(*network(), info)
    with pytest.raises(ValueError, match="background"):
        path.push(frames[0])
    with pytest.raises(ValueError, match="background"):
        path.push(frames[0], tuple(p[:-2] for p in wall(info)))
    with pytest.raises(ValueError, match="changed"):
        path.push(Frame(tuple(p[:-2] for p in frames[0].planes), 0, Fraction(1, 30)), wall(info))


# ---- operations


def test_islands_of_any_shape():
    ops, rng = gpu_ops.Ops("cpu"), np.random.default_rng(0)
    for _ in range(12):
        field = cv2.GaussianBlur(rng.random((176, 320), np.float32), (0, 0), rng.uniform(0.6, 4))
        matte = (field > np.quantile(field, rng.uniform(0.4, 0.95))).astype(np.float32)
        low, high = (a * matte.size for a in (0.0004, 0.0016))
        out = ops.components(torch.from_numpy(matte > 0.25), low, high).numpy()
        wanted = _small(matte, (0.0004, 0.0016))
        np.testing.assert_allclose(np.where(matte > 0.25, out, 0), np.where(matte > 0.25, wanted, 0), atol=1e-5)


def test_a_spiral_is_one_island():
    """Its labels need many rounds: one that is large must not be taken for small ones."""
    spiral = np.zeros((64, 64), bool)
    y = x = 32
    length, (dy, dx) = 2, (0, 1)
    while 2 < y < 61 and 2 < x < 61:
        for _ in range(length):
            spiral[np.clip(y, 0, 63), np.clip(x, 0, 63)] = True
            y, x = y + dy, x + dx
        (dy, dx), length = (dx, -dy), length + 1
    count, *_ = cv2.connectedComponentsWithStats(spiral.astype(np.uint8), connectivity=4)
    assert count == 2
    assert not gpu_ops.Ops("cpu").components(torch.from_numpy(spiral), 20, 90).any()


@pytest.mark.parametrize("shape", [(720, 1280), (90, 160), (1080, 1920), (100, 150)])
def test_reduction(shape):
    from rtbg.color import reduce

    plane = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    for size in ((176, 320), (60, 107), (35, 35)):
        got = gpu_ops.Ops("cpu").reduction(shape, size)(torch.from_numpy(plane).float()).numpy()
        assert np.abs(got - reduce(plane, size[::-1])).max() <= 1


@pytest.mark.parametrize(("shape", "cells"), [((720, 1280), 240), ((480, 854), 240), ((1080, 1920), 240)])
def test_means(shape, cells):
    plane = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 256, shape, np.uint8), (9, 9), 0)
    grid = Grid.over(shape[1], shape[0], cells, even=True)
    got = gpu_ops.Ops("cpu").means(torch.from_numpy(plane).float(), grid.scale).numpy()
    assert got.shape == grid.shape
    apart = np.abs(got - grid.means(plane))
    assert apart[:-1, :-1].max() <= 1
    assert apart.max() <= 12  # cells that hang over are weighted a little otherwise


@pytest.mark.parametrize("side", [3, 5, 17])
def test_blurs(side):
    ops, x = gpu_ops.Ops("cpu"), np.random.default_rng(2).random((33, 40), np.float32)
    got = ops.apply(torch.from_numpy(x), ops.blur(x.shape, side)).numpy()
    np.testing.assert_allclose(got, cv2.blur(x, (side, side)), atol=1e-5)
    pair = ops.pair(*(gpu_ops.gaussian(n, 2, mirror="symmetric") for n in x.shape))
    wanted = cv2.GaussianBlur(x, (0, 0), 2, borderType=cv2.BORDER_REFLECT)
    np.testing.assert_allclose(ops.apply(torch.from_numpy(x), pair).numpy(), wanted, atol=1e-5)
    big = ops.enlarged(torch.from_numpy(x)[None], 3, 98, 119)[0].numpy()
    np.testing.assert_allclose(big, cv2.resize(x, (120, 99))[:98, :119], atol=1e-5)


# ---- on a GPU


@needs_torch_cuda
@pytest.mark.parametrize("size", [(1280, 720), (1920, 1080), (3840, 2160)])
@pytest.mark.parametrize("lookahead", [0, 2])
def test_on_a_gpu(size, lookahead):
    info, frames = pictures(size, 8)
    refinement = Refinement(lookahead=lookahead)
    compare(by_cpu(info, frames, refinement), by_gpu(info, frames, refinement, device="cuda"))


@pytest.mark.parametrize(
    "name",
    [pytest.param("torch", marks=needs_torch_cuda), pytest.param("tensorrt", marks=[needs_torch_cuda, needs_tensorrt])],
)
def test_on_a_gpu_in_half_and_captured(name, caplog):
    engine = load(MODEL, engine=name, device="cuda")
    info, frames = pictures((1280, 720), 8)
    lent = Lent(engine, nearest_size(engine.spec.sizes, *info.shown_size))
    path = GpuFrames(lent, engine.spec.sizes, info, device=lent.device, blur=0.5, renewed=lent.renewed)
    with caplog.at_level(logging.INFO):
        done = [d for f in frames for d in path.push(f)] + path.flush()
    assert path._graph is not None, caplog.text
    compare(by_cpu(info, frames, Refinement(), blur=0.5), done)
