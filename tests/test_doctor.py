"""The doctor: each finding on made-up and on this system, the report's shape, the exit code. What needs a camera or a
virtual camera is tested in the virtual machine of tests/camera_vm."""

from __future__ import annotations

import errno
import importlib.util
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from rtbg import doctor, loopback, native, v4l2, webcam
from rtbg import doctor_system as system
from rtbg.cameras import Camera, list_cameras
from rtbg.doctor import CAMERAS, ENGINE, LOOP, SPEED, VIRTUAL, Finding, report, verdict
from rtbg.doctor_system import NOTE, OK, PROBLEM, Answer
from rtbg.options import Options
from rtbg.v4l2 import Format, FrameSize
from tests import webcam_parts

ROOT = Path(__file__).parent.parent
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc and /sys")

# -- report --

WELL = [
    Finding(CAMERAS, OK, "Logi (/dev/video0)"),
    Finding(VIRTUAL, OK, "rtbg"),
    Finding(ENGINE, OK, "OpenVINO CPU"),
    Finding(LOOP, OK, "fine"),
]


def without(area, text="none", fix=()):
    return [f if f.area != area else Finding(area, PROBLEM, text, fix) for f in WELL]


def test_the_report_is_aligned_and_80_columns_wide_but_for_commands():
    long = "word " * 40
    findings = [
        Finding(CAMERAS, OK, long),
        Finding(CAMERAS, NOTE, "another"),
        Finding("kernel module", PROBLEM, long, ("sudo " + "x" * 120, "prose " * 30)),
    ]
    lines = report(findings).splitlines()
    assert max(len(line) for line in lines if "$ " not in line) <= 80
    assert [line for line in lines if "$ sudo" in line] == [" " * 24 + "$ sudo " + "x" * 120]
    first = lines.index("") + 1
    column = lines[first].index("word")
    body = [line for line in lines[first:] if line.startswith(" " * column)]
    assert len(body) > 8 and all(line[column] != " " or line[column + 2] != " " for line in body)
    assert lines[first].startswith("cameras        OK       word")
    assert any(line.split() == ["note", "another"] for line in lines), "an area is named once"


def test_the_report_keeps_every_word():
    text = "a-hyphenated /dev/video10 thing, " * 9
    assert " ".join(text.split()) in " ".join(report([Finding("x", OK, text)]).split())


@pytest.mark.parametrize(
    ("findings", "words"),
    [
        (WELL, "All is well"),
        (without(CAMERAS), "not possible: no working camera. Files work"),
        (without(VIRTUAL), "not possible: no working virtual camera. Files work"),
        (without(ENGINE), "Nothing works"),
        (without(LOOP), "not possible: no working virtual camera."),
        ([*WELL, Finding("codecs", PROBLEM, "no av1")], "with the problems named above"),
        ([*WELL, Finding(CAMERAS, NOTE, "another one is unreadable")], "All is well"),
    ],
)
def test_the_verdict(findings, words):
    assert words in verdict(findings)


# -- this system --


def test_the_doctor_on_this_system():
    """The whole of it, as the command line runs it."""
    code = "import sys\nfrom rtbg.doctor import run_doctor\nsys.exit(run_doctor())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert "Traceback" not in done.stderr
    for area in (CAMERAS, VIRTUAL, "display", "GPU", ENGINE, "codecs"):
        assert any(line.startswith(area + " ") for line in done.stdout.splitlines()), area
    if not list_cameras() and not loopback.loopbacks():
        assert done.returncode == 1
        told = " ".join(done.stdout.split())
        assert "no working camera and no working virtual camera. Files work" in told
        if sys.platform == "linux":
            assert "sudo modprobe v4l2loopback" in done.stdout and "v4l2loopback is not" in told


def test_the_engine_is_the_one_that_runs():
    import engines

    first, second = doctor.engine()
    loaded = engines.load("balanced")
    loaded.close()
    assert first.area == ENGINE and first.state in (OK, NOTE)
    assert loaded.device in first.text and "ms a matte" in first.text and "balanced" in first.text
    assert "openvino 2" in second.text


def test_an_engine_that_cannot_run_is_a_problem(tmp_path):
    (finding,) = doctor.engine(Options(model=str(tmp_path / "nothing.onnx")))
    assert finding.state == PROBLEM and "nothing.onnx" in finding.text and finding.fix


def test_native_code_that_does_not_load_is_a_problem(monkeypatch, tmp_path):
    (finding,) = doctor.native_code()
    assert (finding.area, finding.state) == (ENGINE, OK) and native.this_target()[1] in finding.text
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    native.load.cache_clear()
    try:
        (finding,) = doctor.native_code()
    finally:
        native.load.cache_clear()
    assert finding.state == PROBLEM and "cannot be loaded" in finding.text
    assert any("rtbg.native.build" in line for line in finding.fix)


