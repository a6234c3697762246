"""The temporal state around the network: what it is fed, and when its past is forgotten."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import rtbg
from engines import available_models, load
from rtbg.color import planes_to_rgb, rgb_to_planes
from rtbg.composite import composite
from rtbg.frame import BT709, FULL, Color, Frame, StreamInfo
from rtbg.matting import GAP, RAW, Matting, Refinement
from rtbg.upsampling import Edge

COLOR = Color(BT709, FULL)


class Recorder:
    """An engine that keeps its inputs and answers the red channel."""

    device = "recorder"

    def __init__(self, sizes: tuple[tuple[int, int], ...] = ((64, 48), (48, 64))) -> None:
        self.spec = SimpleNamespace(sizes=sizes)
        self.inputs: list[np.ndarray] = []

    def infer(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.inputs.append(inputs["frame"].copy())
        return {"alpha": np.ascontiguousarray(inputs["frame"][:, :1])}

    def close(self) -> None: ...


def frame(rgb: np.ndarray, pts: int = 0) -> Frame:
    planes = rgb_to_planes(rgb, COLOR, height=rgb.shape[0], bits=8, chroma=(1, 1))
    return Frame(planes, pts, Fraction(1, 25), COLOR)


def info(width: int, height: int, **more: object) -> StreamInfo:
    return StreamInfo(width, height, Fraction(1, 25), Fraction(25), COLOR, chroma=(1, 1), **more)  # type: ignore[arg-type]


def red(width: int, height: int, level: int = 200) -> np.ndarray:
    """Black with a red upper left quarter."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[: height // 2, : width // 2, 0] = level
    return rgb


def test_past_is_the_raw_matte_of_the_frame_before() -> None:
    engine = Recorder()
    matting = Matting(engine, info(128, 96))  # type: ignore[arg-type]
    for k in range(3):
        matting.push(frame(red(128, 96, 150 + k), k))
    assert not engine.inputs[0][0, 3].any()
    np.testing.assert_array_equal(engine.inputs[1][0, 3], engine.inputs[0][0, 0])
    np.testing.assert_array_equal(engine.inputs[2][0, 3], engine.inputs[1][0, 0])


@pytest.mark.parametrize("light", [1.0, 0.5, 0.25])
def test_a_cut_is_one_in_any_light(light: float) -> None:
    """And a step of the light, by a tenth or of a whole screen, or noise in the dark, is none."""
    rng = np.random.default_rng(5)
    scenes = [cv2.resize(rng.random((6, 8)), (256, 144)) * 160 * light + 30 * light for _ in range(2)]
    first, second = (np.repeat(s[..., None], 3, 2).astype(np.uint8) for s in scenes)
    brighter = np.clip(first * 1.1, 0, 255).astype(np.uint8)
    lit = np.clip(first.astype(int) + 12, 0, 255).astype(np.uint8)
    grainy = np.clip(first + rng.normal(0, 4, first.shape), 0, 255).astype(np.uint8)
    recorder = Recorder()
    matting = Matting(recorder, info(256, 144))  # type: ignore[arg-type]
    fresh = []
    for pts, rgb in enumerate((first, brighter, grainy, lit, first, second)):
        matting.push(frame(rgb, pts))
        fresh.append(not recorder.inputs[-1][0, 3].any())
    assert fresh == [True, False, False, False, False, True]


