"""Files through the whole of rtbg with the shipped model: what must come out as it went in."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

import rtbg
from rtbg.errors import UsageError
from rtbg.sources import open_source
from rtbg.sources.demo import DemoSource
from tests.media import make_video, read_video

TIMES = [0, 1000, 2000, 2600, 4000, 4100, 6000, 9000, 9500, 10000]  # milliseconds x 3: uneven


def phone_video(path: Path, *, rotation: int = 0) -> Path:
    """The demo's person as a phone records her: uneven times, sideways with a rotation flag, sound, tags."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=30, options={"preset": "ultrafast", "crf": "16"})
        stream.width, stream.height = (360, 640) if rotation in (90, 270) else (640, 360)
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = Fraction(1, 3000)
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = 1, 1, 1, 1
        context.sample_aspect_ratio = Fraction(1)
        if rotation:
            stream.set_display_rotation(rotation)
        sound = out.add_stream("aac", rate=48000, layout="stereo")
        sound.metadata["language"] = "deu"
        out.metadata["title"] = "A phone's video"
        source = DemoSource(size=(640, 360), seconds=len(TIMES) / 30)
        for pts in TIMES:
            frame = source.read()
            assert frame is not None
            # A player turns the stored picture counter-clockwise by `rotation`: store it turned the other way.
            turned = [np.ascontiguousarray(np.rot90(p, -rotation // 90)) for p in frame.planes]
            picture = av.VideoFrame.from_ndarray(
                np.concatenate([p.ravel() for p in turned]).reshape(-1, turned[0].shape[1]), format="yuv420p"
            )
            picture.pts, picture.time_base = pts, Fraction(1, 3000)
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
        for k in range(0, 48000 * 10 // 3, 1024):
            part = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
            part.sample_rate, part.pts, part.time_base = 48000, k, Fraction(1, 48000)
            out.mux(sound.encode(part))
        out.mux(sound.encode(None))
    return path


def test_the_background_of_the_options_unless_another_is_named(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "in.png"), np.full((48, 64, 3), 90, np.uint8))
    options = rtbg.Options(background="#00ff00", overwrite=True)
    for named, want in ((None, (0, 255, 0)), ("#ff0000", (0, 0, 255))):
        rtbg.replace_background(tmp_path / "in.png", tmp_path / "out.png", background=named, options=options)
        assert np.abs(cv2.imread(str(tmp_path / "out.png")).astype(int) - want).max() < 3


@pytest.mark.parametrize("transfer", [16, 18, 1])
def test_a_background_that_is_not_hdr_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, transfer: int
) -> None:
    with av.open(str(tmp_path / "in.mkv"), "w") as out:
        stream = out.add_stream("libx265", rate=25, options={"x265-params": "log-level=none"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p10le"
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = 9, 9, transfer
        for k in range(2):
            shot = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 90, np.uint8), format="rgb24")
            shot.pts = k
            out.mux(stream.encode(shot.reformat(format="yuv420p10le")))
        out.mux(stream.encode(None))
    for background, said in (("white", transfer != 1), ("blur", False)):
        caplog.clear()
        rtbg.replace_background(tmp_path / "in.mkv", tmp_path / f"{background}.mkv", background=background)
        assert any("is HDR" in r.getMessage() for r in caplog.records) == said


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"size": (1280, 720)}, "--size is a text"),
        ({"edge": None}, "--edge is a text"),
        ({"light_wrap": "much"}, "--light-wrap is a number"),
    ],
)
def test_options_of_another_type(values: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        rtbg.Options(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_a_phones_video(tmp_path: Path, rotation: int) -> None:
    clip = phone_video(tmp_path / "in.mp4", rotation=rotation)
    stats = rtbg.replace_background(clip, tmp_path / "out.mp4", background="#00a000")
    assert stats.frames_out == len(TIMES)
    with av.open(str(clip)) as before, av.open(str(tmp_path / "out.mp4")) as after:
        old, new = before.streams.video[0], after.streams.video[0]
        assert after.metadata["title"] == "A phone's video"
        assert after.streams.audio[0].metadata["language"] == "deu"
        assert abs(after.duration - before.duration) <= 1000, "microseconds"
        assert (new.width, new.height) == (old.width, old.height)
        assert new.codec_context.colorspace == old.codec_context.colorspace == 1
        assert new.codec_context.color_range == old.codec_context.color_range == 1
        frames = list(after.decode(video=0))
        assert [f.pts * f.time_base for f in frames] == [Fraction(t, 3000) for t in TIMES]
        assert {f.rotation % 360 for f in frames} == {rotation}
        shown = np.rot90(frames[5].to_ndarray(format="rgb24"), rotation // 90).astype(int)
    # As a viewer sees it: green in the upper right corner, the face in the middle.
    green = np.abs(shown - (0, 160, 0)).max(axis=2) < 30
    assert shown.shape == (360, 640, 3)
    assert green[:60, 396:430].mean() > 0.9, "background beside the head"
    assert green[120:240, 240:330].mean() < 0.1, "the face"


def test_ten_bit_422_stays_so(tmp_path: Path) -> None:
    clip = make_video(tmp_path / "in.mkv", pix_fmt="yuv422p10le", frames=4)
    rtbg.replace_background(clip, tmp_path / "out.mkv", background="paper")
    with av.open(str(tmp_path / "out.mkv")) as out:
        assert out.streams.video[0].codec_context.pix_fmt == "yuv422p10le"


@pytest.mark.parametrize("name", ["out.mov", "out.webm", "out.mkv"])
def test_transparent_video(tmp_path: Path, name: str) -> None:
    rtbg.replace_background(DemoSource(size=(320, 180), seconds=0.2), tmp_path / name, background="transparent")
    with av.open(str(tmp_path / name)) as out:
        stream = out.streams.video[0]
        if stream.codec_context.name == "vp9":  # FFmpeg's own decoder drops the alpha
            decoder = av.CodecContext.create("libvpx-vp9", "r")
            decoder.extradata = stream.codec_context.extradata
            frames = [f for packet in out.demux(stream) for f in decoder.decode(packet)]
        else:
            frames = list(out.decode(video=0))
        rgba = frames[3].to_ndarray(format="rgba")
    assert rgba[:25, 198:214, 3].mean() < 40, "beside the head"
    assert rgba[60:120, 125:160, 3].mean() > 235, "the face"


def test_matte_and_background_agree(tmp_path: Path) -> None:
    """--show matte is the matte that the composite was made with."""
    size = (320, 180)
    for show, name in (("matte", "m.mkv"), ("composite", "c.mkv")):
        rtbg.replace_background(
            DemoSource(size=size, seconds=0.2),
            tmp_path / name,
            background="#0000ff",
            options=rtbg.Options(show=show, codec="ffv1"),
        )
    mattes, pictures = read_video(tmp_path / "m.mkv")[0], read_video(tmp_path / "c.mkv")[0]
    for matte, picture in zip(mattes, pictures, strict=True):
        gone = matte[..., 0] == 0
        assert gone.any()
        # Six pixels away from the edge: what reads the picture back mixes neighbouring chroma samples.
        inner = cv2.erode(gone.astype(np.uint8), np.ones((13, 13), np.uint8)).astype(bool)
        assert inner.mean() > 0.05
        assert np.abs(picture[inner].astype(int) - (0, 0, 255)).max() <= 4


def test_python_gets_the_same_errors(tmp_path: Path) -> None:
    with pytest.raises(rtbg.RtbgError, match=r"none\.mp4"):
        rtbg.replace_background(tmp_path / "none.mp4", tmp_path / "out.mp4")
    clip = make_video(tmp_path / "in.mp4", frames=2)
    with pytest.raises(ValueError, match="nonsense"):
        rtbg.replace_background(clip, tmp_path / "out.mp4", background="nonsense")
    assert not (tmp_path / "out.mp4").exists()
    for wrong in (
        {"fit": "x"},
        {"show": "x"},
        {"codec": "x"},
        {"engine": "x"},
        {"start": -1},
        {"duration": 0},
        {"threads": 0},
    ):
        with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
            rtbg.Options(**wrong)


def test_runs_side_by_side_do_not_mix(tmp_path: Path) -> None:
    """Engines hand out shared buffers: two runs and single mattes at the same time come out as one after another."""

    def work(k: int) -> bytes:
        target = tmp_path / f"{k}-{threading.get_ident()}.mkv"
        source = DemoSource(size=(160, 90) if k % 2 else (90, 160), start=3 * k, seconds=0.5)
        rtbg.replace_background(source, target, background="#000000", options=rtbg.Options(show="matte", codec="ffv1"))
        return b"".join(p.tobytes() for p in read_video(target)[0])

    alone = [work(k) for k in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, range(4)))
    assert together == alone


def test_a_refused_run_closes_its_source(tmp_path: Path) -> None:
    clip = make_video(tmp_path / "in.mp4", frames=2)
    for options, background in ((rtbg.Options(), "nonsense"), (rtbg.Options(model="nonsense"), "blur")):
        source = open_source(clip)
        with pytest.raises(rtbg.RtbgError):
            rtbg.replace_background(source, tmp_path / "out.mp4", background=background, options=options)
        assert source.read() is None, "closed"


def test_a_gif_becomes_a_video_that_every_player_shows(tmp_path: Path) -> None:
    clip = make_video(tmp_path / "in.gif", codec="gif", pix_fmt="rgb8", frames=4, rate=10)
    rtbg.replace_background(clip, tmp_path / "out.mp4", background="white")
    with av.open(str(tmp_path / "out.mp4")) as out:
        assert out.streams.video[0].codec_context.pix_fmt == "yuv420p"