def test_engine_device_and_threads_are_those_asked_for():
    first, _ = doctor.engine(Options(engine="onnxruntime", threads=1))
    assert "ONNX Runtime" in first.text
    (finding,) = doctor.engine(Options(engine="openvino", device="cuda"))
    assert finding.state == PROBLEM and "cuda" in finding.text


@pytest.mark.parametrize(
    ("model", "seconds", "states", "fix"),
    [
        ("balanced", 0.05, {ENGINE: NOTE}, "--model fast, or a lower --fps"),
        ("fast", 0.05, {ENGINE: NOTE}, "a lower --fps"),
        ("balanced", 0.6, {ENGINE: NOTE, SPEED: PROBLEM}, "--model fast, or a quicker computer"),
        ("fast", 0.6, {ENGINE: NOTE, SPEED: PROBLEM}, "a quicker computer"),
    ],
)
def test_a_slow_engine_is_told_and_one_that_is_too_slow_to_show_anything_is_a_problem(
    monkeypatch, model, seconds, states, fix
):
    """A live run drops what is older than half a second: with such an engine there is the card and nothing else."""
    import engines

    class Slow:
        spec, device = engines.ModelSpec(model, ROOT, ((208, 112),)), "a slow one"

        def infer(self, feeds: object) -> None:
            time.sleep(seconds)

        def close(self) -> None: ...

    monkeypatch.setattr(engines, "load", lambda *_, **__: Slow())
    found = [f for f in doctor.engine(Options(model=model)) if not f.text.startswith("installed")]
    assert {f.area: f.state for f in found} == states and found[-1].fix == (fix,)
    possible = "All is well" in verdict([*WELL, *found])
    assert possible == (SPEED not in states)
    if not possible:
        assert "not possible: too slow a processor. Files work" in verdict([*WELL, *found])


def test_an_engine_is_found_under_each_of_its_packages_names():
    (installed,) = [f.text for f in doctor.engine(Options(model="fast")) if f.text.startswith("installed: ")]
    for name, packages in (("tensorrt", {"tensorrt", "tensorrt-rtx"}), ("openvino", {"openvino"})):
        here = {p for p in packages if importlib.util.find_spec(p.replace("-", "_"))}
        assert (f"{name} no" in installed) == (not here) and all(f"{p} " in installed for p in here)


def test_every_codec_opens():
    (finding,) = doctor.codecs()
    assert finding.state == OK
    assert finding.text.startswith("h264, hevc, av1, vp9, prores, ffv1 ")


@linux
def test_no_virtual_camera_is_a_problem():
    if loopback.loopbacks():
        pytest.skip("there is a virtual camera here")
    assert [f.state for f in doctor.virtual_cameras()] == [PROBLEM]


# -- cameras --


def camera(name="Logi", *, error=0, formats=(), driver="uvcvideo", path="/dev/video77"):
    return Camera(name, path, 77, "v4l2", driver, "usb-1", tuple(formats), error)


MJPG = Format("MJPG", "Motion-JPEG", True, (FrameSize((1280, 720), (1280, 720), rates=(Fraction(30), Fraction(15))),))
YUYV = Format("YUYV", "YUYV 4:2:2", False, (FrameSize((1280, 720), (1280, 720), rates=(Fraction(10),)),))


@linux
def test_a_camera_is_told_with_the_mode_it_is_asked_for():
    (finding,) = doctor.cameras([camera(formats=(YUYV, MJPG))])
    assert finding.state == OK
    assert finding.text.startswith("Logi (/dev/video77): gives 1280x720 at 30 as mjpeg (of YUYV, MJPG;")


@linux
def test_no_camera_is_a_problem_and_one_that_works_is_enough():
    denied = camera("Locked", error=13)
    assert [f.state for f in doctor.cameras([])] == [PROBLEM]
    (finding,) = doctor.cameras([denied])
    assert finding.state == PROBLEM and finding.text.endswith("may not be opened")
    assert [f.state for f in doctor.cameras([denied, camera(formats=(MJPG,))])] == [NOTE, OK]


@linux
def test_what_to_do_about_a_camera_is_a_command_of_its_own():
    lines = report(doctor.cameras([camera("Integrated Camera: Integrated C", error=13)])).splitlines()
    told = " ".join(" ".join(lines).split())
    assert "Integrated Camera: Integrated C (/dev/video77) may not be opened" in told
    assert [line.strip() for line in lines if line.lstrip()[:2] in ("$ ", "> ")] == [
        "$ sudo usermod -aG video $USER",
        "> log out and in again",
    ]


@linux
def test_our_own_virtual_camera_is_no_camera():
    assert [f.state for f in doctor.cameras([camera("rtbg", driver="v4l2 loopback")])] == [PROBLEM]


