"""Sinks: what is refused, and how a file ends: whole, interrupted or not at all, and never the old one spoiled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import pytest
from media import make_video
from sink_parts import decode, leftovers, make_frames, make_info, times, write

from rtbg.errors import OutputError, UsageError
from rtbg.sinks import open_sink
from rtbg.sinks.codecs import CODECS

# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("a.gif", {}, r"a\.gif.*\.mp4 .*\.png"),
        ("a", {}, r"must end in one of"),
        ("a.mp4", {"codec": "divx"}, "unknown codec 'divx'.*h264, hevc, av1, vp9, prores, ffv1"),
        ("a.mov", {"codec": "vp9"}, r"vp9 does not go into \.mov: use \.mp4 or \.mkv or \.webm"),
        ("a.mp4", {"codec": "prores"}, r"use \.mov or \.mkv"),
        ("a.webm", {"codec": "h264"}, r"use \.mp4 or \.mov or \.mkv"),
        ("a.mp4", {"alpha": True}, r"use \.mov \(ProRes 4444\) or \.webm \(VP9\)"),
        ("a.mov", {"alpha": True, "codec": "h264"}, r"h264 holds no transparency"),
        ("a.jpg", {"alpha": True, "still": True}, r"use \.png or \.webp"),
        ("a.png", {}, r"name an \.mp4"),
        ("a.png", {"still": True, "codec": "h264"}, "--codec is for videos"),
        ("a.mp4", {"crf": 77}, r"--crf of h264 is 0 \(best\) to 51, not 77"),
        ("a.mov", {"crf": 7, "codec": "prores"}, "prores has no --crf"),
        ("a.mp4", {"preset": "bogus"}, "--preset of h264 is one of ultrafast"),
        ("a.mkv", {"preset": "9", "codec": "ffv1"}, "ffv1 has no --preset"),
    ],
)
def test_usage_errors(tmp_path: Path, name: str, options: dict[str, Any], says: str) -> None:
    info = make_info(still=options.pop("still", False))
    with pytest.raises(UsageError, match=says) as caught:
        open_sink(tmp_path / name, info, **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.mp4", "a.png"])
def test_targets_that_are_refused(tmp_path: Path, name: str) -> None:
    info = make_info(still=True)
    path = tmp_path / name
    with pytest.raises(OutputError, match="no such folder"):
        open_sink(tmp_path / "no" / name, info)
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists: add -y to overwrite"):
        open_sink(path, info)
    (tmp_path / f"link{path.suffix}").symlink_to(path)
    for same in (path, tmp_path / "." / name, tmp_path / f"link{path.suffix}"):
        with pytest.raises(UsageError, match="is the input itself"):
            open_sink(same, make_info(still=True, path=path), overwrite=True)
    (tmp_path / f"d{path.suffix}").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        open_sink(tmp_path / f"d{path.suffix}", info, overwrite=True)
    assert path.read_bytes() == b"old" and leftovers(tmp_path) == []


# ---------------------------------------------------------------- how it ends


@pytest.mark.parametrize("codec", list(CODECS))
def test_abort_keeps_the_old_output(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.mkv"
    path.write_bytes(b"old")
    for n in (0, 5):
        info = make_info()
        sink = open_sink(path, info, codec=codec, overwrite=True)
        for frame in make_frames(info, range(n)):
            sink.write(frame)
        sink.abort()
        sink.abort()
        sink.close()
        assert path.read_bytes() == b"old" and leftovers(tmp_path) == []


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_interrupted(tmp_path: Path, name: str) -> None:
    source = make_video(tmp_path / "in.mkv", frames=50, audio="flac", size=(64, 48))
    info = make_info(path=source)
    path = tmp_path / name
    for old in (False, True):
        if old:
            path.write_bytes(b"old")
        sink = open_sink(path, info, overwrite=old)
        for frame in make_frames(info, range(10)):
            sink.write(frame)
        sink.close(interrupted=True)
        target = path.with_name(f"a.partial{path.suffix}") if old else path
        assert len(times(target)) == 10
        with av.open(str(target)) as container:
            assert container.duration == pytest.approx(400_000, abs=100_000)  # the sound ends with the pictures
        if old:
            assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("name", ["a.mp4", "a.png"])
def test_without_pictures(tmp_path: Path, name: str) -> None:
    sink = open_sink(tmp_path / name, make_info(still=True))
    with pytest.raises(OutputError, match="no picture came"):
        sink.close()
    assert list(tmp_path.iterdir()) == []


def test_target_that_appears_meanwhile_is_not_destroyed(tmp_path: Path) -> None:
    info, path = make_info(), tmp_path / "a.mp4"
    for n in range(2):
        path.unlink(missing_ok=True)
        sink = open_sink(path, info)
        for frame in make_frames(info):
            sink.write(frame)
        path.write_bytes(b"someone else's")
        with pytest.raises(OutputError, match=r"has appeared meanwhile: the result is in .*a\.partial"):
            sink.close()
        assert path.read_bytes() == b"someone else's"
        assert len(list(tmp_path.glob("a.partial*.mp4"))) == n + 1
    assert len(times(tmp_path / "a.partial-2.mp4")) == 8


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_part_takes_no_name_that_is_taken(tmp_path: Path, overwrite: bool) -> None:
    """That file may be the input, a background, or anybody's: `-y` is not about it."""
    path, source = tmp_path / "a.mkv", make_video(tmp_path / "a.partial.mkv", frames=50)
    kept = source.read_bytes()
    sink = open_sink(path, make_info(path=source), overwrite=overwrite)
    for frame in make_frames(make_info(), range(10)):
        sink.write(frame)
    path.write_bytes(b"old")
    if overwrite:
        assert sink.close(interrupted=True) == tmp_path / "a.partial-2.mkv"
    else:
        with pytest.raises(OutputError, match=r"a\.partial-2"):
            sink.close(interrupted=True)
    assert path.read_bytes() == b"old" and source.read_bytes() == kept
    assert len(times(tmp_path / "a.partial-2.mkv")) == 10


