"""The command line as a real process, with the real shipped model on real media."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from rtbg import cli
from rtbg.version import __version__
from tests.media import make_video, picture, read_video

RTBG = [sys.executable, "-m", "rtbg"]


def rtbg(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RTBG, *map(str, args)], capture_output=True, text=True, timeout=100)


def failed(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One line, the right exit code, no traceback, the words in it."""
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def color_at(path: Path, x: int, y: int, frame: int = 0) -> np.ndarray:
    return read_video(path)[0][frame][y, x].astype(int)


def test_version_and_help_are_quick_and_light() -> None:
    assert rtbg("--version").stdout.strip() == f"rtbg {__version__}"
    shown = rtbg("--help")
    assert shown.returncode == 0
    for word in ("--bg", "--show", "--demo", "transparent", "studio"):
        assert word in shown.stdout
    code = "import sys, rtbg; print([m for m in ('torch', 'openvino', 'cv2', 'av') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_video_to_video(tmp_path: Path) -> None:
    clip = make_video(tmp_path / "in.mp4", size=(320, 192), frames=15, audio="aac")
    done = rtbg(clip, "-o", tmp_path / "out.mp4", "--bg", "#2060c0")
    assert done.returncode == 0, done.stderr
    pictures, times = read_video(tmp_path / "out.mp4")
    assert times == [Fraction(k, 25) for k in range(15)]
    # Nobody is in this clip: it is background nearly everywhere.
    share = np.mean(np.abs(pictures[7].astype(int) - (0x20, 0x60, 0xC0)).max(axis=2) <= 6)
    assert share > 0.9
    with av.open(str(tmp_path / "out.mp4")) as out:
        assert len(out.streams.audio) == 1


