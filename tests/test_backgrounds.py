"""All backgrounds: one contract for all, blur, the generated ones, and what is asked for."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from background_parts import TAGS, TEAL, empty, flat, frame_of, greys, info_of, write_png, write_video
from media import make_video

from rtbg.backgrounds import COLORS, GENERATED, BackgroundSpec, open_background, parse_background
from rtbg.backgrounds.generated import draw
from rtbg.color import planes_to_rgb
from rtbg.errors import BackgroundError, UsageError
from rtbg.frame import FULL, LIMITED, Color, StreamInfo
from rtbg.protocols import Background


@pytest.fixture
def specs(tmp_path: Path) -> dict[str, str]:
    """Every kind, where it has a colour as TEAL."""
    files = {
        "image": write_png(tmp_path / "bg.png", flat(TEAL, 50, 40)),
        "big image": write_png(tmp_path / "big.png", flat(TEAL, 700, 900)),
        "video": write_video(tmp_path / "bg.mkv", [flat(TEAL)] * 2, [0, 40], Fraction(1, 1000)),
        "mp4": write_video(tmp_path / "bg.mp4", [flat(TEAL)] * 2, [0, 1], Fraction(1, 25), codec="libx264",
                           pix_fmt="yuv420p"),
        "blur": "blur:0.7",
        "color": "#1e8c78",
        "transparent": "transparent",
        "generated": "studio",
    }  # fmt: skip
    return {name: str(spec) for name, spec in files.items()}


@pytest.mark.parametrize("size", [(96, 64), (97, 63), (35, 90), (3, 2), (1, 1)], ids=str)
@pytest.mark.parametrize("chroma", [(2, 2), (2, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("bits", [8, 10])
def test_contract(specs: dict[str, str], bits: int, chroma: tuple[int, int], size: tuple[int, int]) -> None:
    """Planes fit the frame in every way, and a colour comes out within 2 levels; so too after the stream changed."""
    for k, (name, spec) in enumerate(specs.items()):
        for rotation, aspect, fit in ((0, Fraction(1), "cover"), (90, Fraction(4, 3), "stretch")):
            info = info_of(*size, bits, chroma, TAGS[k % 4], rotation=rotation, sample_aspect=aspect)
            background = open_background(spec, info, fit=fit)
            assert isinstance(background, Background)
            other = info_of(size[0] + 4, size[1] + 1, 18 - bits, chroma, TAGS[(k + 1) % 4], rotation=rotation)
            for now in (info, info, other):
                frame = frame_of(now, rgb=TEAL)
                kept = [p.copy() for p in frame.planes]
                alpha = empty(now)
                alpha[now.height // 2 :] = 255
                planes = background.at(frame, alpha)
                if name == "transparent":
                    assert planes is None
                    continue
                assert planes is not None
                assert [(p.shape, p.dtype) for p in planes] == [(p.shape, p.dtype) for p in frame.planes]
                assert all(np.array_equal(a, b) for a, b in zip(frame.planes, kept, strict=True))
                if name != "generated":
                    rgb = planes_to_rgb(planes, now.color).astype(int)
                    # swscale, which the video goes through, may be a code off in each plane.
                    assert np.abs(rgb - TEAL).max() <= (4 if name in ("video", "mp4") else 2), name
            background.close()
            background.close()


@pytest.mark.parametrize("tags", TAGS, ids=str)
@pytest.mark.parametrize("height", [480, 720])
def test_colors_within_two_levels(tmp_path: Path, height: int, tags: Color) -> None:
    """Decoded by FFmpeg with the matrix that an untagged picture of that height is taken for."""
    info = info_of(32, height, color=tags)
    matrix = 5 if tags.matrix == 6 or (tags.matrix == 2 and height < 720) else tags.matrix if tags.matrix != 2 else 1
    for rgb in ((128, 128, 128), (0, 177, 64), (64, 96, 192), (255, 255, 255), (0, 0, 0), (200, 40, 60)):
        spec = "#" + bytes(rgb).hex()
        for name in (spec, str(write_png(tmp_path / f"{spec[1:]}.png", flat(rgb)))):
            planes = open_background(name, info).at(frame_of(info), empty(info))
            assert planes is not None
            full = [np.repeat(np.repeat(p, height // len(p), 0), height // len(p), 1) for p in planes]
            frame = av.VideoFrame.from_ndarray(np.stack(full), format="yuv444p")
            theirs = frame.to_ndarray(
                format="rgb24", src_colorspace=matrix, src_color_range=tags.range or LIMITED, dst_color_range=FULL
            )
            assert np.abs(theirs.astype(int) - rgb).max() <= 2


# Blur


def scene(w: int, h: int, behind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A red person before a background, and the matte."""
    alpha = np.zeros((h, w), np.uint8)
    cv2.ellipse(alpha, (w // 2, h), (w // 4, round(0.7 * h)), 0, 0, 360, 255, -1)
    alpha = cv2.GaussianBlur(alpha, (0, 0), h / 200)
    a = alpha[:, :, None] / 255
    return np.rint(a * (230, 20, 20) + (1 - a) * behind).astype(np.uint8), alpha


@pytest.mark.parametrize("strength", [0, 0.5, 1])
@pytest.mark.parametrize(("bits", "chroma"), [(8, (2, 2)), (8, (1, 1)), (10, (2, 2)), (10, (2, 1))])
def test_blur_keeps_the_person_out(bits: int, chroma: tuple[int, int], strength: float) -> None:
    blue = np.broadcast_to(np.array((40, 60, 180)), (270, 480, 3))
    rgb, alpha = scene(480, 270, blue)
    info = info_of(480, 270, bits, chroma)
    planes = open_background(f"blur:{strength}", info).at(frame_of(info, rgb=rgb), alpha)
    assert planes is not None
    seen = planes_to_rgb(planes, info.color).astype(int)
    # Nowhere any red: no halo, no rim, not even behind the person.
    assert np.abs(seen - blue).max() <= 3


def test_blur_keeps_brightness_and_hides() -> None:
    y, x = np.mgrid[0:540, 0:960]
    stripes = np.where((x // 6 + y // 6) % 2, 200, 40)[:, :, None] * np.ones(3)
    ramp = stripes * 0.5 + (x * 100 / 960)[:, :, None]
    rgb, alpha = scene(960, 540, ramp)
    info = info_of(960, 540)
    for strength in ("0", "0.5", "1"):
        planes = open_background(f"blur:{strength}", info).at(frame_of(info, rgb=rgb), alpha)
        assert planes is not None
        seen = planes_to_rgb(planes, info.color)[:, :, 1].astype(float)
        away = alpha == 0
        assert abs(seen[away].mean() - ramp[away][:, 1].mean()) <= 1.5
        # What is left of the pattern, which had a deviation of 40.
        row = seen[30, 100:860]
        assert np.std(row - np.poly1d(np.polyfit(np.arange(760), row, 3))(np.arange(760))) < 2
        # No bright or dark rim along the person.
        rim = (cv2.dilate((alpha > 0).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0) & away
        slope = 60 + x * 100 / 960
        assert np.abs(seen - slope)[rim].max() <= 16


def test_blur_grows_with_strength() -> None:
    edge = np.zeros((360, 640, 3), np.uint8)
    edge[:, 320:] = 200
    widths = []
    for spec in ("blur:0", "blur", "blur:0.75", "blur:1"):
        for info in (info_of(640, 360), info_of(640, 360, sample_aspect=Fraction(4, 3))):
            planes = open_background(spec, info).at(frame_of(info, rgb=edge), empty(info))
            assert planes is not None
            row = planes[0][180].astype(float)
            widths.append(np.ptp(np.nonzero((row > row.min() + 8) & (row < row.max() - 8))[0]))
    assert widths[0] < widths[2] < widths[4] < widths[6]
    assert all(anamorphic < square for square, anamorphic in zip(widths[::2], widths[1::2], strict=True))


def test_blur_with_nothing_but_person() -> None:
    """A hand before the lens: no background anywhere. Something plain comes, not noise or nonsense."""
    info = info_of(160, 90)
    rgb = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
    planes = open_background("blur", info).at(frame_of(info, rgb=rgb), np.full((90, 160), 255, np.uint8))
    assert planes is not None
    assert np.ptp(planes[0]) <= 1 and 80 < planes[0].mean() < 170


# Generated


@pytest.mark.parametrize("name", GENERATED)
def test_generated(name: str) -> None:
    for w, h in ((1280, 720), (720, 1280), (640, 480), (33, 21), (1, 1)):
        picture = draw(name, w, h)
        assert picture.shape == (h, w, 3) and picture.dtype == np.uint8
        assert 20 < picture.mean() < 250
        assert np.array_equal(picture, draw(name, w, h))
    grey = draw(name, 1280, 720)[:, :, 1].astype(float)
    # Dithered: neighbours differ a little nearly everywhere, so that no band has an edge.
    assert 0.4 < np.median(np.abs(np.diff(grey, axis=1))) <= 4


# What is asked for


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        ("blur", BackgroundSpec("blur", strength=0.5)),
        ("Blur:0", BackgroundSpec("blur", strength=0.0)),
        ("blur:1.0", BackgroundSpec("blur", strength=1.0)),
        ("transparent", BackgroundSpec("transparent")),
        ("green", BackgroundSpec("color", rgb=(0, 177, 64))),
        ("White", BackgroundSpec("color", rgb=(255, 255, 255))),
        ("#0b4", BackgroundSpec("color", rgb=(0, 187, 68))),
        ("#00B140", BackgroundSpec("color", rgb=(0, 177, 64))),
        ("00b140", BackgroundSpec("color", rgb=(0, 177, 64))),
        ("dusk", BackgroundSpec("generated", name="dusk")),
    ],
)
def test_parse(spec: str, want: BackgroundSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_background(spec) == want


def test_every_name_is_understood() -> None:
    assert all(parse_background(name).kind == "color" for name in COLORS)
    assert all(parse_background(name).kind == "generated" for name in GENERATED)
    assert not set(COLORS) & set(GENERATED)


def test_an_existing_file_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "forest").mkdir()  # a folder does not
    assert parse_background("forest").kind == "generated"
    write_png(tmp_path / "blur.png", flat(TEAL)).rename(tmp_path / "blur")
    assert parse_background("blur") == BackgroundSpec("image", path=Path("blur"))
    # The content decides, not the suffix.
    write_png(tmp_path / "x.png", flat(TEAL)).rename(tmp_path / "x.mp4")
    assert parse_background("x.mp4").kind == "image"
    write_video(tmp_path / "y.mkv", greys(2), [0, 1], Fraction(1, 25)).rename(tmp_path / "y.jpg")
    assert parse_background("y.jpg").kind == "video"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("forrest", "did you mean forest.*studio"),
        ("geen", "did you mean green"),
        ("", "neither a file nor a known name.*transparent"),
        ("blur:2", "0 to 1.*'2'"),
        ("blur:nan", "0 to 1"),
        ("blur:", "0 to 1"),
        ("#12345", "#rrggbb"),
        ("#ggg", "#rrggbb"),
        ("beech.jpg", "no such background file: beech.jpg .did you mean beach.jpg"),
        ("nowhere/beach.jpg", "no such background file"),
        ("folder", "is a folder"),
        ("empty.png", "is empty"),
        ("notes.txt", "neither a picture nor a video"),
        ("junk.jpg", "neither a picture nor a video"),
        ("cut.png", "cut.png"),
        ("head.mp4", "head.mp4"),
        ("sound.m4a", "neither a picture nor a video"),
        ("phone.heic", "HEIC picture.*JPEG or PNG"),
        ("~nobody-of-that-name/beach.jpg", "no such background file"),
        ("float.tif", "float.tif is not a picture that can be read"),
        ("wide.tif", "wide.tif is not a picture that can be read"),
    ],
)
def test_errors(spec: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    write_png(tmp_path / "beach.jpg", flat(TEAL))
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.txt").write_text("a note\n" * 30)
    (tmp_path / "junk.jpg").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    cv2.imwrite(str(tmp_path / "float.tif"), np.full((48, 64, 4), 0.5, np.float32))
    cv2.imwrite(str(tmp_path / "wide.tif"), np.full((48, 64, 4), 9, np.int32))
    (tmp_path / "head.mp4").write_bytes(make_video(tmp_path / "v.mp4").read_bytes()[:600])
    with av.open(str(tmp_path / "sound.m4a"), "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=48000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 48000
        out.mux([*stream.encode(sound), *stream.encode(None)])
    with pytest.raises(BackgroundError, match=says) as caught:
        open_background(spec, info_of(64, 48))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 220


def test_a_name_that_is_too_long_and_a_closed_folder(tmp_path: Path) -> None:
    with pytest.raises(BackgroundError, match=r"cannot be read \(File name too long\): choose another file"):
        parse_background(str(tmp_path / f"{'a' * 300}.jpg"))
    if not hasattr(os, "geteuid"):
        return
    (tmp_path / "closed").mkdir()
    write_png(tmp_path / "closed" / "a.png", flat(TEAL))
    (tmp_path / "closed").chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(BackgroundError, match=r"cannot be read \(Permission denied\)"):
            parse_background(str(tmp_path / "closed" / "a.png"))
    finally:
        if root:
            os.seteuid(0)
        (tmp_path / "closed").chmod(0o700)


def test_wrong_fit() -> None:
    with pytest.raises(UsageError, match="cover, contain or stretch"):
        open_background("blur", info_of(64, 48), fit="fill")


def test_a_colon_in_a_name_is_no_protocol(tmp_path: Path) -> None:
    clip = make_video(tmp_path / "12:30 clip.mp4", frames=3)
    background = open_background(str(clip), StreamInfo(64, 48, Fraction(1, 25), Fraction(25)))
    background.close()
