"""All backgrounds: one contract for all, then each one's own."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from media import make_video

from rtbg.backgrounds import COLORS, GENERATED, BackgroundSpec, open_background, parse_background
from rtbg.backgrounds.fit import place, placed_size, turn
from rtbg.backgrounds.generated import draw
from rtbg.backgrounds.video import Loop
from rtbg.color import planes_to_rgb, rgb_to_planes
from rtbg.errors import BackgroundError, UsageError
from rtbg.frame import FULL, LIMITED, Color, Frame, StreamInfo
from rtbg.protocols import Background

TAGS = [Color(), Color(1, LIMITED), Color(6, FULL), Color(9, LIMITED)]
TEAL = (30, 140, 120)


def info_of(
    w: int, h: int, bits: int = 8, chroma: tuple[int, int] = (2, 2), color: Color = TAGS[1], **more: object
) -> StreamInfo:
    base = StreamInfo(w, h, Fraction(1, 30), Fraction(30), color=color, bits=bits, chroma=chroma)
    return replace(base, **more)  # type: ignore[arg-type]


def frame_of(info: StreamInfo, pts: int = 0, rgb: np.ndarray | tuple[int, int, int] = (90, 90, 90)) -> Frame:
    picture = np.broadcast_to(np.asarray(rgb, np.uint8), (info.height, info.width, 3))
    planes = rgb_to_planes(picture, info.color, height=info.height, bits=info.bits, chroma=info.chroma)
    return Frame(planes, pts, info.time_base, info.color)


def empty(info: StreamInfo) -> np.ndarray:
    return np.zeros((info.height, info.width), np.uint8)


def shown_rgb(background: Background, info: StreamInfo, pts: int = 0) -> np.ndarray:
    """(h, w, 3) int of what a player shows of the background: upright, the pixels as stored."""
    planes = background.at(frame_of(info, pts), empty(info))
    assert planes is not None
    return turn(planes_to_rgb(planes, info.color), info.rotation).astype(int)


def write_png(path: Path, rgb: np.ndarray) -> Path:
    ok, data = cv2.imencode(path.suffix, rgb[:, :, [2, 1, 0, *range(3, rgb.shape[2])]])
    assert ok
    path.write_bytes(data.tobytes())
    return path


def write_video(path: Path, pictures: list[np.ndarray], pts: list[int], base: Fraction, *, codec: str = "ffv1",
                pix_fmt: str = "bgr0", rotation: int = 0, aspect: Fraction | None = None) -> Path:  # fmt: skip
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = base
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        for k, rgb in enumerate(pictures):
            kind = "rgba" if rgb.shape[2] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(rgb, format=kind).reformat(format=pix_fmt)
            frame.pts, frame.time_base = pts[k], base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def flat(rgb: tuple[int, ...], w: int = 64, h: int = 36) -> np.ndarray:
    return np.full((h, w, len(rgb)), rgb, np.uint8)


def quarters(w: int, h: int) -> np.ndarray:
    """Red, green above blue, yellow."""
    out = np.zeros((h, w, 3), np.uint8)
    out[: h // 2, : w // 2], out[: h // 2, w // 2 :] = (220, 30, 30), (30, 200, 30)
    out[h // 2 :, : w // 2], out[h // 2 :, w // 2 :] = (30, 30, 220), (220, 220, 30)
    return out


def corners(rgb: np.ndarray) -> np.ndarray:
    """The middles of the four quarters."""
    h, w = rgb.shape[:2]
    return np.array([rgb[y, x] for y in (h // 4, 3 * h // 4) for x in (w // 4, 3 * w // 4)], int)


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


# Geometry


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


# Video


def levels(path: Path, times: list[Fraction], *, start: Fraction = Fraction(5)) -> list[int]:
    """The grey level shown at each time after the first frame, in tens."""
    info = info_of(64, 36, time_base=Fraction(1, 90000))
    background = open_background(str(path), info)
    seen = []
    for t in times:
        seen.append(round(float(shown_rgb(background, info, int((start + t) * 90000)).mean()) / 10))
    background.close()
    return seen


def greys(count: int) -> list[np.ndarray]:
    return [flat((10 * (k + 1),) * 3) for k in range(count)]


def test_video_loops_in_time(tmp_path: Path) -> None:
    """Four pictures at uneven times, 0, 100, 150 and 400 ms; the last as long as the rate says (40 ms)."""
    path = write_video(tmp_path / "vfr.mkv", greys(4), [0, 100, 150, 400], Fraction(1, 1000))
    with av.open(str(path)) as container:
        last = list(container.decode(video=0))[-1]
        rate = container.streams.video[0].average_rate
        assert last.time_base is not None and rate
        length = Fraction(400, 1000) + (last.duration * last.time_base if last.duration else 1 / rate)
    starts = [Fraction(0), Fraction(1, 10), Fraction(15, 100), Fraction(4, 10)]
    times = [Fraction(k, 60) for k in range(150)]

    def want(t: Fraction) -> int:
        return max(k for k, s in enumerate(starts, 1) if s <= t % length)

    assert levels(path, times) == [want(t) for t in times]
    # Exactly at the boundaries, in the first and a later round, after a gap, and backwards.
    exact = [n * length + s for n in (0, 1, 2, 40) for s in starts]
    assert levels(path, exact) == [1, 2, 3, 4] * 4
    there_and_back = [Fraction(t, 10) for t in (0, 90, 0, 4, 1)]
    assert levels(path, there_and_back) == [want(t) for t in there_and_back]


def test_video_begins_at_its_first_picture(tmp_path: Path) -> None:
    path = write_video(tmp_path / "late.mkv", greys(3), [3000, 3040, 3080], Fraction(1, 1000))
    assert levels(path, [Fraction(k, 25) for k in range(6)]) == [1, 2, 3, 1, 2, 3]


def test_converts_only_what_is_new(tmp_path: Path) -> None:
    path = write_video(tmp_path / "slow.mkv", greys(3), [0, 500, 1000], Fraction(1, 1000))
    info = info_of(64, 36)
    background = open_background(str(path), info)
    first = background.at(frame_of(info, 0), empty(info))
    assert background.at(frame_of(info, 7), empty(info)) is first
    assert background.at(frame_of(info, 16), empty(info)) is not first
    background.close()


def test_video_of_one_picture_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "one.mkv", greys(1), [0], Fraction(1, 25))
    loop = Loop(path)
    monkeypatch.setattr(av, "open", None)
    assert len({id(loop.at(Fraction(k, 30))) for k in range(100)}) == 1
    loop.close()


def test_gif(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.gif", greys(3), [0, 4, 8], Fraction(1, 100), codec="gif", pix_fmt="gray")
    assert parse_background(str(path)).kind == "video"
    assert levels(path, [Fraction(k, 25) for k in range(6)]) == [1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize("codec", ["qtrle", "ffv1"])
def test_transparent_video_is_over_black(tmp_path: Path, codec: str) -> None:
    rgba = np.dstack((quarters(64, 48), np.full((48, 64), 255, np.uint8)))
    rgba[:, :32, 3], rgba[:24, 32:, 3] = 0, 128
    pix_fmt, name = ("argb", "a.mov") if codec == "qtrle" else ("yuva444p", "a.mkv")
    path = write_video(tmp_path / name, [rgba], [0], Fraction(1, 25), codec=codec, pix_fmt=pix_fmt)
    info = info_of(64, 48, chroma=(1, 1))
    background = open_background(str(path), info)
    want = np.array([(0, 0, 0), (15, 100, 15), (0, 0, 0), (220, 220, 30)])
    assert np.abs(corners(shown_rgb(background, info)) - want).max() <= 6
    background.close()


@pytest.mark.parametrize("turned", [90, 180, 270])
def test_phone_video_stands_upright(tmp_path: Path, turned: int) -> None:
    stored = turn(quarters(64, 96), -turned % 360)
    path = write_video(tmp_path / "phone.mp4", [stored] * 3, [0, 1, 2], Fraction(1, 25), codec="libx264",
                       pix_fmt="yuv420p", rotation=turned)  # fmt: skip
    for rotation, chroma, bits in ((0, (2, 2), 8), (0, (2, 1), 10), (90, (2, 2), 10), (turned, (2, 2), 8)):
        info = info_of(64, 96, bits, chroma, rotation=rotation)
        background = open_background(str(path), info, fit="stretch")
        assert np.abs(corners(shown_rgb(background, info)) - corners(quarters(64, 96))).max() <= 8
        background.close()


def test_wide_pixels_of_the_video(tmp_path: Path) -> None:
    """720 x 576 with pixels of 16:11 is shown 16:9: contained in a 16:9 frame it fills it."""
    path = write_video(tmp_path / "dvd.mkv", [flat((255,) * 3, 90, 72)], [0], Fraction(1, 25), codec="libx264",
                       pix_fmt="yuv444p", aspect=Fraction(64, 45))  # fmt: skip
    info = info_of(160, 90)
    background = open_background(str(path), info, fit="contain")
    assert shown_rgb(background, info).min() >= 250
    background.close()


def test_damaged_tail_loops_what_comes_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make_video(tmp_path / "whole.mkv", frames=50, options={"g": "1"})
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: len(data) * 2 // 3])
    loop = Loop(path)
    seen = [loop.at(Fraction(k, 25)).pts for k in range(150)]
    loop.close()
    assert seen[:10] == sorted(seen[:10]) and len(set(seen)) > 15
    assert seen.count(seen[0]) > 2  # it came round
    assert len([r for r in caplog.records if "damaged" in r.getMessage()]) <= 1


def test_file_that_vanishes_leaves_its_last_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_video(tmp_path / "gone.mkv", greys(3), [0, 40, 80], Fraction(1, 1000))
    loop = Loop(path)
    path.unlink()
    seen = [loop.at(Fraction(k, 25)).pts for k in range(12)]
    loop.close()
    assert seen == [0, 40, 80] + [80] * 9
    assert [r.levelname for r in caplog.records if "no longer" in r.getMessage()] == ["WARNING"]


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
    (tmp_path / "head.mp4").write_bytes(make_video(tmp_path / "v.mp4").read_bytes()[:600])
    with av.open(str(tmp_path / "sound.m4a"), "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=48000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 48000
        out.mux([*stream.encode(sound), *stream.encode(None)])
    with pytest.raises(BackgroundError, match=says) as caught:
        open_background(spec, info_of(64, 48))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 220


def test_wrong_fit() -> None:
    with pytest.raises(UsageError, match="cover, contain or stretch"):
        open_background("blur", info_of(64, 48), fit="fill")


def test_a_colon_in_a_name_is_no_protocol(tmp_path: Path) -> None:
    clip = make_video(tmp_path / "12:30 clip.mp4", frames=3)
    background = open_background(str(clip), StreamInfo(64, 48, Fraction(1, 25), Fraction(25)))
    background.close()