@pytest.mark.parametrize("why", ["cut", "gap", "backwards", "reset"])
def test_past_is_forgotten(why: str) -> None:
    engine = Recorder()
    matting = Matting(engine, info(128, 96))  # type: ignore[arg-type]
    matting.push(frame(red(128, 96), 100))
    following = {"gap": 101 + int(25 * GAP), "backwards": 90}.get(why, 101)
    if why == "reset":
        matting.reset()
    rgb = np.full((96, 128, 3), 180, np.uint8) if why == "cut" else red(128, 96)
    matting.push(frame(rgb, following))
    assert not engine.inputs[1][0, 3].any()


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_the_network_sees_the_picture_upright(rotation: int) -> None:
    """A stored picture that a player turns by `rotation` counter-clockwise: the network gets it turned, and the
    matte comes back in the stored orientation."""
    stored = red(96, 128)
    engine = Recorder()
    matting = Matting(engine, info(96, 128, rotation=rotation))  # type: ignore[arg-type]
    ((_, alpha),) = matting.push(frame(stored))
    upright = np.rot90(stored[..., 0], rotation // 90)
    seen = engine.inputs[0][0, 0]
    assert (seen.shape[0] > seen.shape[1]) == (upright.shape[0] > upright.shape[1])
    expected = cv2.resize(np.ascontiguousarray(upright), (seen.shape[1], seen.shape[0]), interpolation=cv2.INTER_AREA)
    assert np.abs(seen - expected / 255).max() < 0.02
    assert alpha.shape == (128, 96) and alpha.dtype == np.uint8
    assert alpha[10, 10] > 190 and alpha[-10, 10] < 5 and alpha[10, -10] < 5


def test_anamorphic_pictures_are_seen_with_square_pixels() -> None:
    engine = Recorder(((64, 48), (96, 48)))
    Matting(engine, info(96, 96, sample_aspect=Fraction(2))).push(frame(red(96, 96)))  # type: ignore[arg-type]
    assert engine.inputs[0].shape[2:] == (48, 96)


@pytest.mark.parametrize("model", available_models())
def test_the_shipped_model_finds_the_portrait(model: str) -> None:
    """The real network on a real portrait: the astronaut is there, the wall is not her."""
    from skimage.data import astronaut

    alpha = rtbg.matte(astronaut(), model=model)
    assert alpha.shape == (512, 512) and alpha.dtype == np.float32
    assert alpha.min() >= 0 and alpha.max() <= 1
    assert alpha[60:180, 190:260].mean() > 0.95, "face and hair"
    assert alpha[330:500, 120:270].mean() > 0.95, "suit"
    assert alpha[:200, 312:345].mean() < 0.1, "wall beside the head"
    assert alpha[:200, 475:].mean() < 0.1, "wall on the right"


@pytest.mark.parametrize("model", available_models())
def test_a_still_repeated_does_not_drift(model: str) -> None:
    from skimage.data import astronaut

    rgb = cv2.resize(astronaut(), (320, 320), interpolation=cv2.INTER_AREA)
    engine = load(model)
    matting = Matting(engine, info(320, 320))
    mattes = []
    for k in range(100):
        ((_, alpha),) = matting.push(frame(rgb, k))
        mattes.append(alpha.astype(int))
    engine.close()
    # The first frames settle what one picture leaves open; after that nothing may move.
    assert np.abs(mattes[20] - mattes[99]).mean() < 255 * 0.01
    # What was clear at first stays as it was.
    sure = (mattes[0] < 12) | (mattes[0] > 243)
    assert sure.mean() > 0.5
    assert np.abs(mattes[0] - mattes[99])[sure].mean() < 255 * 0.02


def test_matte_refuses_other_arrays() -> None:
    for bad in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), [[0]]):
        with pytest.raises(ValueError, match="picture"):
            rtbg.matte(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("lookahead", [0, 3])
def test_frames_come_out_once_in_order_with_their_own_matte(lookahead: int) -> None:
    engine = Recorder()
    matting = Matting(engine, info(128, 96), Refinement(lookahead=lookahead))  # type: ignore[arg-type]
    out = []
    for k in range(12):
        rgb = red(128, 96) if k < 6 else np.ascontiguousarray(red(128, 96)[::-1, ::-1])  # a cut at 6
        out += matting.push(frame(rgb, k))
        assert len(out) >= k + 1 - lookahead
        if k == 6:
            assert len(out) >= 6, "nothing waits across a cut"
    out += matting.flush()
    assert [f.pts for f, _ in out] == list(range(12))
    for f, alpha in out:
        here, there = alpha[10:30, 10:40].mean(), alpha[-30:-10, -40:-10].mean()
        assert (here > 150 > 60 > there) if f.pts < 6 else (there > 150 > 60 > here), f.pts


def test_a_picture_is_looked_at_closely() -> None:
    """Two sizes, each with its mirror image, twice; the second time the past is the mean of what was seen first. What
    the recorders answer, the red channel, is the same each time: so is the matte."""
    large, small = Recorder(((128, 96),)), Recorder(((64, 48),))
    matting = Matting(large, info(256, 192), RAW, [large, small])  # type: ignore[arg-type, list-item]
    for pts, rgb in enumerate((red(256, 192), red(256, 192)[:, ::-1])):
        large.inputs.clear()
        small.inputs.clear()
        ((_, alpha),) = matting.push(frame(np.ascontiguousarray(rgb), pts))
        for inputs in (large.inputs, small.inputs):
            assert len(inputs) == 4
            for plain, mirrored in (inputs[:2], inputs[2:]):
                np.testing.assert_array_equal(mirrored, plain[..., ::-1])
            assert not inputs[0][0, 3].any() and not inputs[1][0, 3].any(), "no past at first"
            np.testing.assert_array_equal(inputs[2][0, :3], inputs[0][0, :3])
            np.testing.assert_allclose(inputs[2][0, 3], inputs[0][0, 0], atol=0.5 if inputs is large.inputs else 0.1)
            assert np.abs(inputs[2][0, 3] - inputs[0][0, 0]).mean() < 0.01
        assert np.abs(alpha.astype(int) - rgb[..., 0]).mean() < 3 and alpha.max() > 190


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_turned_picture_is_looked_at_upright_and_comes_back_as_it_lies(rotation: int) -> None:
    stored = red(96, 128)
    engines = [Recorder(((128, 96), (96, 128))), Recorder()]
    matting = Matting(engines[0], info(96, 128, rotation=rotation), RAW, engines)  # type: ignore[arg-type]
    ((_, alpha),) = matting.push(frame(stored))
    upright = np.rot90(stored[..., 0], rotation // 90)
    for engine in engines:
        height, width = engine.inputs[0].shape[2:]
        assert (height > width) == (upright.shape[0] > upright.shape[1])
        expected = cv2.resize(np.ascontiguousarray(upright), (width, height), interpolation=cv2.INTER_AREA)
        assert np.abs(engine.inputs[2][0, 3] * 255 - expected).mean() < 3
    assert alpha[10, 10] > 190 and alpha[-10, 10] < 5 and alpha[10, -10] < 5


def test_a_photograph_gets_the_closer_look_and_matte_can_do_without(tmp_path: Path) -> None:
    from skimage.data import astronaut

    rgb = astronaut()
    closely, once = rtbg.matte(rgb), rtbg.matte(rgb, closely=False)
    assert np.array_equal(closely, rtbg.matte(rgb)), "no state is left"
    assert np.array_equal(closely, rtbg.matte(rgb, model="quality")), "both look, whichever is named"
    assert 0 < np.abs(closely - once).mean() < 0.1, "her helmet at most, which one of the two sees"
    between = cv2.morphologyEx(((closely > 0.2) & (closely < 0.8)).astype(np.uint8), cv2.MORPH_OPEN, np.ones((15, 15)))
    assert between.mean() < 0.03, "hardly anything is half there (her helmet, 0.088 of the picture, without that rule)"
    cv2.imwrite(str(tmp_path / "photo.png"), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    rtbg.replace_background(tmp_path / "photo.png", tmp_path / "cut.png", background="transparent")
    alpha = cv2.imread(str(tmp_path / "cut.png"), cv2.IMREAD_UNCHANGED)[..., 3] / 255
    assert np.abs(alpha - closely).max() < 0.02


def test_refinement_calms_a_noisy_edge() -> None:
    """Frames of one scene with noise in what the engine answers: the refined mattes differ less from one another."""
    rng = np.random.default_rng(0)
    frames = [
        frame(np.clip(red(128, 96).astype(int) + rng.normal(0, 12, (96, 128, 3)), 0, 255).astype(np.uint8), k)
        for k in range(20)
    ]
    flicker = {}
    for name, refinement in {"raw": RAW, "refined": Refinement(lookahead=2)}.items():
        matting = Matting(Recorder(), info(128, 96), refinement)  # type: ignore[arg-type]
        mattes = [a.astype(int) for f in frames for _, a in matting.push(f)]
        mattes += [a.astype(int) for _, a in matting.flush()]
        flicker[name] = np.mean([np.abs(a - b).mean() for a, b in pairwise(mattes[5:])])
    assert flicker["refined"] < 0.5 * flicker["raw"]


@pytest.mark.parametrize("edge", [Edge(shift=15), Edge(shift=15, feather=10)], ids=str)
def test_a_grown_edge_shows_nothing_of_the_room(edge: Edge) -> None:
    """A red person before a blue wall, grown and put over green: red and green, and no blue."""
    rgb = np.zeros((480, 640, 3), np.uint8)
    rgb[..., 2] = 200
    rgb[200:, 200:440] = 255, 0, 0
    given = frame(rgb)
    for refinement in (Refinement(edge=edge), Refinement(edge=edge, lookahead=1)):
        matting = Matting(Recorder(), info(640, 480), refinement)  # type: ignore[arg-type]
        ((taken, alpha),) = [*matting.push(given), *matting.flush()]
        assert taken.pts == given.pts and taken.color == given.color
        assert (alpha > 250).sum() > 1.02 * (rgb[..., 0] == 255).sum(), "it has grown"
        green = rgb_to_planes(np.full_like(rgb, (0, 255, 0)), COLOR, height=480, bits=8, chroma=(1, 1))
        made = planes_to_rgb(composite(taken, alpha, green).planes, COLOR)
        assert made[..., 2].max() < 60
        plain = planes_to_rgb(composite(given, alpha, green).planes, COLOR)
        assert plain[..., 2].max() > 150, "which the camera's own picture would not have given"


def test_a_plain_edge_gives_the_frame_itself() -> None:
    given = frame(red(128, 96))
    matting = Matting(Recorder(), info(128, 96), Refinement(edge=Edge()))  # type: ignore[arg-type]
    assert matting.push(given)[0][0] is given


def test_haze_goes_with_the_islands() -> None:
    haze = np.full((96, 128, 3), (20, 0, 0), np.uint8)
    haze[30:60, 40:80] = 255, 0, 0
    for islands, low in ((True, 0), (False, 20)):
        matting = Matting(Recorder(), info(128, 96), Refinement(islands=islands, guided=False))  # type: ignore[arg-type]
        alpha = matting.push(frame(haze))[0][1]
        assert abs(int(alpha[5, 5]) - low) <= 2 and alpha[45, 60] > 250
