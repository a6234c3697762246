"""Videos as backgrounds: in time with the frames, round and round, in every form that files have."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from background_parts import corners, empty, flat, frame_of, greys, info_of, quarters, shown_rgb, write_video
from media import make_video

from rtbg.backgrounds import open_background, parse_background
from rtbg.backgrounds.fit import turn
from rtbg.backgrounds.video import Loop
from rtbg.errors import BackgroundError


def levels(path: Path, times: list[Fraction], *, start: Fraction = Fraction(5)) -> list[int]:
    """The grey level shown at each time after the first frame, in tens."""
    info = info_of(64, 36, time_base=Fraction(1, 90000))
    background = open_background(str(path), info)
    seen = []
    for t in times:
        seen.append(round(float(shown_rgb(background, info, int((start + t) * 90000)).mean()) / 10))
    background.close()
    return seen


def test_a_video_whose_head_is_cut_off_is_refused_wherever_that_is(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "whole.mp4").read_bytes()
    with (
        av.open(str(tmp_path / "whole.mp4")) as source,
        av.open(str(tmp_path / "fast.mp4"), "w", options={"movflags": "faststart"}) as out,
    ):
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    whole = (tmp_path / "fast.mp4").read_bytes()
    assert whole.find(b"moov") < whole.find(b"mdat")
    for length in range(whole.find(b"stbl"), whole.find(b"mdat"), 9):
        (tmp_path / "cut.mp4").write_bytes(whole[:length])
        with pytest.raises(BackgroundError, match=r"cut\.mp4"):
            parse_background(str(tmp_path / "cut.mp4"))


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
