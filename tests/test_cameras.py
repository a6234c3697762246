"""Which camera is meant, and in which mode it is asked."""

from __future__ import annotations

import errno
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import pytest

from rtbg import cameras
from rtbg.cameras import Camera, Mode, choose_mode, describe, find_again, find_camera
from rtbg.errors import InputError, UsageError
from rtbg.frame import BT709, FULL, LIMITED, SMPTE170M, Color
from rtbg.v4l2 import Format, FrameSize, PixelFormat


def sized(width: int, height: int, *rates: int) -> FrameSize:
    return FrameSize((width, height), (width, height), rates=tuple(Fraction(r) for r in rates))


YUYV = Format("YUYV", "YUYV 4:2:2", False, (sized(640, 480, 30, 15), sized(1280, 720, 10, 5), sized(1920, 1080, 5)))
MJPG = Format("MJPG", "Motion-JPEG", True, (sized(640, 480, 30), sized(1280, 720, 30, 15), sized(1920, 1080, 30)))
C920 = Camera("HD Pro Webcam C920", "/dev/video0", 0, "v4l2", "uvcvideo", "usb-1", (YUYV, MJPG))
INTERNAL = Camera("Integrated Camera", "/dev/video2", 2, "v4l2", "uvcvideo", "usb-2", (YUYV,))
INFRARED = replace(
    INTERNAL, path="/dev/video4", index=4, formats=(Format("GREY", "8-bit grey", False, (sized(640, 360, 15),)),)
)
OBS = Camera("OBS Virtual Camera", "/dev/video8", 8, "v4l2", "v4l2 loopback", "platform:v4l2loopback-008")
OURS = Camera("rtbg", "/dev/video10", 10, "v4l2", "v4l2 loopback", "platform:v4l2loopback-010")
ALL = [C920, INTERNAL, INFRARED, OBS, OURS]


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("", C920),
        ("0", C920),
        ("2", INTERNAL),
        ("8", OBS),
        ("c920", C920),
        ("920", C920),
        ("Integrated", INTERNAL),  # two nodes of one device: its first
        ("4", INFRARED),
        ("obs virtual camera", OBS),
        ("rtbg", OURS),
        (" 10 ", OURS),
    ],
)
def test_a_camera_is_found(spec: str, found: Camera) -> None:
    assert find_camera(spec, ALL) == found


def test_a_camera_is_found_by_its_path_and_a_link_to_it(tmp_path: Path) -> None:
    real = replace(C920, path="/dev/null")
    link = tmp_path / "by-id"
    link.symlink_to("/dev/null")
    assert find_camera("/dev/null", [INTERNAL, real]) == real
    assert find_camera(str(link), [INTERNAL, real]) == real
    with pytest.raises(InputError, match=r"^/dev/video4711: no such device: there is 0 \(HD Pro"):
        find_camera("/dev/video4711", ALL)
    with pytest.raises(InputError, match=r"^/dev/zero is not a camera"):
        find_camera("/dev/zero", ALL)


def test_what_is_not_there_or_not_clear_is_one_line() -> None:
    for spec, error, match in [
        ("Logitech", InputError, r"no camera 'Logitech': there is 0 \(HD Pro Webcam C920\), 2 "),
        ("7", InputError, "no camera '7'"),
        ("cam", UsageError, "may mean several cameras: name one of them by its number: there is 0"),
    ]:
        with pytest.raises(error, match=match) as caught:
            find_camera(spec, ALL)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no camera was found: plug one in"):
        find_camera("", [])
    assert describe([]).startswith("no camera was found")


def test_without_a_name_it_is_never_our_own_camera() -> None:
    assert find_camera("", [OURS, INTERNAL]) == INTERNAL
    assert find_camera("", [OURS, OBS]) == OBS
    with pytest.raises(InputError, match="no camera but rtbg's own"):
        find_camera("", [OURS])
    other = replace(OBS, name="DroidCam", path="/dev/video9", index=9)
    with pytest.raises(InputError, match="only virtual ones"):
        find_camera("", [OBS, other, OURS])


def test_without_a_name_one_that_works_and_has_colour_goes_first() -> None:
    shut = replace(C920, error=errno.EACCES, formats=())
    assert find_camera("", [shut, INTERNAL]) == INTERNAL
    assert find_camera("", [shut]) == shut
    assert find_camera("", [INFRARED, C920]) == C920


def test_a_camera_is_found_again_under_another_number() -> None:
    moved = replace(C920, path="/dev/video6", index=6)
    twin = replace(moved, bus="usb-7", path="/dev/video1", index=1)
    assert find_again(C920, [twin, moved]) == moved
    assert find_again(C920, [twin, INTERNAL]) == twin  # in another port
    assert find_again(C920, [INTERNAL]) is None
    assert find_again(INFRARED, [INTERNAL, INFRARED]) == INFRARED
    guessed = replace(C920, name="vivid-000-vid-cap", bus="", error=errno.EACCES)
    assert find_again(guessed, [INTERNAL, C920]) == C920


