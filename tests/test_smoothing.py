"""rtbg.smoothing and rtbg.islands: still edges are calm, moving ones do not trail, at any frame rate."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest

from rtbg.islands import HAZE, Islands, _all_large, without_haze
from rtbg.smoothing import GAP, Smoother, TwoSided

SIZE = (90, 160)


def scene(edge: float, rng: np.random.Generator | None = None, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(matte, grey): a bright person left of a vertical edge, at a fraction of a pixel where asked."""
    x = np.arange(SIZE[1], dtype=np.float32)
    matte = np.repeat(np.clip(edge - x, 0, 1)[None], SIZE[0], axis=0)
    texture = 12 * np.sin(x / 3) + 8 * np.cos(x / 1.7)
    grey = 60 + 110 * matte + np.where(matte > 0.5, texture, 0.5 * texture)
    if rng is not None:
        wobble = cv2.GaussianBlur(rng.normal(0, 1, SIZE).astype(np.float32), (0, 0), 1.5)
        band = (np.abs(x - edge) < 3).astype(np.float32)
        matte = np.clip(matte + noise * band * wobble / wobble.std(), 0, 1)
        grey = grey + rng.normal(0, 1, SIZE)
    return matte.astype(np.float32), np.clip(grey, 0, 255).astype(np.uint8)


def changes(mattes: list[np.ndarray]) -> float:
    return float(np.mean([np.abs(a - b).mean() for a, b in pairwise(mattes)]))


def test_a_still_edge_is_calm_under_noise() -> None:
    rng, smoother = np.random.default_rng(0), Smoother(0.5)
    raw, smooth = [], []
    for k in range(60):
        matte, grey = scene(80.4, rng, 0.06)
        raw.append(matte)
        smooth.append(smoother.push(matte, grey, k / 30))
    assert changes(smooth[20:]) < 0.35 * changes(raw[20:])
    soft = np.s_[:, 80]  # where noise is not cut off at 0 or 1
    clean, _ = scene(80.4)
    errors = [np.abs(m[-1][soft] - clean[soft]).mean() for m in (raw, smooth)]
    assert errors[1] < 0.5 * errors[0], "nearer the truth, too"


@pytest.mark.parametrize(("step", "followed"), [(0.35, (0.9, 1.0)), (0.08, (0.05, 0.15))])
def test_small_disagreement_is_noise_and_a_large_one_an_error(step: float, followed: tuple[float, float]) -> None:
    """How much of a step of the matte is taken over at once where the picture stands still."""
    smoother, grey = Smoother(0.5), np.full(SIZE, 90, np.uint8)
    for k in range(60):
        smoother.push(np.full(SIZE, 0.4, np.float32), grey, k / 30)
    out = smoother.push(np.full(SIZE, 0.4 + step, np.float32), grey, 2.0)
    assert followed[0] < float(out.mean() - 0.4) / step < followed[1]


def test_stronger_is_calmer() -> None:
    def left(strength: float) -> float:
        rng, smoother = np.random.default_rng(1), Smoother(strength)
        out = [smoother.push(*scene(80.4, rng, 0.03), k / 30) for k in range(90)]
        return changes(out[45:])

    found = [left(s) for s in (0, 0.2, 0.5, 1)]
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("rate", [15, 30, 60])
@pytest.mark.parametrize("speed", [60, 240])
def test_a_moving_edge_does_not_trail(rate: int, speed: float) -> None:
    """At pixels of the small matte a second: nothing of where the person was half a tenth of a second ago."""
    rng, smoother = np.random.default_rng(2), Smoother(0.5)
    for k in range(rate):
        smoother.push(*scene(30, rng, 0.02), k / rate)
    edge, moved, worst = 30.0, 0, 0.0
    while edge < 130:
        moved += 1
        edge = 30 + speed * moved / rate
        matte, grey = scene(edge, rng)
        worst = max(
            worst, float(np.abs(smoother.push(matte, grey, 1 + moved / rate) - matte)[10:-10].mean(axis=0).max())
        )
    assert worst < 0.1


