"""The compiled graphs beside their formulas in plain NumPy."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from rtbg.errors import MattingError
from rtbg.fused import Fused, followed, margin, painted

COUNT = 300  # rows: more than go through at once where cells are large


def enlarged(nine: np.ndarray, high: int, wide: int) -> np.ndarray:
    """As OpenCV enlarges three by three cells, the one in the middle."""
    big = [cv2.resize(n.reshape(3, 3), (3 * wide, 3 * high), interpolation=cv2.INTER_LINEAR) for n in nine]
    return np.stack(big)[:, high : 2 * high, wide : 2 * wide]


@pytest.mark.parametrize("top", [255, 1023])
@pytest.mark.parametrize("side", [2, 6, 8, 12, 24])
@pytest.mark.parametrize("past", [True, False])
def test_followed(side, top, past):
    rng = np.random.default_rng(3)
    wide = side + 2 * margin(side)
    luma = rng.integers(0, top + 1, (COUNT, side + 4, wide)).astype(np.uint8 if top < 256 else np.uint16)
    alpha, before = rng.integers(0, 256, (2, COUNT, side, side)).astype(np.uint8)
    rise, base = rng.normal(0, 0.5, (COUNT, 9)) * 255 / top, rng.normal(0, 30, (COUNT, 9))
    alpha[0], rise[0], base[0] = 255, 0, 0  # nothing is to be done
    binomial = np.array([1, 4, 6, 4, 1], np.float32) / 16
    calm = np.stack([cv2.sepFilter2D(p.astype(np.float32), -1, binomial, binomial) for p in luma])
    calm = calm[:, 2:-2, margin(side) : -margin(side)]
    rise, base = rise.astype(np.float32), base.astype(np.float32)
    want = np.clip(alpha + enlarged(rise, side, side) * calm + enlarged(base, side, side), 0, 255)
    before[1:] = np.clip(np.rint(want)[1:] + rng.integers(-3, 4, want[1:].shape), 0, 255)
    made = np.empty((COUNT, side * side), np.uint8)
    found = [np.empty((COUNT, 1), np.float32) for _ in range(3)]
    flat = [a.reshape(COUNT, -1) for a in (luma, alpha, rise, base, before)]
    Fused(followed, side, top, past, 1)(flat if past else flat[:4], [made, *found])
    made = made.reshape(want.shape).astype(int)
    new = np.rint(want)
    if past:
        new = np.where((np.abs(before - new) <= 1) & (new > 0) & (new < 255), before, new)
    differs = np.abs(made - new)
    sure = np.abs(want - np.floor(want) - 0.5) > 0.01  # a half may be rounded either way, and then be held or not
    assert differs[sure].max() == 0
    assert differs.max() <= 2
    np.testing.assert_array_equal(made[0], alpha[0])
    for values, reduce in zip(found, (np.min, np.max, np.mean), strict=True):
        np.testing.assert_allclose(values[:, 0], reduce(made.reshape(COUNT, -1), axis=1), rtol=1e-5)


@pytest.mark.parametrize("chroma", [(1, 1), (2, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("top", [255, 1023])
@pytest.mark.parametrize(("own", "behind"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("side", [2, 8, 12])
def test_painted(side, own, behind, top, chroma):
    rng = np.random.default_rng(5)
    code, beside = np.uint8 if top < 256 else np.uint16, margin(side)
    wide = rng.integers(0, 256, (COUNT, side, side + 2 * beside)).astype(np.uint8)
    wide[0], wide[1] = 0, 255
    alpha = np.ascontiguousarray(wide[:, :, beside:-beside])
    given, want = [alpha if chroma == (1, 1) else wide], []
    for plane in range(3):
        x, y = (1, 1) if plane == 0 else chroma
        shape = COUNT, side // y, side // x
        picture, back = rng.integers(0, top + 1, (2, *shape)).astype(code)
        person, apart = rng.uniform(0, top, (2, COUNT, 9)).astype(np.float32)
        apart -= top / 2
        given += [picture] + [back] * behind + [person, apart] * own
        if plane == 0 or chroma == (1, 1):
            weight = mean = alpha / 255
        else:
            rows = wide.astype(np.float32).reshape(COUNT, side // y, y, -1).mean(2)
            mean = rows[:, :, beside:-beside].reshape(COUNT, side // y, -1, x).mean(3) / 255
            inner = rows[:, :, beside:-beside]
            if x == 2:  # left-sited, as `color.subsample` has it: [1 2 1] around the even samples
                beyond = rows[:, :, beside - 1 : -beside - 1], rows[:, :, beside + 1 : rows.shape[2] - beside + 1]
                inner = (beyond[0] + 2 * inner + beyond[1])[:, :, ::2] / 4
            weight = inner / 255
        colour = picture.astype(np.float64)
        if own:
            change = enlarged(person, *shape[1:]) - picture + mean * enlarged(apart, *shape[1:])
            colour = np.clip(picture + (1 - mean) * (weight > 0) * change, 0, top)
        want.append(weight * colour + (1 - weight) * back if behind else colour)
    out = [np.empty((COUNT, w[0].size), code) for w in want]
    Fused(painted, side, chroma, top, own, behind)([g.reshape(COUNT, -1) for g in given], out)
    for made, exact in zip(out, want, strict=True):
        assert np.abs(made - exact.reshape(COUNT, -1)).max() <= 0.52
    if behind:  # nobody: what is behind, exactly; nobody else: the camera's
        for k, made in enumerate(out):
            at = 1 + k * (2 + 2 * own)
            np.testing.assert_array_equal(made[0], given[at + 1][0].ravel())
            np.testing.assert_array_equal(made[1], given[at][1].ravel())


def test_rows_have_nothing_to_do_with_one_another():
    """Any number of rows, none too, gives what each alone gives."""
    rng = np.random.default_rng(6)
    fused = Fused(painted, 24, (1, 1), 255, False, True)
    given = [rng.integers(0, 256, (130, 24 * 24)).astype(np.uint8) for _ in range(7)]
    whole = [np.empty_like(given[0]) for _ in range(3)]
    fused(given, whole)
    for some in (slice(0, 0), slice(0, 1), slice(57, 130)):
        parts = [np.empty_like(g[some]) for g in given[:3]]
        fused([np.ascontiguousarray(g[some]) for g in given], parts)
        for a, b in zip(parts, whole, strict=True):
            np.testing.assert_array_equal(a, b[some])


def test_two_threads_share_nothing_but_the_code():
    rng = np.random.default_rng(7)
    given = [[rng.integers(0, 256, (400, 64)).astype(np.uint8) for _ in range(7)] for _ in range(2)]
    want, failed = [], []
    for one in given:
        want.append([np.empty_like(one[0]) for _ in range(3)])
        Fused(painted, 8, (1, 1), 255, False, True)(one, want[-1])

    def work(k: int) -> None:
        fused, out = Fused(painted, 8, (1, 1), 255, False, True), [np.empty_like(given[k][0]) for _ in range(3)]
        for _ in range(100):
            fused(given[k], out)
            if any((a != b).any() for a, b in zip(out, want[k], strict=True)):
                failed.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_importing_it_imports_no_library():
    code = "import sys, rtbg.fused; print('openvino' in sys.modules)"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_without_openvino_it_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MattingError, match="pip install openvino"):
        Fused(painted, 10, (1, 1), 255, False, True)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_no_threads_of_its_own():
    before = {task.name for task in Path("/proc/self/task").iterdir()}
    graphs = [Fused(painted, side, (2, 2), 255, True, True) for side in (14, 16, 18)]
    assert {task.name for task in Path("/proc/self/task").iterdir()} <= before, f"threads of {graphs}"
