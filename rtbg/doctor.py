"""`rtbg --doctor`: looks at everything that a live run needs, tries what can be tried, and says what to type.

Used by the command line. Areas, in this order: cameras, virtual camera, kernel module, Secure Boot, permissions,
display, GPU, engine, codecs, loop test; `rtbg.doctor_system` has those that ask the system only. Memory: the network
and a few pictures.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from rtbg import doctor_system as system
from rtbg import loopback, native, v4l2
from rtbg.cameras import OWN, Camera, choose_mode, find_camera, list_cameras, why_not
from rtbg.doctor_system import NOTE, OK, PROBLEM, Finding
from rtbg.errors import OutputError, RtbgError, UsageError
from rtbg.frame import LIMITED, SMPTE170M, Array, Color, Frame
from rtbg.options import ENGINES, Options, size_of
from rtbg.paths import is_file
from rtbg.progress import say, show
from rtbg.protocols import Sink
from rtbg.threads import engine_threads, ordinary_priority
from rtbg.version import __version__

__all__ = ["Finding", "examine", "report", "run_doctor"]

# What a live run cannot do without, and what there is where it does.
CAMERAS, VIRTUAL, ENGINE, SPEED, LOOP = "cameras", "virtual camera", "engine", "speed", "loop test"
NEEDED = {
    CAMERAS: "no working camera",
    VIRTUAL: "no working virtual camera",
    LOOP: "no working virtual camera",
    SPEED: "too slow a processor",
    ENGINE: "no engine",
}

_WIDTH = 80
_COMMAND = re.compile("(sudo|echo|pip) ")
# Between the steps of an advice that is one line. A camera's own name may hold a colon.
_STEP = re.compile("(?:: |, then:? )(?=sudo |echo |pip )|(?:, then|;) (?=log out|to have )")
SIZE, RATE = (1280, 720), 30  # of a usual run; the loop test's too, as a reader that stays holds the camera to it
_PICTURE_SECONDS = 5.0  # for the camera's first
_PACKAGES = {  # of engines that come as several, in the order in which they are looked for
    "tensorrt": ("tensorrt", "tensorrt-rtx"),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"),
}
_LOOP_RATE = 15
_LOOP_COLOR = (90, 70, 190)  # of no picture that anybody would take for the test's by chance
_LOOP_SECONDS = 60.0  # for a reader on a slow machine; it stops as soon as it has its pictures
# Reads in a process of its own, as another program would, since a read of a silent device blocks for ever.
_READER = """
import sys
import av
import numpy as np
path, wanted = sys.argv[1], 5
with av.open(path, format="v4l2") as container:
    for number, frame in enumerate(container.decode(video=0)):
        if number == wanted:
            break