def test_a_twin_that_was_there_from_the_start_is_never_taken_for_it() -> None:
    """The second webcam of its kind may look at something else."""
    twin = replace(C920, bus="usb-7", path="/dev/video1", index=1)
    chosen = find_camera("0", [C920, twin, INTERNAL])
    assert find_again(chosen, [C920, twin]) == chosen
    assert find_again(chosen, [twin, INTERNAL]) is None
    assert find_again(chosen, [replace(twin, path=C920.path, index=0)]) is None, "under its number neither"
    moved = replace(C920, bus="usb-9", path="/dev/video5", index=5)
    found = find_again(chosen, [twin, moved])
    assert found is not None and found.path == moved.path
    assert find_again(found, [twin]) is None, "nor after that"
    assert find_camera("Integrated", ALL).twins == (), "another node of the same device is none"
    assert find_camera("0", [C920, replace(twin, bus="", error=errno.EACCES)]).twins == ()


PNP, SOFT = "@device_pnp_\\\\?\\usb#vid_046d", "@device_sw_{860BB310}\\{A3FCE0F5}"
# As FFmpeg's avdevice/dshow.c and avfoundation.m list them: (name, description, kinds).
WINDOWS = [
    (SOFT, "OBS Virtual Camera", ["video"]),
    (SOFT + "2", "ManyCam", ["video"]),
    (PNP, "C920 (Pro)", ["video"]),
    ("@device_cm_{33D9A762}\\wave", "Microphone (C920)", ["audio"]),
]
MAC = [
    ("0", "OBS Virtual Camera", ["video"]),
    ("1", "FaceTime HD Camera", ["video"]),
    ("2", "Capture screen 0", ["video"]),
    ("0", "MacBook Microphone", ["audio"]),
]


def listing(monkeypatch: pytest.MonkeyPatch, system: str, devices: list[tuple[str, str, list[str]]]) -> list[Camera]:
    found = [SimpleNamespace(name=n, description=d, media_types=kinds) for n, d, kinds in devices]
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(av, "enumerate_input_devices", lambda api: found)
    return cameras.list_cameras()


def test_on_windows_what_obs_and_other_programs_show_is_no_webcam(monkeypatch: pytest.MonkeyPatch) -> None:
    """OBS's virtual camera is where rtbg's pictures go: taken for the webcam it would show itself."""
    known = listing(monkeypatch, "win32", WINDOWS)
    assert [(c.is_own, c.is_loopback) for c in known] == [(True, True), (False, True), (False, False)]
    webcam = find_camera("", known)
    assert webcam.name == "C920 (Pro)" and webcam.path == f"video={PNP}"
    assert find_camera("", known[:2]).name == "ManyCam"
    assert find_camera("obs", known).is_own, "named it is taken"
    with pytest.raises(InputError, match="no camera but rtbg's own virtual one"):
        find_camera("", known[:1])


def test_on_a_mac_neither_obs_nor_a_screen_is_the_webcam(monkeypatch: pytest.MonkeyPatch) -> None:
    known = listing(monkeypatch, "darwin", MAC)
    assert [c.name for c in known] == ["OBS Virtual Camera", "FaceTime HD Camera"]
    assert find_camera("", known).path == "1:none"
    assert listing(monkeypatch, "darwin", MAC[2:]) == [], "a Mac without a camera shows nobody its screen"


