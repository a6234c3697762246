"""Pictures and videos behind a frame of another shape: upright, undistorted, to its edges."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from background_parts import corners, flat, info_of, quarters, shown_rgb, write_png, write_video

from rtbg.backgrounds import open_background
from rtbg.backgrounds.fit import place, placed_size


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("aspect", [Fraction(1), Fraction(4, 3), Fraction(8, 9)], ids=str)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_upright_and_undistorted(tmp_path: Path, kind: str, aspect: Fraction, rotation: int) -> None:
    picture = quarters(120, 120)
    cv2.circle(picture, (60, 60), 30, (255, 255, 255), -1)
    path = tmp_path / ("bg.png" if kind == "image" else "bg.mkv")
    spec = str(write_png(path, picture) if kind == "image" else write_video(path, [picture], [0], Fraction(1, 25)))
    for stored in ((180, 120), (121, 181)):
        for fit in ("cover", "contain", "stretch"):
            info = info_of(*stored, chroma=(1, 1), rotation=rotation, sample_aspect=aspect)
            background = open_background(spec, info, fit=fit)
            rgb = cv2.resize(shown_rgb(background, info).astype(np.uint8), info.shown_size).astype(int)
            background.close()
            w, h = info.shown_size
            ys, xs = np.nonzero(rgb.min(2) > 150)
            scale = (max(w, h) if fit == "cover" else min(w, h)) / 120
            wide, tall = (w / 120, h / 120) if fit == "stretch" else (scale, scale)
            assert abs(np.ptp(xs) - 61 * wide) <= 5 and abs(np.ptp(ys) - 61 * tall) <= 5, (stored, fit)
            assert abs(xs.mean() - w / 2) <= 2.5 and abs(ys.mean() - h / 2) <= 2.5
            away = 0.35 * 120
            for color, (dx, dy) in zip(
                ((220, 30, 30), (30, 200, 30), (30, 30, 220), (220, 220, 30)),
                ((-1, -1), (1, -1), (-1, 1), (1, 1)),
                strict=True,
            ):
                x, y = round(w / 2 + dx * away * wide), round(h / 2 + dy * away * tall)
                if 3 < x < w - 3 and 3 < y < h - 3:
                    assert np.abs(rgb[y, x] - color).max() <= 8, (stored, fit, color)
            if fit == "contain":
                dark = rgb[:, :2] if w > h else rgb[:2]
                assert dark.max() <= 3


@pytest.mark.parametrize("kind", ["image", "video"])
def test_cover_and_contain_meet_the_frame(tmp_path: Path, kind: str) -> None:
    """Cover leaves no pixel without picture, contain no picture outside, in every odd combination."""
    white = flat((255, 255, 255), 37, 23)
    path = tmp_path / ("bg.png" if kind == "image" else "bg.mkv")
    spec = str(write_png(path, white) if kind == "image" else write_video(path, [white], [0], Fraction(1, 25)))
    for size in ((64, 41), (41, 64), (37, 23), (74, 46), (75, 46), (20, 99)):
        for chroma in ((2, 2), (2, 1), (1, 1)):
            info = info_of(*size, chroma=chroma)
            background = open_background(spec, info)
            assert shown_rgb(background, info).min() >= 253
            background.close()
            background = open_background(spec, info, fit="contain")
            lit = shown_rgb(background, info).min(2) > 128
            background.close()
            w, h = placed_size((37, 23), info, "contain")
            assert abs(int(lit.any(0).sum()) - w) <= 2 and abs(int(lit.any(1).sum()) - h) <= 2
            assert w == size[0] or h == size[1]


def test_fitting_is_exact_and_sharp() -> None:
    info = info_of(160, 90)
    same = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
    for fit in ("cover", "contain", "stretch"):
        assert np.array_equal(place(same, info, fit), same)
    # A checkerboard of 2 x 2 pixels is enlarged from its exact middle.
    tiny = np.array([[[0] * 3, [255] * 3], [[255] * 3, [0] * 3]], np.uint8)
    big = place(tiny, info, "cover").astype(int)
    assert np.abs(big - big[::-1, ::-1]).max() <= 2
    # Reduction averages: fine stripes become grey, not a pattern.
    stripes = np.zeros((720, 1280, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.ptp(place(stripes, info, "cover")) <= 2


def test_exif_and_alpha(tmp_path: Path) -> None:
    """A phone's picture stands upright; what is transparent is black, not what lies hidden under it."""
    ok, data = cv2.imencode(".jpg", quarters(64, 48)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert ok
    tag = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6: turn clockwise
    block = b"\xff\xe1" + (len(tag) + 8).to_bytes(2, "big") + b"Exif\0\0" + tag
    path = tmp_path / "phone.jpg"
    path.write_bytes(data.tobytes()[:2] + block + data.tobytes()[2:])
    info = info_of(48, 64, chroma=(1, 1))
    want = corners(np.rot90(quarters(64, 48), -1))
    assert np.abs(corners(shown_rgb(open_background(str(path), info), info)) - want).max() <= 12
    rgba = np.dstack((quarters(64, 48), np.full((48, 64), 255, np.uint8)))
    rgba[:, :32, 3], rgba[:24, 32:, 3] = 0, 128
    info = info_of(64, 48, chroma=(1, 1))
    for path in (write_png(tmp_path / "a.png", rgba), write_png(tmp_path / "a.webp", rgba)):
        seen = corners(shown_rgb(open_background(str(path), info), info))
        want = np.array([(0, 0, 0), (15, 100, 15), (0, 0, 0), (220, 220, 30)])
        assert np.abs(seen - want).max() <= 14, path.suffix
    grey = tmp_path / "grey.png"
    grey.write_bytes(cv2.imencode(".png", np.full((9, 9), 40000, np.uint16))[1].tobytes())
    assert np.abs(shown_rgb(open_background(str(grey), info), info) - 40000 / 257).max() <= 2