planes = frame.reformat(format="yuv420p").to_ndarray()
w, h = frame.width, frame.height
y, u, v = np.split(planes.reshape(-1), [w * h, w * h * 5 // 4])
print(w, h, *(round(float(p.mean()), 1) for p in (y, u, v)), round(float(max(p.std() for p in (y, u, v))), 1))
"""


def examine(options: Options | None = None, spec: str = "") -> list[Finding]:
    """Looks at everything, some seconds long. options: what a live run is to be tried with: size, fps, vcam ("none":
    the one that would be taken), model, engine, device, precision, threads. spec: its camera, as of `--webcam`. Takes
    one picture of that, and shows a plain colour on the virtual camera, where there is one that nobody writes to.
    Raises nothing but what is a fault of rtbg itself."""
    options = options or Options()
    vcam = None if options.vcam == "none" else options.vcam
    known = list_cameras()
    webcam = _webcam(known, spec)
    seen = cameras(known, options)
    if is_file(spec):  # it stands in for a camera
        seen = [replace(f, state=NOTE) if f.state == PROBLEM else f for f in seen]
    if not any(f.state == PROBLEM for f in seen):
        seen += picture(options, spec)
    virtual = virtual_cameras(vcam, webcam)
    tried = [] if any(f.state == PROBLEM for f in virtual) else loop_test(vcam, webcam)
    found = [*seen, *virtual, *(f for f in tried if f.area == VIRTUAL)]
    if sys.platform == "linux":
        found += [*system.module(), *system.permissions(v4l2.devices())]
    found += [*system.display(), *system.gpu(), *engine(options), *native_code(), *codecs()]
    found += [f for f in tried if f.area == LOOP]
    return found


def report(findings: Sequence[Finding]) -> str:
    """The findings as plain text for a terminal, 80 columns wide but for commands, which stay in one piece."""
    lines = [*textwrap.wrap(f"rtbg {__version__}, Python {platform.python_version()}, {_system()}", _WIDTH), ""]
    left = max(len(f.area) for f in findings) + 2 if findings else 0
    indent, previous = " " * (left + 9), ""
    for finding in findings:
        head = f"{'' if finding.area == previous else finding.area:{left}}{finding.state:9}"
        previous = finding.area
        lines += textwrap.wrap(
            finding.text, _WIDTH, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False
        )
        for line in finding.fix:
            if _COMMAND.match(line):
                lines.append(f"{indent}$ {line}")
            else:
                lines += textwrap.wrap(line, _WIDTH, initial_indent=indent + "> ", subsequent_indent=indent + "  ")
    return "\n".join([*lines, "", *textwrap.wrap(verdict(findings), _WIDTH)])


def verdict(findings: Sequence[Finding]) -> str:
    """What works, in a sentence or two."""
    missing = {NEEDED[f.area]: None for f in findings if f.area in NEEDED and f.state == PROBLEM}
    if NEEDED[ENGINE] in missing:
        return "Nothing works until an engine runs the network."
    if missing:
        return f"A live run is not possible: {' and '.join(missing)}. Files work: rtbg in.mp4 -o out.mp4"
    if any(f.state == PROBLEM for f in findings):
        return "A live run is possible, with the problems named above: rtbg --webcam"
    called = '"OBS Virtual Camera"' if sys.platform in ("win32", "darwin") else "rtbg"
    return f"All is well: rtbg --webcam --bg beach.jpg, then choose {called} as the camera in your video call."


def run_doctor(options: Options | None = None, spec: str = "") -> int:
    """Prints the report; returns the exit code: 1 if a live run is not possible, else 0. Takes what `examine`
    takes. Raises OutputError where stdout cannot be written."""
    say("rtbg: looking at cameras, engines and codecs ...")
    findings = examine(options, spec)
    show(report(findings))
    return int(any(f.area in NEEDED and f.state == PROBLEM for f in findings))


def _told(area: str, message: object, *, state: str = PROBLEM) -> Finding:
    """A finding of a message of one line: what is wrong, a colon, what to do, whose commands get lines of their own."""
    text = " ".join(str(message).split())
    wrong, colon, advice = text.rpartition(": ") if area == CAMERAS else text.partition(": ")
    if not colon:
        return Finding(area, state, text)
    return Finding(area, state, wrong, tuple(filter(None, _STEP.split(advice))))


def _system() -> str:
    pretty = re.search("^PRETTY_NAME=[\"']?([^\"'\n]*)", loopback.os_release(), re.MULTILINE)
    return f"{pretty[1] if pretty else platform.system()}, {platform.release()}, {platform.machine()}"


# -- cameras --


def cameras(known: Sequence[Camera], options: Options | None = None) -> list[Finding]:
    """Each camera, and the mode it would be asked for."""
    found = [_camera(c, options or Options()) for c in known if not _is_silent(c)]
    if not found:
        fix = ("plug one in or switch it on; a virtual machine or a container must be given it",)
        return [Finding(CAMERAS, PROBLEM, "there is none", fix)]
    if not any(f.state == OK for f in found):  # of no matter beside a camera that works, but there is none
        found = [replace(f, state=PROBLEM) for f in found]
    return found


def picture(options: Options | None = None, spec: str = "") -> list[Finding]:
    """Whether the camera that would be used gives one, which alone tells: one that another program uses answers all
    questions."""
    from rtbg.webcam import try_camera

    try:
        gives = try_camera(spec, options or Options(), _PICTURE_SECONDS)
    except RtbgError as exc:
        return [_told(CAMERAS, str(exc).removesuffix("rtbg keeps trying").rstrip("; "))]
    return [Finding(CAMERAS, OK, f"a picture came from {gives}")]


def _is_silent(camera: Camera) -> bool:
    """Whether it is a virtual camera that nobody writes to, or our own."""
    if camera.is_own or camera.api != "v4l2":
        return camera.is_own
    return camera.is_loopback and loopback.free(v4l2.device(camera.path))


def _camera(camera: Camera, options: Options) -> Finding:
    if camera.error:
        return _told(CAMERAS, why_not(camera, camera.error), state=NOTE)
    where = f"{camera.name} ({camera.path})" if camera.api == "v4l2" else camera.name
    size = size_of(options.size) if options.size else SIZE
    mode = choose_mode(camera, size, Fraction(options.fps or RATE).limit_denominator(1001))
    text = f"{where}: gives {mode.size[0]}x{mode.size[1]} at {float(mode.rate):.4g}"
    text += f" as {mode.format}" if mode.format else ", not known before it is open"
    offered = [f.fourcc for f in camera.formats]
    if len(offered) > 1:
        text += f" (of {', '.join(offered)}; rtbg --list-cameras shows all)"
    if camera.api == "v4l2":
        users = [h for h in loopback.holders(camera.path) if h.access != "w"]
        text += f"; also open in another program{loopback.in_brackets(users)}" if users else ""
    return Finding(CAMERAS, OK, text)


def _webcam(known: Sequence[Camera], spec: str) -> str | None:
    """The path of the camera that would be used, which is never written to."""
    try:
        return find_camera(spec, known).path
    except RtbgError:
        return None


# -- the virtual camera --


def virtual_cameras(vcam: str | None = None, webcam: str | None = None) -> list[Finding]:
    """The virtual cameras and who holds them, the one that would be written to first."""
    try:
        import pyvirtualcam  # noqa: F401
    except ImportError as exc:
        return [Finding(VIRTUAL, PROBLEM, f"pyvirtualcam does not start: {exc}", ("pip install pyvirtualcam",))]
    if sys.platform != "linux":
        return _elsewhere(vcam)
    known = loopback.loopbacks()
    if not known:
        return [Finding(VIRTUAL, PROBLEM, "there is none", ("see kernel module, below",))]
    try:
        chosen = loopback.choose(vcam, label=OWN, avoid=webcam).path
    except (OutputError, UsageError) as exc:
        chosen = ""
        found = [_told(VIRTUAL, exc)]
    else:
        found = []
    for device in sorted(known, key=lambda d: d.path != chosen):
        text, good = f"{device.name} ({device.path})", False
        if device.error:
            text += f" cannot be opened: {os.strerror(device.error)}"
        elif loopback.hidden(device):
            text += " was loaded without exclusive_caps=1: browsers will not list it"
        else:
            good = loopback.free(device)
            text += " is free" if good else " is in use"
        text += loopback.in_brackets(loopback.holders(device.path))
        if device.path == chosen and OWN not in device.name.lower():
            text += f'; choose "{device.name}" in the video call, as none is named {OWN}'
        found.append(Finding(VIRTUAL, OK if good and device.path == chosen else NOTE, text))
    if os.geteuid() != 0:
        found.append(Finding(VIRTUAL, NOTE, "programs of other users are not seen here: sudo rtbg --doctor shows them"))
    return found


def _elsewhere(vcam: str | None) -> list[Finding]:
    """On Windows and macOS opening the camera tells."""
    from rtbg.sinks.virtual_camera import VirtualCamera

    try:
        camera = VirtualCamera(SIZE, _LOOP_RATE, device=vcam)
    except RtbgError as exc:
        return [_told(VIRTUAL, exc)]
    camera.close()
    return [Finding(VIRTUAL, OK, camera.description)]


def loop_test(vcam: str | None = None, webcam: str | None = None) -> list[Finding]:
    """Writes pictures of one colour to the virtual camera, reads them back as another program would, compares."""
    if sys.platform != "linux":
        return [Finding(LOOP, NOTE, "not done on this system: look at rtbg's picture in a video call")]
    from rtbg.sinks.virtual_camera import VirtualCamera

    try:
        camera = VirtualCamera(SIZE, _LOOP_RATE, device=vcam, avoid=webcam)
    except RtbgError as exc:
        return [_told(VIRTUAL, exc)]
    try:
        answer, trouble = _while_written(camera, lambda: system.ask(_READER, _LOOP_SECONDS, camera.path))
    finally:
        camera.abort()
    finding = _judge(camera.description, answer, trouble)
    if finding.state == PROBLEM and not finding.fix:
        finding = replace(finding, fix=_anew(camera.path))
    return [finding]


def _anew(path: str) -> tuple[str, ...]:
    """What to do where a virtual camera does not give what was written to it."""
    others = [d.name for d in loopback.loopbacks() if d.path != path and OWN not in d.name.lower()]
    load = f"sudo modprobe v4l2loopback {loopback.options(others)}"
    return ("end the programs that use it, and load its kernel module anew", loopback.UNLOAD, load)


def _while_written(camera: Sink, act: Callable[[], system.Answer]) -> tuple[system.Answer, str]:
    """(what `act` returned while a thread wrote to the camera, why the writing stopped early, if it did)."""
    stop, trouble = threading.Event(), []
    width, height = SIZE
    shapes = ((height, width), (height // 2, width // 2), (height // 2, width // 2))
    planes: tuple[Array, ...] = tuple(np.full(s, c, np.uint8) for s, c in zip(shapes, _LOOP_COLOR, strict=True))
    frame = Frame(planes, 0, Fraction(1, 1_000_000), Color(matrix=SMPTE170M, range=LIMITED))

    def write() -> None:
        try:
            while not stop.wait(1 / _LOOP_RATE):
                camera.write(frame)
        except OutputError as exc:
            trouble.append(str(exc))

    thread = threading.Thread(target=write, name="rtbg-doctor")
    thread.start()
    try:
        time.sleep(2 / _LOOP_RATE)  # a reader that comes before the first picture finds no camera
        return act(), "".join(trouble)
    finally:
        stop.set()
        thread.join()


def _judge(where: str, answer: system.Answer, trouble: str) -> Finding:
    if trouble:
        return _told(LOOP, trouble)
    if not answer.ok:
        return Finding(LOOP, PROBLEM, f"{where}: nothing could be read back: {answer.reason}")
    width, height, y, u, v, spread = (float(n) for n in answer.text.split())
    if (width, height) != SIZE:
        return Finding(LOOP, PROBLEM, f"{where}: pictures of {width:.0f}x{height:.0f} came back")
    off = max(abs(a - b) for a, b in zip((y, u, v), _LOOP_COLOR, strict=True))
    if off > 2 or spread > 2:
        return Finding(LOOP, PROBLEM, f"{where}: other pictures came back: {answer.text}, not {_LOOP_COLOR}")
    return Finding(LOOP, OK, f"{where}: pictures come back with the right size and colour")


# -- engine and codecs --


def engine(options: Options | None = None) -> list[Finding]:
    """Which engine would run the network, and how fast; what else is installed."""
    import engines
    from rtbg import live

    options = options or Options()
    model, threads = options.model, options.threads or engine_threads()
    try:
        running = engines.load(
            model, engine=options.engine, device=options.device, threads=threads, precision=options.precision
        )
    except engines.EngineError as exc:
        return [_told(ENGINE, exc)]
    try:
        width, height = engines.nearest_size(running.spec.sizes, 1280, 720)
        picture = np.random.default_rng(0).random((1, 4, height, width), np.float32)
        times: list[float] = []
        while len(times) < 4 or (len(times) < 12 and sum(times) < 2000):
            begin = time.perf_counter()
            running.infer({"frame": picture})
            times.append(1000 * (time.perf_counter() - begin))
        took = float(np.median(times[3:]))
    except engines.EngineError as exc:
        return [_told(ENGINE, exc)]
    finally:
        running.close()
    text = f"{running.device} runs the model {model}: {took:.1f} ms a matte ({width}x{height})"
    smaller = "" if model == "fast" else "--model fast, or "
    if took > 1000 * live.PATIENCE:
        late = f"no picture would be shown: at most {live.PATIENCE:g} s may pass from the camera to the call"
        found = [Finding(ENGINE, NOTE, text), Finding(SPEED, PROBLEM, late, (f"{smaller}a quicker computer",))]
    elif took > 30:
        found = [Finding(ENGINE, NOTE, text + ", too slow for 30 a second", (f"{smaller}a lower --fps",))]
    else:
        found = [Finding(ENGINE, OK, text)]
    found.insert(1, Finding(ENGINE, NOTE, "installed: " + ", ".join(_engine_package(e) for e in ENGINES[1:])))
    return found


def native_code() -> list[Finding]:
    """Whether what is done at the matte's edge can run."""
    try:
        return [Finding(ENGINE, OK, f"native code for {native.describe()} runs the matte's edge")]
    except RtbgError as exc:
        return [_told(ENGINE, exc)]


def _engine_package(name: str) -> str:
    for package in _PACKAGES.get(name, (name,)):
        with suppress(importlib.metadata.PackageNotFoundError):
            return f"{package} {importlib.metadata.version(package).partition('-')[0]}"
    return f"{name} no"


def codecs() -> list[Finding]:
    """Which video codecs can be written."""
    import av

    from rtbg.sinks.codecs import CODECS, plan

    os.environ.setdefault("SVT_LOG", "1")  # it writes to stderr by itself; 1: errors
    good, bad = [], []
    for name, codec in CODECS.items():
        suffix = codec.suffixes[0]
        try:
            chosen = plan(suffix, codec=name, alpha=False, crf=None, preset=None, bits=8, chroma=(2, 2), threads=1)
            context: Any = av.CodecContext.create(codec.encoder, "w")
            context.width, context.height, context.pix_fmt = 320, 192, chosen.pix_fmt
            context.time_base, context.framerate = Fraction(1, 30), Fraction(30)
            context.options = chosen.options
            with ordinary_priority():
                context.open()
        except (av.FFmpegError, UsageError, ValueError) as exc:
            bad.append(f"{name} ({' '.join(str(exc).split())})")
        else:
            good.append(name)
    found = [Finding("codecs", OK, f"{', '.join(good)} can be written")] if good else []
    if bad:
        fix = ("pip install --force-reinstall av",)
        found.append(Finding("codecs", PROBLEM, f"not to be written: {', '.join(bad)}", fix))
    return found