def test_demo_keeps_the_person(tmp_path: Path) -> None:
    done = rtbg("--demo", "--duration", "0.4", "--bg", "#ff00ff", "-o", tmp_path / "demo.mp4")
    assert done.returncode == 0, done.stderr
    pictures, _ = read_video(tmp_path / "demo.mp4")
    magenta = np.abs(pictures[5].astype(int) - (255, 0, 255)).max(axis=2) < 40
    assert 0.25 < magenta.mean() < 0.8
    assert magenta[:200, 800:860].mean() > 0.9, "the wall beside the head is background"
    h, w = magenta.shape
    assert magenta[h // 3 : 2 * h // 3, int(0.38 * w) : int(0.48 * w)].mean() < 0.1, "the person is there"


def test_still_cutout(tmp_path: Path) -> None:
    from skimage.data import astronaut

    cv2.imwrite(str(tmp_path / "photo.jpg"), astronaut()[..., ::-1])
    done = rtbg(tmp_path / "photo.jpg", "-o", tmp_path / "cutout.png", "--bg", "transparent")
    assert done.returncode == 0, done.stderr
    cut = cv2.imread(str(tmp_path / "cutout.png"), cv2.IMREAD_UNCHANGED)
    assert cut.shape == (512, 512, 4)
    assert cut[100:170, 200:250, 3].mean() > 240 and cut[:150, 312:345, 3].mean() < 30
    hidden = cut[..., 3] == 0
    assert hidden.mean() > 0.1 and cut[hidden][:, :3].max() <= 2, "nothing of the room under the transparency"


def test_matte_video(tmp_path: Path) -> None:
    done = rtbg("--demo", "--duration", "0.2", "--show", "matte", "-o", tmp_path / "m.mp4")
    assert done.returncode == 0, done.stderr
    shot = read_video(tmp_path / "m.mp4")[0][2]
    assert shot[:200, 800:860].mean() < 25 and shot[300:400, 600:680].mean() > 230


def test_several_inputs_into_a_folder(tmp_path: Path) -> None:
    one = make_video(tmp_path / "one.mp4", frames=3)
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video at all")
    cv2.imwrite(str(tmp_path / "two.png"), picture(64, 48, 0))
    done = rtbg(one, bad, tmp_path / "two.png", "-o", f"{tmp_path}/done/")
    assert done.returncode == 1 and "bad.mp4" in done.stderr
    assert sorted(p.name for p in (tmp_path / "done").iterdir()) == ["one.mp4", "two.png"]


def test_patterns_are_for_the_program_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`rtbg *.mp4 -o done/` of the help."""
    for name in ("b.mp4", "a.mp4", ".a.rtbg-7.tmp.mp4", "c[1].mp4", "d.mkv"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    asked = [Path(name) for name in ("d.mkv", "*.mp4", "c[1].mp4", "*.mov", "?.mkv")]
    assert cli._expanded(asked) == asked, "elsewhere the shell has done it"
    monkeypatch.setattr(sys, "platform", "win32")
    names = ["d.mkv", "a.mp4", "b.mp4", "c[1].mp4", "c[1].mp4", "*.mov", "d.mkv"]
    assert [str(path) for path in cli._expanded(asked)] == names
    assert cli._expanded([tmp_path / "?.mp4"]) == [tmp_path / "a.mp4", tmp_path / "b.mp4"]


def test_what_stdout_has_no_letter_for_is_no_traceback() -> None:
    """A redirected stdout on Windows is in an old code page, and a camera may have any name."""
    done = subprocess.run(
        [sys.executable, "-c", r"from rtbg.progress import show; show('0  \u30ab\u30e1\u30e9 \u00e9\n1')"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "cp1252"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.split(os.linesep.encode()) == [b"0  ??? \xe9", b"1", b""]


def test_default_output_is_beside_the_input(tmp_path: Path) -> None:
    clip = make_video(tmp_path / "in.mp4", frames=3)
    assert rtbg(clip).returncode == 0
    assert (tmp_path / "in-rtbg.mp4").exists()
    failed(rtbg(clip), 1, "exists", "-y")
    assert rtbg(clip, "-y").returncode == 0


def test_start_and_duration(tmp_path: Path) -> None:
    clip = make_video(tmp_path / "in.mp4", frames=50)
    done = rtbg(clip, "-o", tmp_path / "out.mp4", "--start", "0.4", "--duration", "0:01")
    assert done.returncode == 0, done.stderr
    assert read_video(tmp_path / "out.mp4")[1] == [Fraction(k, 25) for k in range(25)]


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    clip = make_video(tmp_path / "in.mp4", frames=2)
    out = tmp_path / "out.mp4"
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "empty.mp4").touch()
    with av.open(str(tmp_path / "sound.mp4"), "w") as sound:
        stream = sound.add_stream("aac", rate=48000)
        part = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        part.sample_rate = 48000
        sound.mux(stream.encode(part))
        sound.mux(stream.encode(None))
    failed(rtbg(tmp_path / "none.mp4", "-o", out), 1, "none.mp4")
    failed(rtbg(tmp_path / "text.mp4", "-o", out), 1, "text.mp4")
    failed(rtbg(tmp_path / "empty.mp4", "-o", out), 1, "empty")
    failed(rtbg(tmp_path / "sound.mp4", "-o", out), 1, "sound.mp4")
    failed(rtbg(clip, "-o", tmp_path / "nowhere" / "out.mp4"), 1, "nowhere")
    failed(rtbg(clip, "-o", clip, "-y"), 2, "input")
    failed(rtbg(clip, "-o", out, "--bg", "#12345"), 1, "#12345")
    failed(rtbg(clip, "-o", out, "--bg", tmp_path / "none.jpg"), 1, "none.jpg")
    failed(rtbg(clip, "-o", out, "--bg", tmp_path / "text.mp4"), 1, "text.mp4")
    failed(rtbg(clip, "-o", out, "--bg", "transparent"), 2, ".mov")
    failed(rtbg(clip, "-o", out, "--model", "nonsense"), 1, "nonsense", "balanced")
    failed(rtbg(clip, "-o", tmp_path / "out.xyz"), 2, ".xyz")
    failed(rtbg(), 2, "--demo")
    failed(rtbg(clip, clip, "-o", out), 2, "folder")
    failed(rtbg(clip, "-o", out, "--codec", "divx"), 2, "divx", "h264")
    failed(rtbg(clip, "-o", out, "--start", "nan"), 2, "nan")
    failed(rtbg(clip, "-o", out, "--edge", "blur=2"), 2, "blur=2", "feather")
    failed(rtbg(clip, "-o", out, "--edge", "shift=99"), 2, "shift=99")
    failed(rtbg(clip, "-o", out, "--smoothing", "2"), 2, "--smoothing")
    failed(rtbg(clip, "-o", out, "--lookahead", "99"), 2, "--lookahead")
    failed(rtbg("--webcam", clip, "--lookahead", "5"), 2, "--lookahead is for files")
    failed(rtbg(clip, "-o", out, "--start", "1:-5"), 2, "1:-5")
    failed(rtbg(clip, "-o", out, "--on-failure", "black"), 2, "--on-failure is for --webcam")
    failed(rtbg(clip, "-o", tmp_path / f"{'o' * 300}.mp4"), 1, "File name too long")
    failed(rtbg("--webcam", tmp_path / f"{'i' * 300}.mp4"), 1, "no such file")
    (tmp_path / "tiny.webp").write_bytes(b"RIFF\x0c\0\0\0WEBPVP8X")
    failed(rtbg(tmp_path / "tiny.webp", "-o", out), 1, "tiny.webp")
    failed(rtbg(clip, "-o", ""), 2, "-o names nothing")
    failed(rtbg(clip, "-o", f"{tmp_path}/no/folder/"), 1, "no/folder cannot be made")
    (tmp_path / "in-rtbg.mp4").write_bytes(clip.read_bytes())
    failed(rtbg(clip, tmp_path / "in-rtbg.mp4", "-y"), 2, "in-rtbg.mp4 is one of the inputs")
    assert (tmp_path / "in-rtbg.mp4").read_bytes() == clip.read_bytes()
    cv2.imwrite(str(tmp_path / "wide.png"), picture(17000, 8, 0))
    failed(rtbg(tmp_path / "wide.png", "-o", tmp_path / "wide.webp"), 1, "too large for it: use .png")
    tiff = cv2.imencode(".tiff", picture(64, 48, 0))[1].tobytes()
    (tmp_path / "cut.tiff").write_bytes(tiff[: len(tiff) // 2])
    failed(rtbg(clip, "-o", out, "--bg", tmp_path / "cut.tiff"), 1, "cut.tiff")
    cv2.imwrite(str(tmp_path / "bg.png"), picture(64, 48, 0))
    failed(rtbg(clip, "-o", tmp_path / "bg.png", "--bg", tmp_path / "bg.png", "-y"), 2, "background")
    assert not out.exists() and sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_truncated_input_writes_what_is_there(tmp_path: Path) -> None:
    clip = make_video(tmp_path / "in.mkv", size=(320, 240), frames=60)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 2 // 3])
    done = rtbg(clip, "-o", tmp_path / "out.mp4")
    assert done.returncode == 0, done.stderr
    assert 5 < len(read_video(tmp_path / "out.mp4")[0]) < 60


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    return make_video(path, size=(320, 240), frames=1500, options={"preset": "ultrafast"})


def start(*args: object, folder: Path) -> subprocess.Popen[str]:
    """An rtbg that has written something already: at high quality, so that soon more is there than a buffer takes."""
    process = subprocess.Popen([*RTBG, *map(str, args), "--crf", "1"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if any(p.name.startswith(".") and p.stat().st_size > 4096 for p in folder.iterdir()):
            return process
        time.sleep(0.02)
    raise AssertionError(f"rtbg wrote nothing: {process.stderr.read() if process.stderr else ''}")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_leaves_a_playable_file(long_clip: Path, tmp_path: Path, number: int) -> None:
    process = start(long_clip, "-o", tmp_path / "out.mkv", folder=tmp_path)
    process.send_signal(number)
    assert process.wait(30) == 130
    assert 0 < len(read_video(tmp_path / "out.mkv")[0]) < 1500
    assert [p.name for p in tmp_path.iterdir()] == ["out.mkv"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_an_interrupted_run_keeps_the_older_output(long_clip: Path, tmp_path: Path) -> None:
    (tmp_path / "out.mkv").write_bytes(b"older")
    process = start(long_clip, "-o", tmp_path / "out.mkv", "-y", folder=tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert (tmp_path / "out.mkv").read_bytes() == b"older"
    assert 0 < len(read_video(tmp_path / "out.partial.mkv")[0]) < 1500


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("wait", [0.0, 0.02, 0.2, 1.0])
def test_the_second_signal_gives_up(long_clip: Path, tmp_path: Path, wait: float) -> None:
    """While frames are still coming, and while a slow encoder is flushed: what is said is what is there."""
    process = start(long_clip, "-o", tmp_path / "out.mkv", "--preset", "veryslow", folder=tmp_path)
    process.send_signal(signal.SIGINT)
    time.sleep(wait)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    left = [p.name for p in tmp_path.iterdir()]
    if "nothing was written" in said:
        assert process.returncode == 130 and left == []
    else:  # the first signal had finished the file already
        assert process.returncode in (130, -signal.SIGINT) and left == ["out.mkv"], said
        assert len(read_video(tmp_path / "out.mkv")[0]) > 0


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("wait", [0.02, 0.08, 0.15, 0.25, 0.4])
def test_a_signal_while_starting(long_clip: Path, tmp_path: Path, wait: float) -> None:
    process = subprocess.Popen([*RTBG, long_clip, "-o", tmp_path / "out.mkv"], stderr=subprocess.PIPE, text=True)
    time.sleep(wait)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    # The first moments are Python's own, before any line of ours: it dies of the signal, or of a `site` cut short, or
    # was in a callback of its import lock, which swallows it.
    swallowed = "Exception ignored in: <function _get_module_lock" in said
    if process.returncode != -signal.SIGINT and "Fatal Python error: init" not in said and not swallowed:
        assert process.returncode == 130, said
        assert "Traceback" not in said and "error" not in said
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
@pytest.mark.parametrize("what", ["--list-cameras", "--doctor"])
@pytest.mark.parametrize("stdout", ["closed", "full", "broken"])
def test_what_is_shown_with_nowhere_to_go(what: str, stdout: str) -> None:
    """A closed or broken stdout is nobody's loss, one that refuses is told."""

    def close() -> None:
        os.close(1)

    ours, theirs = os.pipe()
    os.close(ours)
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [*RTBG, what],
            stdout=full if stdout == "full" else theirs,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
            preexec_fn=close if stdout == "closed" else None,
        )
    os.close(theirs)
    said = [line for line in done.stderr.splitlines() if "looking at" not in line]
    if stdout == "full":
        assert done.returncode == 1 and said == [
            "rtbg: error: standard output cannot be written: No space left on device"
        ]
    else:  # the doctor's code tells of this machine
        assert done.returncode in ((0,) if what == "--list-cameras" else (0, 1)) and not said


def test_quiet_and_closed_stderr(tmp_path: Path) -> None:
    clip = make_video(tmp_path / "in.mp4", frames=3)
    done = rtbg(clip, "-o", tmp_path / "quiet.mp4", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    if os.name == "posix":
        code = f"{sys.executable} -m rtbg {clip} -o {tmp_path}/closed.mp4 2>&-"
        assert subprocess.run(["sh", "-c", code], timeout=60).returncode == 0
        assert len(read_video(tmp_path / "closed.mp4")[0]) == 3