@linux
@pytest.mark.parametrize(
    ("can_output", "writers", "state"),
    [(False, [], OK), (True, [], PROBLEM), (True, [loopback.Holder(7, "obs", "w")], OK)],
    ids=["exclusive, fed", "nobody feeds it", "not exclusive, fed"],
)
def test_another_programs_virtual_camera_is_a_camera_while_it_is_fed(monkeypatch, can_output, writers, state):
    other = camera("OBS", driver="v4l2 loopback", formats=(MJPG,))
    known = v4l2.Device(other.path, "OBS", other.driver, other.bus, True, can_output, 77)
    monkeypatch.setattr(v4l2, "device", lambda path: known)
    monkeypatch.setattr(loopback, "holders", lambda path: writers)
    assert [f.state for f in doctor.cameras([other])] == [state]


def taken(monkeypatch, opener, of=None):
    """What the doctor says of a camera that is opened so."""
    made = webcam_parts.source(opener, of=of)
    asked = []
    monkeypatch.setattr(webcam, "open_camera", lambda spec, options: asked.append((spec, options.size)) or (made, ""))
    (finding,) = doctor.picture(Options(size="320x240"), "Test")
    assert asked == [("Test", "320x240")]
    return finding


def test_a_camera_that_gives_a_picture_is_well(monkeypatch):
    finding = taken(monkeypatch, webcam_parts.lavfi("testsrc=size=320x240:rate=30,format=yuyv422,realtime"))
    assert finding == Finding(CAMERAS, OK, "a picture came from Test Cam: 320x240 at 30, YUYV")


def test_a_camera_that_another_program_uses_is_a_problem(monkeypatch):
    """It answers every question, and only refuses to send."""
    monkeypatch.setattr(doctor, "_PICTURE_SECONDS", 0.3)

    def opener(*_):
        raise OSError(errno.EBUSY, "busy")

    finding = taken(monkeypatch, opener, webcam_parts.camera("/dev/video77"))
    busy = "Test Cam (/dev/video77) is in use by another program"
    assert finding == Finding(CAMERAS, PROBLEM, busy, ("close that",))
    assert "not possible: no working camera" in verdict([*WELL, finding])


def test_a_silent_camera_is_a_problem(monkeypatch):
    released = threading.Event()

    def opener(*_):
        released.wait(20)
        raise OSError(errno.EIO, "given up")

    monkeypatch.setattr(v4l2, "open_descriptors", lambda path: released.set() or [])  # it is woken to be closed
    finding = taken(monkeypatch, opener)
    assert finding.state == PROBLEM and finding.text == "Test Cam sends no picture"
    assert finding.fix == ("is it asleep, or what feeds it stopped?",)


def test_a_camera_that_there_is_not_is_a_problem(monkeypatch):
    monkeypatch.setattr("rtbg.cameras.list_cameras", lambda **_: [camera(formats=(MJPG,))])
    (finding,) = doctor.picture(spec="Nikon")
    assert finding.state == PROBLEM and "no camera 'Nikon'" in finding.text


@linux
@pytest.mark.parametrize(("spec", "code"), [("", 0), ("Logi", 0), ("Locked", 1), ("Nikon", 1)])
def test_the_camera_that_would_be_used_decides(monkeypatch, capsys, spec, code):
    """Others may be as they like."""
    logi, locked = camera(formats=(MJPG,)), camera("Locked", error=13, path="/dev/video78")
    written = []
    monkeypatch.setattr(doctor, "list_cameras", lambda: [logi, locked])
    monkeypatch.setattr("rtbg.cameras.list_cameras", lambda **_: [logi, locked])
    monkeypatch.setattr(doctor, "virtual_cameras", lambda vcam, webcam: written.append(webcam) or [])
    for name in ("loop_test", "engine", "native_code", "codecs"):
        monkeypatch.setattr(doctor, name, lambda *_: [])
    monkeypatch.setattr(system, "gpu", list)

    def opened(given, **_):
        return webcam_parts.source(webcam_parts.lavfi("testsrc,realtime"), of=given)

    monkeypatch.setattr(webcam, "WebcamSource", opened)
    monkeypatch.setattr(doctor, "_PICTURE_SECONDS", 0.3 if code else 30)
    assert doctor.run_doctor(Options(), spec) == code
    assert ("a picture came from Logi" in capsys.readouterr().out) == (code == 0)
    assert written == [{"Locked": locked.path, "Nikon": None}.get(spec, logi.path)]


@linux
def test_the_mode_is_that_of_the_size_asked_for():
    small = FrameSize((640, 480), (640, 480), rates=(Fraction(30),))
    both = Format("MJPG", "", True, (*MJPG.sizes, small))
    (finding,) = doctor.cameras([camera(formats=(both,))], Options(size="640x480", fps=15))
    assert "gives 640x480 at 30 as mjpeg" in finding.text