def test_symbolic_link_and_permissions_stay(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "a.mp4", tmp_path / "link.mp4"
    real.write_bytes(b"old")
    link.symlink_to(real)
    info = make_info()
    write(link, info, make_frames(info), overwrite=True)
    assert link.is_symlink() and len(times(real)) == 8
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert real.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("codec", list(CODECS))
def test_tiny(tmp_path: Path, codec: str) -> None:
    least = {"hevc": 32, "av1": 4}.get(codec, 1)
    if least > 1:
        with pytest.raises(UsageError, match=f"{codec} needs {least}x{least} at least"):
            open_sink(tmp_path / "a.mkv", make_info(width=64, height=least - 1), codec=codec)
    info = make_info(width=least, height=least, chroma=(1, 1))
    write(tmp_path / "a.mkv", info, make_frames(info, range(3)), codec=codec)
    assert len(decode(tmp_path / "a.mkv")) == 3


def test_wrong_size(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "a.mp4", make_info())
    with pytest.raises(OutputError, match="80x48 came into 64x48"):
        sink.write(make_frames(make_info(width=80))[0])
    sink.abort()


_FULL = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import numpy as np
from sink_parts import make_info, make_frames
from rtbg.errors import OutputError
from rtbg.sinks import open_sink
path, frames = Path(sys.argv[1]), int(sys.argv[2])
info = make_info(width=320, height=240, still=path.suffix == ".png")
made = make_frames(info, range(frames))
rng = np.random.default_rng(0)
for f in made:
    f.planes[0][:] = rng.integers(16, 235, f.planes[0].shape, np.uint8)
sink = open_sink(path, info, overwrite=True)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    for f in made:
        sink.write(f)
    sink.close()
except OutputError as exc:
    sink.abort()
    print(exc)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
@pytest.mark.parametrize(("name", "frames"), [("a.mp4", 60), ("a.mp4", 2), ("a.mkv", 2), ("a.png", 1)])
def test_no_space_left(tmp_path: Path, name: str, frames: int) -> None:
    """A file that may not grow ends as a full disk does: while writing (60 frames) or only at the end (2)."""
    path = tmp_path / name
    path.write_bytes(b"old")
    command = [sys.executable, "-c", _FULL, str(path), str(frames), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("no space left for") and len(done.stdout.splitlines()) == 1, done.stderr
    assert done.stderr == ""
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
