"""A file in the part of a camera, with real encoded files."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from rtbg.color import rgb_to_planes
from rtbg.errors import InputError, NoPicture
from rtbg.frame import LIMITED, SMPTE170M, Color, Frame, StreamInfo
from rtbg.sources.i420 import WORKING
from rtbg.sources.paced import PacedSource
from tests.media import make_video

Opener = Callable[..., PacedSource]
STEP = 16  # of luma, from one picture of `counted` to the next


def counted(
    path: Path,
    frames: int = 12,
    rate: int = 25,
    *,
    pts: list[int] | None = None,
    size: tuple[int, int] = (64, 48),
    **stream: object,
) -> Path:
    """A video whose picture k has luma 16 + STEP * k, grey."""
    with av.open(str(path), "w") as out:
        made = out.add_stream("libx264", rate=rate, options={"qp": "1"})
        made.width, made.height, made.pix_fmt = *size, "yuv420p"
        made.codec_context.time_base = Fraction(1, 1000)
        for name, value in stream.items():
            setattr(made, name, value)
        for k in range(frames):
            planes = np.full((size[1] * 3 // 2, size[0]), 128, np.uint8)
            planes[: size[1]] = 16 + STEP * k
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = pts[k] if pts else k * 1000 // rate, Fraction(1, 1000)
            out.mux(made.encode(frame))
        out.mux(made.encode(None))
    return path


def number(frame: Frame) -> int:
    return round((float(frame.planes[0].mean()) - 16) / STEP)


def taken(made: PacedSource, count: int) -> list[Frame]:
    """The next pictures; fewer where it ends."""
    frames: list[Frame] = []
    until = time.perf_counter() + 60
    while len(frames) < count and time.perf_counter() < until:
        try:
            frame = made.read()
        except NoPicture:
            continue
        if frame is None:
            break
        frames.append(frame)
    return frames


@pytest.fixture
def paced() -> Iterator[Opener]:
    """Makes sources, and closes them whatever the test does: their threads would keep the program from ending."""
    made: list[PacedSource] = []

    def make(*args: object, **options: object) -> PacedSource:
        made.append(PacedSource(*args, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for source in made:
        source.close()


def test_pictures_come_in_real_time_by_their_own_times(tmp_path: Path, paced: Opener) -> None:
    times = [0, 100, 150, 400, 450, 700]
    made = paced(counted(tmp_path / "a.mkv", 6, pts=times), loop=False)
    assert made.live and (made.info.width, made.info.height) == (64, 48)
    assert made.info.color == Color(SMPTE170M, LIMITED) and made.info.time_base == Fraction(1, 1_000_000)
    began = time.perf_counter()
    frames = taken(made, 99)
    assert time.perf_counter() - began >= 0.65
    assert made.read() is None
    made.close()
    assert [number(f) for f in frames] == sorted({number(f) for f in frames})
    assert number(frames[-1]) == 5 and len(frames) + made.dropped == 6
    for frame in frames:
        due = times[number(frame)] / 1000
        assert abs((frame.captured - frames[0].captured) - (due - times[number(frames[0])] / 1000)) < 0.5
        assert frame.captured <= time.perf_counter() and frame.color == made.info.color
        assert [p.shape for p in frame.planes] == [(48, 64), (24, 32), (24, 32)]
    pts = [f.pts for f in frames]
    assert pts == sorted(set(pts))


def test_it_loops_and_the_times_go_on(tmp_path: Path, paced: Opener) -> None:
    made = paced(counted(tmp_path / "a.mp4", 5))
    frames = taken(made, 23)
    steps = 22 + made.dropped
    made.close()
    assert made.read() is None
    pts = [f.pts for f in frames]
    assert pts == sorted(set(pts)) and len(frames) == 23
    order = [number(f) for f in frames]
    assert sum(b < a for a, b in itertools.pairwise(order)) >= 4 and set(order) <= set(range(5))
    # The last picture of a run is shown as long as the others.
    assert frames[-1].captured - frames[0].captured >= steps * 0.04 - 0.06


def test_a_slow_reader_gets_the_newest(tmp_path: Path, paced: Opener) -> None:
    with_rate = paced(counted(tmp_path / "a.mp4", 12), rate=50)
    assert with_rate.info.rate == 50
    first = taken(with_rate, 1)[0]
    for _ in range(4):
        time.sleep(0.07)  # three and a half pictures; four are decoded ahead
        frame = taken(with_rate, 1)[0]
        assert frame.captured - first.captured >= 0.035
        first = frame
    assert with_rate.dropped >= 4
    with_rate.close()


@pytest.mark.parametrize("rate", [10, 30, 50])
def test_another_rate_plays_as_fast(tmp_path: Path, paced: Opener, rate: int) -> None:
    """Twelve pictures of 40 ms: 0.48 s at any rate, each tick with the picture that the file shows then."""
    made = paced(counted(tmp_path / "a.mkv"), rate=rate, loop=False)
    assert made.info.rate == rate
    frames = taken(made, 99)
    made.close()
    assert abs(len(frames) + made.dropped - 0.48 * rate) <= 1
    assert abs((frames[-1].captured - frames[0].captured) - 0.48) < 0.3
    for frame in frames:
        tick = (frame.captured - frames[0].captured) * rate
        if not made.dropped:
            assert abs(tick - round(tick)) < 0.1 and abs(number(frame) - int(tick / rate / 0.04 + 0.2)) <= 1


def test_its_own_rate_leaves_every_picture_as_it_is(tmp_path: Path, paced: Opener) -> None:
    """Times in whole milliseconds are no reason to show one twice."""
    path = counted(tmp_path / "a.mkv", 12, pts=[0, 33, 67, 100, 133, 167, 200, 233, 267, 300, 333, 367])
    made = paced(path, rate=30, loop=False)
    shown = [number(f) for f in taken(made, 99)]
    made.close()
    assert len(shown) + made.dropped == 12 and len(set(shown)) == len(shown)


def test_after_a_long_stall_it_goes_on_instead_of_racing(tmp_path: Path, paced: Opener) -> None:
    made = paced(counted(tmp_path / "a.mp4", 12))
    taken(made, 1)
    time.sleep(1.5)
    frames = taken(made, 6)
    made.close()
    assert time.perf_counter() - frames[-1].captured < 1
    assert frames[-1].captured - frames[0].captured >= 4 * 0.04 - 0.01


def test_what_is_decoded_too_slowly_is_never_so_late_that_live_mode_drops_it(
    tmp_path: Path, paced: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = paced(counted(tmp_path / "a.mp4", 12))
    planes = made._planes

    def slow(frame: Frame, info: StreamInfo) -> tuple[np.ndarray, ...]:
        time.sleep(0.07)
        return planes(frame, info)

    monkeypatch.setattr(made, "_planes", slow)
    late = [time.perf_counter() - frame.captured for _ in range(30) for frame in taken(made, 1)]
    assert max(late) < 0.35


def test_a_picture_shown_for_long_is_given_again(tmp_path: Path, paced: Opener) -> None:
    made = paced(counted(tmp_path / "a.mkv", 3, pts=[0, 40, 1740]), loop=False)
    frames = [made.read() for _ in range(5)]  # none waits so long that it raises
    made.close()
    assert [number(f) for f in frames if f is not None] == [0, 1, 1, 1, 1]


def test_a_still_picture_works(tmp_path: Path, paced: Opener) -> None:
    rgb = np.full((50, 81, 3), (40, 60, 200), np.uint8)  # as BGR: red
    cv2.imwrite(str(tmp_path / "a.png"), rgb)
    for rate, expected in ((None, 30), (10, 10)):
        made = paced(tmp_path / "a.png", rate=rate)
        assert (made.info.width, made.info.height, made.info.rate, made.info.still) == (80, 50, expected, False)
        frames = taken(made, 6)
        made.close()
        assert frames[-1].captured - frames[0].captured >= 5 / expected - 0.01
        codes = rgb_to_planes(np.full((2, 2, 3), (200, 60, 40), np.uint8), WORKING, height=0, bits=8, chroma=(1, 1))
        for plane, code in zip(frames[-1].planes, codes, strict=True):
            assert abs(plane.astype(int) - int(code[0, 0])).max() <= 2
    once = paced(tmp_path / "a.png", loop=False)
    assert len(taken(once, 5)) == 1
    once.close()


def test_high_definition_is_brought_to_bt601(tmp_path: Path, paced: Opener) -> None:
    """Untagged video of 720 lines is BT.709; the live mode works in BT.601."""
    size, rgb = (1280, 720), (200, 60, 40)
    planes = rgb_to_planes(np.full((720, 1280, 3), rgb, np.uint8), Color(1, LIMITED), height=0, bits=8, chroma=(2, 2))
    with av.open(str(tmp_path / "hd.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=5, options={"qp": "1", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for k in range(3):
            flat = np.concatenate([p.reshape(-1) for p in planes]).reshape(1080, 1280)
            frame = av.VideoFrame.from_ndarray(flat, format="yuv420p")
            frame.pts = k
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    made = paced(tmp_path / "hd.mp4", loop=False)
    frame = taken(made, 1)[0]
    made.close()
    codes = rgb_to_planes(np.full((2, 2, 3), rgb, np.uint8), WORKING, height=0, bits=8, chroma=(1, 1))
    for plane, code in zip(frame.planes, codes, strict=True):
        assert abs(plane.astype(int) - int(code[0, 0])).max() <= 3


def test_size_mirror_rotation_and_pixel_shape(tmp_path: Path, paced: Opener) -> None:
    make_video(tmp_path / "a.mp4", size=(160, 96), frames=3)
    plain, turned, other = (
        paced(tmp_path / "a.mp4", loop=False, **options) for options in ({}, {"mirror": True}, {"size": (80, 80)})
    )
    a, b, c = (taken(made, 1)[0] for made in (plain, turned, other))
    assert all((x == y[:, ::-1]).all() for x, y in zip(a.planes, b.planes, strict=True))
    assert [p.shape for p in c.planes] == [(80, 80), (40, 40), (40, 40)]
    assert abs(c.planes[0].astype(int)[40] - cv2.resize(a.planes[0][:, 32:128], (80, 80))[40]).mean() < 4
    for made in (plain, turned, other):
        made.close()
    make_video(tmp_path / "r.mp4", size=(160, 96), frames=3, rotation=90)
    upright = paced(tmp_path / "r.mp4", loop=False)
    assert (upright.info.width, upright.info.height, upright.info.rotation) == (96, 160, 0)
    frame = taken(upright, 1)[0]
    upright.close()
    assert all((x == np.rot90(y)).all() for x, y in zip(frame.planes, a.planes, strict=True))
    wide = counted(tmp_path / "w.mkv", 2, size=(64, 48), sample_aspect_ratio=Fraction(4, 3))
    stretched = paced(wide, loop=False)
    assert (stretched.info.width, stretched.info.height) == (84, 48)
    assert taken(stretched, 1)[0].planes[0].shape == (48, 84)
    stretched.close()


def test_what_cannot_be_read_is_an_error_at_once_and_later_no_picture(tmp_path: Path, paced: Opener) -> None:
    with pytest.raises(InputError, match="no such file"):
        paced(tmp_path / "missing.mp4")
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(InputError):
        paced(tmp_path / "a.txt")
    path = counted(tmp_path / "a.mp4", 3)
    made = paced(path)
    taken(made, 1)
    path.rename(tmp_path / "b.mp4")
    until = time.perf_counter() + 30
    with pytest.raises(NoPicture, match="no such file; rtbg keeps trying"):
        while time.perf_counter() < until:
            made.read()
    (tmp_path / "b.mp4").rename(path)
    assert len(taken(made, 3)) == 3
    made.close()


def test_closing_is_quick_at_any_time(tmp_path: Path, paced: Opener) -> None:
    path = counted(tmp_path / "a.mp4", 12)
    paced(path).close()
    made = paced(path)
    made.read()
    began = time.perf_counter()
    made.close()
    made.close()
    assert time.perf_counter() - began < 5 and made.read() is None