@pytest.mark.parametrize("devices", [WINDOWS[:3], []])
def test_on_windows_cameras_are_found_without_any_sound_input(
    monkeypatch: pytest.MonkeyPatch, devices: list[tuple[str, str, list[str]]]
) -> None:
    """FFmpeg's list fails there as a whole; what its input logs, piece by piece, is all the same."""

    def refuse(api: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def log(file: str, *, format: str, options: dict[str, str]) -> None:
        assert (format, options) == ("dshow", {"list_devices": "true"})
        for name, description, kinds in devices:
            for piece in (f'"{description}"', f" ({kinds[0]}", ")", "\n", f'  Alternative name "{name}"\n'):
                av.logging.log(av.logging.INFO, "dshow", piece)
        av.logging.log(av.logging.ERROR, "dshow", "Could not enumerate audio only devices (or none found).\n")
        raise av.ExitError(1, "Immediate exit requested")

    usual = listing(monkeypatch, "win32", devices)
    monkeypatch.setattr(av, "enumerate_input_devices", refuse)
    monkeypatch.setattr(av, "open", log)
    before = av.logging.get_level()
    assert cameras.list_cameras() == usual and len(usual) == len(devices)
    assert av.logging.get_level() == before


def test_where_no_bus_is_known_twins_are_not_told_apart() -> None:
    """As on macOS: one camera of a name is found again, one of two is not."""
    one, two = (replace(C920, bus="", path=str(k), index=k) for k in (0, 1))
    alone = find_camera("0", [one])
    assert find_again(alone, [two]) is not None
    assert find_again(find_camera("0", [one, two]), [replace(two, path="0", index=0)]) is None


@pytest.mark.parametrize(
    ("camera", "size", "rate", "mode"),
    [
        (C920, (1280, 720), 30, Mode((1280, 720), Fraction(30), "mjpeg")),  # raw is too slow there
        (C920, (640, 480), 30, Mode((640, 480), Fraction(30), "yuyv422")),  # raw is enough
        (C920, (1280, 720), 10, Mode((1280, 720), Fraction(10), "yuyv422")),
        (C920, (1300, 700), 30, Mode((1280, 720), Fraction(30), "mjpeg")),
        (C920, (1280, 720), 60, Mode((1280, 720), Fraction(30), "mjpeg")),  # nothing gives 60
        (INTERNAL, (1280, 720), 30, Mode((640, 480), Fraction(30), "yuyv422")),  # the rate goes before the size
        (INFRARED, (1280, 720), 30, Mode((640, 360), Fraction(15), "gray")),
        (OBS, (1280, 720), 30, Mode((1280, 720), Fraction(30))),  # says nothing
    ],
)
def test_mode(camera: Camera, size: tuple[int, int], rate: int, mode: Mode) -> None:
    assert choose_mode(camera, size, Fraction(rate)) == mode


def test_mode_of_sizes_in_steps_and_of_other_rates() -> None:
    free = Format("YU12", "", False, (FrameSize((16, 16), (1920, 1080), (8, 8), (Fraction(60), Fraction(1)), True),))
    unknown = Format("XXXX", "", False, (sized(1280, 720, 30),))
    camera = replace(OBS, formats=(unknown, free))
    assert choose_mode(camera, (642, 480), Fraction(25)) == Mode((640, 480), Fraction(25), "yuv420p")
    pal = Format("YUYV", "", False, (sized(1280, 720, 25), sized(320, 240, 30)))
    assert choose_mode(replace(OBS, formats=(pal,)), (1280, 720), Fraction(30)).size == (1280, 720)
    silent = Format("YUYV", "", False, (sized(800, 600),))
    assert choose_mode(replace(OBS, formats=(silent,)), (1280, 720), Fraction(30)) == Mode(
        (800, 600), Fraction(30), "yuyv422"
    )


def test_the_list_shows_everything() -> None:
    shut = replace(INTERNAL, error=errno.EBUSY, formats=())
    text = describe([C920, shut, OBS, OURS])
    assert "0  /dev/video0  HD Pro Webcam C920" in text
    assert "YUYV: 640x480 at 30, 15; 1280x720 at 10, 5; 1920x1080 at 5" in text
    assert "MJPG: 640x480 at 30; 1280x720 at 30, 15; 1920x1080 at 30" in text
    assert "Integrated Camera (/dev/video2) is in use by another program" in text
    assert "OBS Virtual Camera  (virtual)" in text and "rtbg  (rtbg's own virtual camera)" in text
    free = Format("YU12", "", False, (FrameSize((16, 16), (1920, 1080), (8, 8), (Fraction(60), Fraction(1)), True),))
    assert "YU12: 16x16 to 1920x1080 at 1 to 60" in describe([replace(OBS, formats=(free,))])
    assert "     YU12, NV12: 16x16 to" in describe([replace(OBS, formats=(free, replace(free, fourcc="NV12")))])
    many = Format("MJPG", "", True, tuple(sized(160 + 16 * k, 120, 30, 25 + k) for k in range(20)))
    assert max(map(len, describe([replace(C920, formats=(many,))]).splitlines())) <= 100


@pytest.mark.parametrize("api", ["v4l2", "dshow", "avfoundation"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EBUSY, errno.ENODEV, errno.EIO, errno.ENOSPC, 1094995529])
def test_every_errno_is_one_line_with_advice(api: str, number: int) -> None:
    line = cameras.why_not(replace(C920, api=api), number)
    assert line.startswith("HD Pro Webcam C920") and ":" in line and "\n" not in line


@pytest.mark.parametrize(
    ("colorspace", "encoding", "quantization", "matrix", "given"),
    [
        (8, 0, 0, SMPTE170M, LIMITED),  # sRGB, all by default: nearly every webcam
        (1, 0, 0, SMPTE170M, LIMITED),
        (3, 0, 0, BT709, LIMITED),
        (3, 1, 1, SMPTE170M, FULL),
        (8, 2, 2, BT709, LIMITED),
        (7, 0, 0, SMPTE170M, FULL),  # JPEG's
        (7, 0, 2, SMPTE170M, LIMITED),
    ],
)
def test_colour_of_raw_pictures(colorspace: int, encoding: int, quantization: int, matrix: int, given: int) -> None:
    told = PixelFormat(640, 480, "YUYV", colorspace, 1280, 614400, encoding, quantization)
    assert cameras.raw_color(told) == Color(matrix, given)


def test_this_machine_can_be_asked() -> None:
    found = cameras.list_cameras()
    assert isinstance(found, list) and all(isinstance(c, Camera) for c in found)