def test_frame_rates_agree() -> None:
    """The same second of a held object appearing, at 15, 30 and 60 pictures a second, ends alike at every moment."""

    def run(rate: int) -> list[float]:
        smoother, seen = Smoother(0.5), []
        for k in range(2 * rate):
            t = k / rate
            matte, grey = scene(80)
            if t >= 1:
                matte[30:50, 100:120] = 0.12  # a weak disagreement without any change in the picture
            out = smoother.push(matte, grey, t)
            if k % (rate // 15) == 0:
                seen.append(float(out[40, 110]))
        return seen

    slow, middle, fast = run(15), run(30), run(60)
    assert 0.02 < slow[17] < 0.11, "on its way two pictures later"
    np.testing.assert_allclose(slow, middle, atol=0.02)
    np.testing.assert_allclose(middle, fast, atol=0.02)


def test_strength_0_changes_nothing() -> None:
    smoother, rng = Smoother(0), np.random.default_rng(3)
    for k in range(5):
        matte, grey = scene(80, rng, 0.1)
        np.testing.assert_array_equal(smoother.push(matte, grey, k / 30), matte)


@pytest.mark.parametrize("why", ["reset", "gap", "backwards", "size"])
def test_the_past_is_forgotten(why: str) -> None:
    smoother, rng = Smoother(1), np.random.default_rng(4)
    for k in range(30):
        smoother.push(*scene(80, rng, 0.05), k / 30)
    matte, grey = scene(80, rng, 0.1)
    if why == "reset":
        smoother.reset()
    if why == "size":
        matte, grey = matte[:40].copy(), grey[:40].copy()
    seconds = {"gap": 1 + GAP, "backwards": 0.5}.get(why, 1.0)
    np.testing.assert_array_equal(smoother.push(matte, grey, seconds), matte)


def test_its_answers_are_the_callers() -> None:
    smoother = Smoother(0.5)
    first = smoother.push(*scene(80), 0.0)
    kept = first.copy()
    first[:] = 7
    np.testing.assert_allclose(smoother.push(*scene(80), 1 / 30), kept, atol=1e-6)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_refuses_other_strengths(strength: float) -> None:
    with pytest.raises(ValueError, match="0 to 1"):
        Smoother(strength)


def test_refuses_other_arrays() -> None:
    matte, grey = scene(80)
    for bad in ((matte.astype(np.float64), grey), (matte, grey[:10]), (matte, matte)):
        with pytest.raises(ValueError, match="float32 matte"):
            Smoother().push(*bad, 0.0)
    with pytest.raises(ValueError, match="look-ahead"):
        TwoSided(0.5, -1)


def run_two_sided(lookahead: int, frames: int = 60) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(5)
    two: TwoSided[int] = TwoSided(0.5, lookahead)
    raw, out = [], []
    for k in range(frames):
        matte, grey = scene(80.4, rng, 0.06)
        raw.append(matte)
        out += two.push(k, matte, grey, k / 30)
        assert len(out) == max(0, k + 1 - lookahead)
    out += two.flush()
    assert [item for item, _ in out] == list(range(frames))
    return raw, [m for _, m in out]


def test_the_future_calms_the_first_pictures() -> None:
    """With nothing behind it, the first matte still has something before it."""
    raw, one = run_two_sided(0)
    _, two = run_two_sided(4)
    clean, _ = scene(80.4)
    np.testing.assert_array_equal(one[0], raw[0])
    error = [float(np.abs(m[0][:, 80] - clean[:, 80]).mean()) for m in (raw, one, two)]
    assert error[2] < 0.7 * error[1]
    assert changes(two) < changes(one)


def slow(edge: float, contrast: float, noise: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A soft edge in a noisy picture of little contrast."""
    x = np.arange(SIZE[1], dtype=np.float32)[None].repeat(SIZE[0], 0)
    matte = np.clip((edge - x) / 2 + 0.5, 0, 1)
    grey = 100 + contrast * np.clip((edge - x) / 4 + 0.5, 0, 1) + rng.normal(0, noise, x.shape)
    return matte.astype(np.float32), np.clip(grey, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("contrast", "noise", "speed"), [(20, 3, 0.5), (30, 3, 0.3), (60, 3, 0.2)])
def test_the_future_does_not_run_ahead_of_slow_movement(contrast: float, noise: float, speed: float) -> None:
    """Nor does what noise hides from one picture to the next add up."""
    rng, smoother, done = np.random.default_rng(0), TwoSided[np.ndarray](0.5, 3), []
    for k in range(90):
        matte, grey = slow(60 + speed * max(0, k - 30), contrast, noise, rng)
        done += smoother.push(matte, matte, grey, k / 30)
    ahead = [float((made - true)[10:-10].sum(1).mean()) for true, made in done[40:]]
    assert abs(np.mean(ahead)) < 0.34


def test_two_pictures_of_one_time() -> None:
    smoother, matte = TwoSided[int](0.5, 2), person()
    grey = np.full(SIZE, 90, np.uint8)
    done = [d for k, t in enumerate((0, 0, 0.03, 0.06, 0.06)) for d in smoother.push(k, matte, grey, t)]
    for _, made in done + smoother.flush():
        np.testing.assert_allclose(made, matte, atol=1e-4)


def test_the_future_does_not_run_ahead() -> None:
    two: TwoSided[float] = TwoSided(0.5, 4)
    out = []
    for k in range(40):
        edge = 30.0 if k < 20 else 30 + 4.0 * (k - 20)
        out += two.push(edge, *scene(edge), k / 30)
    out += two.flush()
    for edge, matte in out:
        truth, _ = scene(edge)
        assert np.abs(matte - truth)[10:-10].mean(axis=0).max() < 0.1


def test_a_flip_of_one_picture_is_mended() -> None:
    """A held object that the network loses for one picture: past and future outvote it."""
    two: TwoSided[int] = TwoSided(0.5, 3)
    out = []
    for k in range(40):
        matte, grey = scene(80)
        if k == 20:
            matte[30:50, 40:60] = 0
        out += two.push(k, matte, grey, k / 30)
    out += two.flush()
    assert out[20][1][40, 50] > 0.4 and out[21][1][40, 50] > 0.7


@pytest.mark.parametrize("why", ["gap", "size"])
def test_a_gap_finishes_what_waits(why: str) -> None:
    two: TwoSided[int] = TwoSided(0.5, 3)
    matte, grey = scene(80)
    assert two.push(0, matte, grey, 0.0) == [] and two.push(1, matte, grey, 0.1) == []
    if why == "size":
        matte, grey = matte[:40].copy(), grey[:40].copy()
    done = two.push(2, matte, grey, 0.2 if why == "size" else 0.2 + GAP)
    assert [k for k, _ in done] == [0, 1]
    assert [k for k, _ in two.flush()] == [2] and two.flush() == []


def person() -> np.ndarray:
    matte = np.zeros(SIZE, np.float32)
    matte[20:, 40:110] = 1
    return matte


def test_islands_and_pin_holes_go_and_nothing_else() -> None:
    matte = person()
    matte[5:7, 5:7] = 1
    matte[50, 70] = 0
    matte[60:72, 60:75] = 0  # the gap between arm and body
    matte[30:50, 130:145] = 1  # somebody further away
    out = Islands().push(matte, 0.0)
    expected = person()
    expected[60:72, 60:75], expected[30:50, 130:145] = 0, 1
    np.testing.assert_allclose(out, expected, atol=1e-6)
    clean = person()
    assert Islands().push(clean, 0.0) is clean


def test_outlines_never_hide_a_small_region() -> None:
    """Rings, specks and crowds of regions: where outlines say that all are large, labelling every pixel agrees."""
    rng, said = np.random.default_rng(0), 0
    for _ in range(400):
        mask = np.zeros((96, 160), np.uint8)
        for _ in range(int(rng.integers(0, 5))):
            centre, axes = rng.integers(0, 160, 2).tolist(), rng.integers(1, 60, 2).tolist()
            cv2.ellipse(mask, centre, axes, 0, 0, 360, 1, int(rng.choice((-1, 1, 3))))
        mask ^= (rng.random(mask.shape) < rng.choice((0, 0.001))).astype(np.uint8)
        size = float(rng.choice((20, 100, 400)))
        _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        if _all_large(mask, size):
            said += 1
            assert (stats[1:, cv2.CC_STAT_AREA] >= size).all()
    assert 40 < said < 360


def test_islands_come_and_go_without_a_step() -> None:
    """Something grows from nothing next to the person, then touches them: no pixel jumps."""
    islands, before, worst = Islands(), None, 0.0
    for k in range(90):
        matte = person()
        side = k / 4
        x = np.arange(SIZE[1], dtype=np.float32)[None]
        y = np.arange(SIZE[0], dtype=np.float32)[:, None]
        blob = np.clip(side / 2 - np.maximum(abs(x - 122), abs(y - 50)), 0, 1).astype(np.float32)
        matte = np.maximum(matte, blob)
        out = islands.push(matte, k / 30)
        if before is not None:
            grown = np.abs(matte - before[1])
            worst = max(worst, float((np.abs(out - before[0]) - grown).max()))
        before = (out, matte)
    assert worst < 0.5
    np.testing.assert_allclose(out, matte, atol=0.01)


def test_haze_goes_and_the_rest_stays_in_order() -> None:
    matte = np.linspace(0, 1, 101, dtype=np.float32)[None]
    kept = matte.copy()
    out = without_haze(matte)
    assert out.dtype == np.float32 and out[0, 0] == 0 and out[0, -1] == pytest.approx(1, abs=1e-6)
    assert not out[matte < HAZE - 1e-3].any()
    assert (np.diff(out[0][matte[0] > HAZE]) > 0).all() and float(np.abs(out - matte).max()) <= HAZE + 1e-6
    np.testing.assert_array_equal(matte, kept, "only read")