# -- messages of others --


def test_a_refusal_is_told_with_its_commands_apart():
    """As of `loopback.choose` where every virtual camera is in use."""
    state = loopback.Module(True, True, True, "0.12.7", {})
    typed = loopback.in_a_line(loopback.commands(state, "ID=debian", others=["OBS"]))
    line = f"every virtual camera is in use, /dev/video7: end one, or end all and have one more: {typed}"
    finding = doctor._told(VIRTUAL, line)
    assert finding.text == "every virtual camera is in use, /dev/video7" and finding.state == PROBLEM
    advice, now, note, later = finding.fix
    assert advice == "end one, or end all and have one more" and note == "to have it at every start"
    load = 'v4l2loopback devices=2 exclusive_caps=1,1 card_label="OBS,rtbg"'
    assert now == f"sudo modprobe -r v4l2loopback && sudo modprobe {load}"
    assert later.startswith("echo v4l2loopback | sudo tee ") and f"echo 'options {load}' | sudo tee " in later
    assert f"$ {now}" in report([finding]) and f"$ {later}" in report([finding])


@pytest.mark.parametrize(
    ("line", "text", "fix"),
    [
        ("OpenVINO is not installed: pip install openvino", "OpenVINO is not installed", ("pip install openvino",)),
        ("/dev/video7 is busy (obs, pid 3): end it, or name another", "/dev/video7 is busy (obs, pid 3)",
         ("end it, or name another",)),
        ("it ends;  just\nlike that", "it ends; just like that", ()),
    ],
)  # fmt: skip
def test_what_to_do_is_taken_from_a_message(line, text, fix):
    assert doctor._told(ENGINE, line) == Finding(ENGINE, PROBLEM, text, fix)


# -- loop test --


def clip(path: Path, color: tuple[int, int, int], size: tuple[int, int]) -> str:
    """A video of one colour, lossless; the reader takes it as it takes a device."""
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=15)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        parts = [
            np.full(n, c, np.uint8)
            for n, c in zip((1, 0.25, 0.25), color, strict=True)
            for n in [int(n * width * height)]
        ]
        picture = np.concatenate(parts).reshape(height * 3 // 2, width)
        for _ in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")))
        container.mux(stream.encode(None))
    return str(path)


READER = doctor._READER.replace('format="v4l2"', "format=None")


@pytest.mark.parametrize(
    ("color", "size", "state"),
    [
        (doctor._LOOP_COLOR, doctor.SIZE, OK),
        ((90, 190, 70), doctor.SIZE, PROBLEM),
        ((94, 70, 190), doctor.SIZE, PROBLEM),
        (doctor._LOOP_COLOR, (640, 480), PROBLEM),
    ],
)
def test_what_comes_back_is_judged(tmp_path, color, size, state):
    assert READER != doctor._READER
    answer = system.ask(READER, 60, clip(tmp_path / "clip.mkv", color, size))
    assert answer.ok, answer.reason
    assert doctor._judge("rtbg", answer, "").state == state


def test_a_reader_that_fails_is_a_problem(tmp_path):
    answer = system.ask(READER, 60, str(tmp_path / "nothing.mkv"))
    finding = doctor._judge("rtbg", answer, "")
    assert finding.state == PROBLEM and "nothing could be read back" in finding.text and "\n" not in finding.text
    assert doctor._judge("rtbg", answer, "the device is gone").text == "the device is gone"


@linux
def test_a_loop_test_that_fails_says_how_to_load_the_module_anew(monkeypatch):
    """Of a camera that takes every picture and gives none back."""
    from rtbg.sinks import virtual_camera

    class Swallows:
        description, path = "rtbg (/dev/video7)", "/dev/video7"

        def __init__(self, *_: object, **__: object) -> None: ...

        def write(self, frame: object) -> None: ...

        def abort(self) -> None: ...

    monkeypatch.setattr(virtual_camera, "VirtualCamera", Swallows)
    monkeypatch.setattr(system, "ask", lambda *_: Answer(False, "", "no answer within 60 s"))
    (finding,) = doctor.loop_test()
    assert (finding.area, finding.state) == (LOOP, PROBLEM) and "no answer within 60 s" in finding.text
    assert finding.fix[1:] == (
        "sudo modprobe -r v4l2loopback",
        'sudo modprobe v4l2loopback exclusive_caps=1 card_label="rtbg"',
    )


@linux
def test_the_loop_test_without_a_device_is_a_problem_of_the_virtual_camera():
    if loopback.loopbacks() or v4l2.devices():
        pytest.skip("there are video devices here")
    (finding,) = doctor.loop_test()
    assert (finding.area, finding.state) == (VIRTUAL, PROBLEM)
