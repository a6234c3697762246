"""Files that cannot be read, or not to the end: each is one line for the user, and what is whole is given."""

from __future__ import annotations

import logging
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media import make_video, picture
from source_parts import SIZE, frames_of

from rtbg.backgrounds.video import Loop
from rtbg.errors import InputError
from rtbg.sources import open_source

pytestmark = pytest.mark.usefixtures("silent")


def noisy(path: Path, every: int = 97) -> Path:
    """Spoils bytes of an MP4's pictures, but for the first."""
    data = bytearray(path.read_bytes())
    values = np.random.default_rng(1).integers(0, 256, len(data))
    begin = data.find(b"mdat") + 1500
    for k in range(begin, data.find(b"moov", begin) if data.find(b"moov") > begin else len(data), every):
        data[k] = values[k]
    path.write_bytes(data)
    return path


def late_sound(folder: Path) -> Path:
    """An FLV file whose sound begins after twelve seconds, which its head does not tell of."""
    for kind in ("video", "audio"):
        with av.open(str(folder / f"{kind}.flv"), "w", format="flv") as out:
            if kind == "video":
                stream = out.add_stream("flv1", rate=25)
                stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
                for k in range(300):
                    noise = np.random.default_rng(k).integers(0, 255, (72, 64), dtype=np.uint8)
                    shot = av.VideoFrame.from_ndarray(noise, format="yuv420p")
                    shot.pts = k
                    out.mux(stream.encode(shot))
                out.mux(stream.encode(None))
            else:
                sound = out.add_stream("pcm_s16le", rate=44100, layout="mono")
                part = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), format="s16", layout="mono")
                part.sample_rate = 44100
                out.mux([*sound.encode(part), *sound.encode(None)])
    path = folder / "late.flv"
    path.write_bytes((folder / "video.flv").read_bytes() + (folder / "audio.flv").read_bytes()[13:])
    return path


def test_a_stream_that_the_head_does_not_tell_of_is_left_out(tmp_path: Path) -> None:
    path = late_sound(tmp_path)
    assert len(frames_of(path)) == 300
    loop = Loop(path)
    shown = {loop.at(Fraction(k, 5)).pts for k in range(150)}  # two turns and a half
    loop.close()
    assert len(shown) == 60


def test_one_line_errors(tmp_path: Path) -> None:
    def made(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    rng = np.random.default_rng(0)
    whole = make_video(tmp_path / "whole.mp4").read_bytes()
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as out:
        stream = out.add_stream("aac", rate=48000, layout="mono")
        part = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        part.sample_rate = 48000
        out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    cases = {
        tmp_path / "none.mp4": "no such file",
        tmp_path / "whole.mp4" / "in.mp4": "no such file",
        tmp_path: "is a folder",
        Path("/dev/null"): "is a device",
        made("empty.mp4", b""): "is empty",
        made("noise.mp4", rng.integers(0, 256, 30000, dtype=np.uint8).tobytes()): "is not a video or a picture",
        made("words.txt", b"hello\nworld\n" * 50): "is not a video or a picture",
        made("words.mp4", b"hello\nworld\n" * 50): "is not a video or a picture",
        made("cut.mp4", whole[: len(whole) // 2]): "has no index: it was cut off",
        made("phone.heic", b"\0\0\0\x18ftypheic" + bytes(200)): "is a HEIC picture",
        made("noise.png", b"\x89PNG\r\n\x1a\n" + bytes(100)): "is damaged, or not a picture",
        made("noise.jpg", b"\xff\xd8\xff\xe0" + bytes(100)): "is damaged, or not a picture",
        sound: "holds sound but no video",
    }
    for path, text in cases.items():
        with pytest.raises(InputError) as caught:
            open_source(path)
        message = str(caught.value)
        assert str(path) in message and text in message
        assert "\n" not in message and "Errno" not in message and "avcodec" not in message


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of POSIX")
def test_no_permission(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", frames=2)
    path.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(InputError, match=r"a\.mp4 may not be read: check its permissions"):
            open_source(path)
    finally:
        if root:
            os.seteuid(0)


def test_pictures_that_cannot_be_decoded_at_all(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4")
    data = bytearray(path.read_bytes())
    begin, end = data.find(b"mdat") + 4, data.find(b"moov") - 4
    data[begin:end] = b"\x01" * (end - begin)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"holds no picture that can be decoded"):
        open_source(path)


def test_cut_off_matroska(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make_video(tmp_path / "a.mkv", frames=200, options={"g": "10", "crf": "10"})
    whole = frames_of(path)
    assert not caplog.records
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    frames = frames_of(path)
    assert 80 < len(frames) < 160
    assert np.array_equal(frames[50].planes[0], whole[50].planes[0])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and record.name == "rtbg"
    assert record.getMessage().startswith(f"{path} is damaged after ")
    assert float(record.getMessage().split()[4]) == pytest.approx(len(frames) / 25, abs=0.3)


def test_cut_off_mp4(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream("libx264", rate=25, options={"g": "10"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for k in range(50):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(*SIZE, k), format="rgb24")))
        out.mux(stream.encode(None))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    assert 15 < len(frames_of(path)) < 35
    (record,) = caplog.records
    assert "is damaged after" in record.getMessage()


def test_damage_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = noisy(make_video(tmp_path / "a.mp4", frames=60, options={"g": "10"}))
    frames = frames_of(path)
    assert len(frames) > 20
    assert frames[-1].seconds > 2
    assert [r.getMessage().split(" after ")[0] for r in caplog.records] == [f"{path} is damaged"]


@pytest.mark.parametrize("name", ["a:b.mp4", "a%03d.gif", "naïve 日本.mkv", "concat:x.mp4", "-i.mp4"])
def test_names(tmp_path: Path, name: str) -> None:
    codec = {"codec": "gif", "pix_fmt": "rgb8"} if name.endswith("gif") else {}
    plain = make_video(tmp_path / f"plain{Path(name).suffix}", frames=3, **codec)  # type: ignore[arg-type]
    path = plain.rename(tmp_path / name)
    assert len(frames_of(path)) == 3
    assert open_source(str(path)).info.path == path
