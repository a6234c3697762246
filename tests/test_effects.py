"""What training does to pictures: the matte must stay true to what is then to be seen."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'rtbg[train]'")

import cv2

from training import effects

U8 = npt.NDArray[np.uint8]
WALL, SKIN = (40, 160, 60), (200, 120, 90)


def portrait(width: int = 160, height: int = 120, head: int = 22) -> tuple[U8, U8]:
    """A head on shoulders that leave the frame below, before a plain wall: RGB, matte."""
    alpha = np.zeros((height, width), np.uint8)
    cv2.ellipse(alpha, (width // 2, 40), (head, round(head * 1.35)), 0, 0, 360, 255, -1)
    cv2.ellipse(alpha, (width // 2, height + 5), (55, 50), 0, 180, 360, 255, -1)
    rgb = np.where(alpha[..., None] > 0, np.uint8(SKIN), np.uint8(WALL))
    return rgb, alpha


def brick() -> U8:
    """A texture unlike wall and person: blue."""
    return np.full((120, 160, 3), (10, 20, 250), np.uint8)


def changed(a: U8, b: U8) -> npt.NDArray[np.bool_]:
    return np.asarray(np.abs(a.astype(int) - b).max(2) > 12)


def test_what_stands_behind_never_covers_the_person() -> None:
    rgb, alpha = portrait()
    seen = [effects.behind(np.random.default_rng(k), rgb, alpha, brick) for k in range(20)]
    assert all((out[alpha == 255] == rgb[alpha == 255]).all() for out in seen)
    assert sum(changed(out, rgb).any() for out in seen) > 10


def test_what_stands_before_is_cut_out_of_the_matte() -> None:
    rgb, alpha = portrait()
    cut = worn = 0
    for k in range(80):
        out, left = effects.before(np.random.default_rng(k), rgb, alpha, brick)
        assert (left <= alpha).all() and left.sum() >= 0.5 * alpha.sum()
        thing = changed(out, rgb)
        if left is alpha and thing.any():
            assert (alpha[cv2.dilate(thing.astype(np.uint8), np.ones((3, 3))) > 0] == 255).all(), "all around it"
            worn += 1
            continue
        hidden = (alpha == 255) & (left < 5)
        assert thing[hidden].mean() > 0.9 if hidden.any() else True, "something else is to be seen there"
        assert not thing[left == 255].any(), "where the matte is whole the person is to be seen"
        cut += bool(hidden.any())
    assert cut > 30 and worn > 2


def test_what_would_hide_too_much_is_left_away() -> None:
    alpha = np.zeros((120, 160), np.uint8)
    alpha[58:62, 78:82] = 255
    rgb = np.full((120, 160, 3), 90, np.uint8)
    for k in range(30):
        assert effects.before(np.random.default_rng(k), rgb, alpha, brick)[1].sum() >= 0.5 * alpha.sum()


@pytest.mark.parametrize("head", [14, 22, 27])
def test_a_head_is_found(head: int) -> None:
    _, alpha = portrait(head=head)
    found = effects.find_head(alpha)
    assert found is not None
    top, ear, left, right = found
    assert top == pytest.approx(40 - head * 1.35, abs=2)
    assert abs(ear - 40) < 0.35 * head, "at the height of its middle"
    assert right - left == pytest.approx(2 * head, rel=0.1) and left + right == pytest.approx(160, abs=3)


def test_no_head_where_none_is_whole() -> None:
    rgb, alpha = portrait()
    for cut in (alpha[40:], alpha[:, 80:], np.zeros_like(alpha)):
        cut = np.ascontiguousarray(cut)
        assert effects.find_head(cut) is None
        picture = np.ascontiguousarray(rgb[: cut.shape[0], : cut.shape[1]])
        same = effects.headphones(np.random.default_rng(0), picture, cut)
        assert same[0] is picture and same[1] is cut


def test_headphones_belong_to_the_person() -> None:
    rgb, alpha = portrait()
    for k in range(10):
        out, worn = effects.headphones(np.random.default_rng(k), rgb, alpha)
        assert (worn >= alpha).all() and worn.sum() > 1.03 * alpha.sum()
        assert not changed(out, rgb)[worn == 0].any(), "nothing of them outside the matte"
        assert changed(out, rgb)[(worn > 250) & (alpha == 0)].mean() > 0.9, (
            "and what the matte has gained is to be seen"
        )
        band = worn[: 40 - round(22 * 1.35), 70:90]
        assert (band > 200).any(), "a band above the head"


def test_backlight_darkens_people_and_brightens_the_rest() -> None:
    rgb, alpha = portrait()
    for k in range(10):
        out = effects.backlight(np.random.default_rng(k), rgb, alpha)
        wall, skin = out[5:20, 5:20].mean(), out[95:115, 70:90].mean()
        assert wall > rgb[5:20, 5:20].mean() + 5 and skin < rgb[95:115, 70:90].mean() * 0.9


@pytest.mark.parametrize("wall,opacity", [(WALL, 255), ((250, 3, 3), 255), (WALL, 250)])
def test_dusk_leaves_the_head_lighter_than_wall_and_clothes(wall: tuple[int, int, int], opacity: int) -> None:
    rgb, alpha = portrait()
    rgb[alpha == 0] = wall
    alpha = np.minimum(alpha, np.uint8(opacity))
    for k in range(10):
        out = effects.dusk(np.random.default_rng(k), rgb, alpha).astype(int)
        assert np.dot(out[5:20, 5:20].mean((0, 1)), (0.299, 0.587, 0.114)) < 42
        assert out[112:118, 60:100].mean() < 0.45 * rgb[112:118, 60:100].mean()
        assert out[14:60, 78:82].mean() > 0.9 * rgb[14:60, 78:82].mean(), "the whole head"


@pytest.mark.parametrize("size", [(160, 120), (90, 180)])
def test_the_lens_bends_picture_and_matte_alike(size: tuple[int, int]) -> None:
    rgb, alpha = portrait(*size)
    bent = 0
    for k in range(20):
        out, matte = effects.wide_angle(np.random.default_rng(k), rgb, alpha)
        person = np.abs(out.astype(int) - SKIN).max(2) < 40
        inside, outside = cv2.erode(matte, np.ones((3, 3))) > 250, cv2.dilate(matte, np.ones((3, 3))) < 5
        assert person[inside].all() and not person[outside].any()
        bent += (matte != alpha).any()
        grown = matte.sum() / alpha.sum()
        assert 0.7 < grown < 1.6, "a lens, no mirror cabinet"
    assert bent > 14


@pytest.mark.parametrize("size", [(160, 80), (80, 160), (100, 100)])
def test_the_lens_never_folds(size: tuple[int, int]) -> None:
    width, height = size
    ramp = np.linspace(0, 255, height)[:, None, None] * np.ones((1, width, 3))
    for k in range(20):
        out, _ = effects.wide_angle(
            np.random.default_rng(k), ramp.astype(np.uint8), np.zeros((height, width), np.uint8)
        )
        assert (np.diff(out[2:-2, :, 0].astype(int), axis=0) >= 0).all(), "what was above stays above"


def test_the_camera_changes_every_picture_and_keeps_its_shape() -> None:
    rgb, _ = portrait()
    for k in range(20):
        out = effects.degrade(np.random.default_rng(k), rgb)
        assert out.shape == rgb.shape and out.dtype == np.uint8 and (out != rgb).any()
