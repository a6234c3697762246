"""The pixels that sources give, of videos and stills in every format: compared with what was written."""

from __future__ import annotations

import gc
import struct
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.video.reformatter import Interpolation
from media import make_video, picture
from source_parts import SIZE, drain, frames_of, write_picture

from rtbg.color import planes_to_rgb
from rtbg.frame import BT709, FULL, LIMITED, Color
from rtbg.sources import open_source
from rtbg.sources.planes import NATIVE, PlaneReader, native_of
from rtbg.sources.still import StillSource
from rtbg.sources.video import VideoSource

pytestmark = pytest.mark.usefixtures("silent")


def by_ffmpeg(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


@pytest.mark.parametrize("codec, pix_fmt", [("ffv1", n) for n in NATIVE if "yuvj" not in n and n != "yuva422p10le"])
def test_native_formats_are_exact_views(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    path = make_video(tmp_path / "a.mkv", codec=codec, pix_fmt=pix_fmt, size=(161, 97), frames=2)
    source = VideoSource(path)
    for frame, truth in zip(drain(source), by_ffmpeg(path), strict=True):
        assert truth.format.name == pix_fmt
        assert frame.bits == (10 if pix_fmt.endswith("10le") else 8)
        for plane, raw in zip(frame.planes, truth.planes, strict=False):
            want = np.frombuffer(raw, plane.dtype).reshape(raw.height, -1)[:, : raw.width]
            assert np.array_equal(plane, want)
            assert not plane.flags.writeable and not plane.flags.owndata


def test_planes_outlive_source_and_decoder(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", frames=30)
    source = VideoSource(path)
    first = source.read()
    assert first is not None
    copies = [p.copy() for p in first.planes]
    rest = drain(source)
    source.close()
    del source
    gc.collect()
    frames_of(path)  # takes the memory that would have been freed
    assert len(rest) == 29
    assert all(np.array_equal(a, b) for a, b in zip(copies, first.planes, strict=True))


@pytest.mark.parametrize("suffix", ["mkv", "nut"])
def test_yuvj_is_full_range(tmp_path: Path, suffix: str) -> None:
    path = make_video(tmp_path / f"a.{suffix}", codec="mjpeg", pix_fmt="yuvj422p", frames=2, options={"qscale": "2"})
    source = VideoSource(path)
    assert source.info.color.range == FULL and source.info.chroma == (2, 1)
    frame = source.read()
    assert frame is not None
    assert np.abs(planes_to_rgb(frame.planes, frame.color).astype(int) - picture(*SIZE, 0)).mean() < 4


@pytest.mark.parametrize(
    "codec, pix_fmt, chroma, bits",
    [
        ("bottom-up", "bgr24", (1, 1), 8),
        ("rawvideo", "nv12", (2, 2), 8),
        ("rawvideo", "nv21", (2, 2), 8),
        ("rawvideo", "yuyv422", (2, 1), 8),
        ("rawvideo", "yuv411p", (2, 2), 8),
        ("rawvideo", "yuv410p", (2, 2), 8),
        ("rawvideo", "yuv440p", (1, 1), 8),
        ("rawvideo", "yuv420p12le", (2, 2), 10),
        ("rawvideo", "bgr24", (1, 1), 8),
        ("ffv1", "bgra", (1, 1), 8),
        ("ffv1", "gbrp10le", (1, 1), 10),
        ("ffv1", "rgb48le", (1, 1), 10),
        ("rawvideo", "gray", (2, 2), 8),
        ("ffv1", "gray10le", (2, 2), 10),
        ("ffv1", "gray16le", (2, 2), 10),
        ("rawvideo", "ya8", (2, 2), 8),
        ("gif", "rgb8", (1, 1), 8),
    ],
)
def test_other_formats(tmp_path: Path, codec: str, pix_fmt: str, chroma: tuple[int, int], bits: int) -> None:
    name = {"gif": "a.gif", "bottom-up": "a.avi"}.get(codec, "a.nut")
    codec = codec.replace("bottom-up", "rawvideo")
    path = make_video(tmp_path / name, codec=codec, pix_fmt=pix_fmt, frames=2)
    source = VideoSource(path)
    frame = source.read()
    assert frame is not None
    best = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    truth = by_ffmpeg(path)[0].reformat(format="rgb24", interpolation=best).to_ndarray().astype(int)
    assert (source.info.bits, source.info.chroma) == (bits, chroma) == (frame.bits, frame.chroma)
    got = planes_to_rgb(frame.planes, frame.color).astype(int)
    inner = (slice(2, -2), slice(2, -2))  # resampled chroma differs at edges
    assert np.abs(got - truth)[inner].mean() < (6 if pix_fmt.startswith("yuv41") else 2)
    assert np.abs(got.mean((0, 1)) - truth.mean((0, 1))).max() < 1.5
    source.close()


def test_nv12_is_exact(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.nut", codec="rawvideo", pix_fmt="nv12", size=(161, 97), frames=1)
    (frame,), (truth,) = frames_of(path), by_ffmpeg(path)
    uv = np.frombuffer(truth.planes[1], np.uint8).reshape(49, 162)
    assert np.array_equal(frame.planes[0], np.frombuffer(truth.planes[0], np.uint8).reshape(97, 161))
    assert np.array_equal(frame.planes[1], uv[:, 0::2])
    assert np.array_equal(frame.planes[2], uv[:, 1::2])


def test_p010_goes_to_ten_bits() -> None:
    base = av.VideoFrame.from_ndarray(picture(*SIZE, 0), format="rgb24").reformat(format="yuv420p10le")
    reader = PlaneReader(base.reformat(format="p010le"), Color())
    assert (reader.bits, reader.chroma) == (10, (2, 2))
    planes = reader.planes(base.reformat(format="p010le"))
    for plane, raw in zip(planes, base.planes, strict=True):
        assert np.array_equal(plane, np.frombuffer(raw, np.uint16).reshape(raw.height, -1)[:, : raw.width])


@pytest.mark.parametrize(
    "name", ["p016le", "yuv422p16be", "yuv444p9be", "gbrpf32le", "bayer_rggb8", "monow", "uyyvyy411"]
)
def test_rare_formats_have_a_native_one(name: str) -> None:
    target = native_of(av.VideoFormat(name, 64, 64))
    assert target in NATIVE.values()
    assert target.endswith("10le") == (name not in ("bayer_rggb8", "monow", "uyyvyy411"))


@pytest.mark.parametrize("pix_fmt", ["rgb24", "gbrp", "bgra", "gbrp10le"])
@pytest.mark.parametrize("size, matrix", [((64, 48), 5), ((96, 720), BT709)])
def test_red_comes_through(tmp_path: Path, pix_fmt: str, size: tuple[int, int], matrix: int) -> None:
    codec, name = {"rgb24": ("rawvideo", "a.nut"), "gbrp": ("utvideo", "a.avi")}.get(pix_fmt, ("ffv1", "a.mkv"))
    path = tmp_path / name
    rgb = np.full((size[1], size[0], 3), (250, 10, 30), np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        out.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=pix_fmt)))
        out.mux(stream.encode(None))
    (frame,) = frames_of(path)
    assert (frame.color.matrix, frame.color.range) == (matrix, LIMITED)
    assert np.abs(planes_to_rgb(frame.planes, frame.color).astype(int) - rgb).max() <= 3


def test_pictures_that_change_on_the_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.mjpeg"
    sizes = [SIZE, SIZE, (80, 48)]
    pieces = [write_picture(tmp_path / f"{k}.jpg", picture(*s, 0)).read_bytes() for k, s in enumerate(sizes)]
    pieces.append(write_picture(tmp_path / "grey.jpg", picture(*SIZE, 0)[:, :, 0]).read_bytes())
    path.write_bytes(b"".join(pieces) + pieces[0])
    frames = frames_of(path)
    assert len(frames) == 5
    assert {f.planes[0].shape for f in frames} == {(96, 160)}
    assert len({(f.bits, f.chroma, f.color) for f in frames}) == 1
    want = planes_to_rgb(frames[0].planes, frames[0].color).astype(int)
    scaled = planes_to_rgb(frames[2].planes, frames[2].color).astype(int)
    assert np.abs(want - scaled).mean() < 5
    grey = planes_to_rgb(frames[3].planes, frames[3].color).astype(int)
    assert np.abs(grey - picture(*SIZE, 0)[:, :, :1]).mean() < 3
    assert [r.getMessage() for r in caplog.records] == [
        f"{path} changes to 80x48 yuvj420p pictures on the way: they are converted to match"
    ]


# -- stills --


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.bmp", "a.tiff", "a.ppm"])
def test_still_comes_back(tmp_path: Path, name: str) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (97, 161, 3), dtype=np.uint8)
    source = StillSource(write_picture(tmp_path / name, rgb))
    assert (source.info.width, source.info.height, source.info.still) == (161, 97, True)
    (frame,) = drain(source)
    assert frame.color == Color(BT709, FULL) and frame.chroma == (1, 1)
    assert np.abs(planes_to_rgb(frame.planes, frame.color).astype(int) - rgb).max() <= 2


def test_tall_still_has_no_seams(tmp_path: Path) -> None:
    rgb = np.ascontiguousarray(picture(40, 700, 0))
    (frame,) = frames_of(write_picture(tmp_path / "a.png", rgb))
    assert np.abs(planes_to_rgb(frame.planes, frame.color).astype(int) - rgb).max() <= 2


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
@pytest.mark.parametrize("orientation, corner", [(1, (0, 0)), (2, (0, -1)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_exif_orientation(tmp_path: Path, name: str, orientation: int, corner: tuple[int, int]) -> None:
    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[:16, :16] = (255, 0, 0)  # the stored top left corner, by orientation shown at `corner`
    (frame,) = frames_of(write_picture(tmp_path / name, rgb, exif=orientation))
    assert (frame.width, frame.height) == ((48, 64) if orientation > 4 else (64, 48))
    shown = planes_to_rgb(frame.planes, frame.color)
    assert shown[corner][0] > 240
    assert sum(int(shown[c][0]) > 240 for c in ((0, 0), (0, -1), (-1, 0), (-1, -1))) == 1


def test_tiff_orientation(tmp_path: Path) -> None:
    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[:16, :16] = (255, 0, 0)
    path = write_picture(tmp_path / "a.tiff", rgb)
    data = bytearray(path.read_bytes())
    at = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, at)[0]
    entries = [bytes(data[at + 2 + 12 * k : at + 14 + 12 * k]) for k in range(count)]
    entries = sorted([*entries, struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)], key=lambda e: e[:2][::-1])
    struct.pack_into("<I", data, 4, len(data))
    path.write_bytes(bytes(data) + struct.pack("<H", count + 1) + b"".join(entries) + bytes(4))
    (frame,) = frames_of(path)
    assert planes_to_rgb(frame.planes, frame.color)[0, -1, 0] > 240


def test_grey_deep_and_transparent_stills(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    cases: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "grey.png": (ramp, ramp),
        "deep.png": (ramp.astype(np.uint16) * 257, ramp),
        "deep3.png": (np.dstack([ramp.astype(np.uint16) * 257] * 3), ramp),
        "deep3.tiff": (np.dstack([ramp.astype(np.uint16) * 257] * 3), ramp),
        "clear.png": (np.dstack([ramp] * 3 + [np.full_like(ramp, 60)]), ramp),
    }
    for name, (stored, want) in cases.items():
        path = tmp_path / name
        path.write_bytes(cv2.imencode(path.suffix, stored)[1].tobytes())
        (frame,) = frames_of(path)
        assert frame.bits == 8
        assert np.abs(planes_to_rgb(frame.planes, frame.color).astype(int) - want[:, :, None]).max() <= 2


def test_animated_webp_gives_its_first_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make_video(tmp_path / "a.webp", codec="libwebp_anim", frames=3)
    assert len(frames_of(path)) == 1
    assert [r.getMessage() for r in caplog.records] == [f"{path} is an animated WebP: only its first picture is used"]


def test_what_a_file_is_goes_by_its_content(tmp_path: Path) -> None:
    film = make_video(tmp_path / "a.mp4", frames=2).rename(tmp_path / "film.png")
    assert not open_source(film).info.still
    still = write_picture(tmp_path / "a.png", picture(*SIZE, 0)).rename(tmp_path / "still.mp4")
    assert open_source(still, start=5, duration=1).info.still
