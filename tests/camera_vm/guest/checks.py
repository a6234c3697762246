"""rtbg on real (virtual) cameras: runs inside the machine and prints PASS or FAIL for every check.

    ffmpeg ─clip─▶ "Fake webcam" ─▶ rtbg, its own network ─▶ "rtbg" ─▶ v4l2-ctl, ffmpeg, OpenCV, Chromium
    vivid ("unplugged" and back) ──▶

Exit status: the number of checks that failed. `checks.py WORD...` runs the parts whose names hold one of the words.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import browser
import cv2
import numpy as np
from devices import (
    HEIGHT,
    HERE,
    LOGS,
    PATIENT,
    RATE,
    SIZE,
    VCAM,
    WEBCAM,
    WIDTH,
    Expected,
    Program,
    Watcher,
    command,
    feed,
    offers,
    rgb_of,
    rtbg,
    until,
)

START = 180.0  # seconds that rtbg may take from its start to the first picture with a person
FEW = 60.0  # seconds for what is quick
passed, failed = 0, list[str]()


def check(name: str, good: object, told: object = "") -> bool:
    """Prints one line, in short where all is well; counts failures."""
    text = " ".join(str(told).split())[: 150 if good else 2000]
    print(f"[{time.monotonic():6.1f}] {'PASS' if good else 'FAIL'} {name}{f' ({text})' if text else ''}", flush=True)
    global passed
    if good:
        passed += 1
    else:
        failed.append(name)
    return bool(good)


def one_line(text: str) -> bool:
    return text.strip().count("\n") == 0 and "Traceback" not in text and text.startswith("rtbg: ")


def model() -> str:
    """The quick network; a file beside the clip is for trying another."""
    file = HERE / "model.onnx"
    return str(file) if file.exists() else "fast"


def live(name: str, camera: str, background: str) -> Program:
    words = f"--size {WIDTH}x{HEIGHT} --fps {RATE} --vcam {VCAM} --model {MODEL} --threads 1 -v".split()
    return rtbg(name, "--webcam", camera, "--bg", background, *words)


def load_modules() -> None:
    command(
        "modprobe", "v4l2loopback", "devices=2", "video_nr=10,11", "card_label=Fake webcam,rtbg", "exclusive_caps=1,1"
    )
    # One instance, one node: a webcam that captures.
    command("modprobe", "vivid", "n_devs=1", "node_types=1", "num_inputs=1", "input_types=0", "vid_cap_nr=20")


# -- the parts --


def without_devices() -> None:
    code, out, err = rtbg_now("--list-cameras")
    check("no camera: --list-cameras says so", "no camera" in (out + err).lower(), (code, out + err))
    code, out, err = rtbg_now("--doctor", "--model", MODEL)
    check("no camera: --doctor exits with 1", code == 1 and "Traceback" not in err, (code, err[-300:]))
    (LOGS / "doctor-without.txt").write_text(out)
    code, out, err = rtbg_now("--webcam")
    check("no camera: --webcam is refused in one line", code == 1 and one_line(err), (code, err))


def with_devices() -> None:
    with feed() as source:
        check("the fake webcam plays", source.runs, source.said())
        informed()


def informed() -> None:
    code, out, err = rtbg_now("--list-cameras")
    wanted = ("Fake webcam", WEBCAM, "320x240", "vivid")
    check("--list-cameras shows both cameras", code == 0 and all(w in out for w in wanted), (code, out[:600] + err))
    code, out, err = command(*PATIENT, "--doctor", "--model", MODEL, seconds=START)
    (LOGS / "doctor-with.txt").write_text(out + err)
    check("--doctor exits with 0", code == 0, (code, out[-1200:] + err[-600:]))
    good = any(line.startswith("loop test") and "OK" in line for line in out.splitlines())
    check("--doctor's loop test is OK", good, out[-300:])


def readers() -> None:
    """One after the other, each a program of its own."""
    code, out, _ = command("v4l2-ctl", "--list-devices")
    check("v4l2-ctl lists rtbg", "rtbg" in out, out if code else "")
    out = command("v4l2-ctl", "-d", VCAM, "--info", "--get-fmt-video")[1]
    named = re.search(r"Card type\s*: rtbg$", out, re.MULTILINE)
    check("v4l2-ctl: name, size and format", named and f"{WIDTH}/{HEIGHT}" in out and "YU12" in out, out)

    raw, began = Path("/tmp/v4l2.yuv"), time.monotonic()
    code, _, err = command("v4l2-ctl", "-d", VCAM, "--stream-mmap=4", "--stream-count=20", f"--stream-to={raw}")
    rate = 20 / (time.monotonic() - began)
    check("v4l2-ctl: frames arrive", code == 0 and rate > RATE / 2, f"{code}, {rate:.1f} fps")
    shows("v4l2-ctl", lambda: rgb_of(raw.read_bytes()[-WIDTH * HEIGHT * 3 // 2 :]))

    out = "".join(command("ffmpeg", "-hide_banner", "-sources", "v4l2")[1:])
    check("ffmpeg: name", f"{VCAM} [rtbg]" in out, out)
    raw = Path("/tmp/ffmpeg.rgb")
    # Passed through: else the rate that the device tells is reached by doubling pictures.
    words = f"ffmpeg -hide_banner -nostdin -f v4l2 -i {VCAM} -frames:v 5 -fps_mode passthrough"
    code, _, err = command(*words.split(), *f"-f rawvideo -pix_fmt rgb24 -y {raw}".split())
    size = re.search(r"Stream #0:0: Video: rawvideo .*?, (\d+)x(\d+)[ ,]", err)
    good = code == 0 and size and (int(size[1]), int(size[2])) == SIZE and raw.stat().st_size == 5 * WIDTH * HEIGHT * 3
    check("ffmpeg: size, frames arrive", good, "" if good else err)
    check("ffmpeg: rtbg's rate", f" {RATE} fps" in err, "" if good else err)
    shows("ffmpeg", lambda: np.fromfile(raw, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)[-1])

    capture = cv2.VideoCapture(VCAM, cv2.CAP_V4L2)
    began = time.monotonic()
    pictures = [capture.read() for _ in range(15)]
    rate = 15 / (time.monotonic() - began)
    size = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    capture.release()
    good = all(ok for ok, _ in pictures) and size == SIZE and rate > RATE / 2
    check("OpenCV: size, frames arrive", good, f"{rate:.1f} fps, {size}")
    shows("OpenCV", lambda: pictures[-1][1][..., ::-1])

    seen = browser.look("rtbg", lambda rgb: EXPECTED.look(rgb).is_picture, 240, str(LOGS / "chromium.log"))
    rgb = seen.pop("rgb", None)
    check("Chromium lists rtbg", any(label.startswith("rtbg") for label in seen.get("labels", [])), seen)
    good = seen.get("size") == list(SIZE) and seen.get("frames", 0) >= RATE and not seen.get("ended")
    check("Chromium: size, frames arrive", good, seen)
    shows("Chromium", lambda: rgb)


def shows(reader: str, picture: Callable[[], np.ndarray | None]) -> None:
    """The background where the room was, the person where the person is."""
    try:
        rgb = picture()
        assert rgb is not None, "no picture"
        (LOGS / f"{reader}.png").write_bytes(cv2.imencode(".png", rgb[..., ::-1])[1].tobytes())
        look = EXPECTED.look(rgb)
    except (AssertionError, IndexError, OSError, TypeError, ValueError) as exc:
        check(f"{reader}: person before the background", False, exc)
    else:
        check(f"{reader}: person before the background", look.is_picture, look)


def webcam_to_virtual_camera() -> None:
    source = feed()
    background = str(HERE / "background.png")
    watcher = Watcher(EXPECTED, SIZE)
    time.sleep(1)
    mark = len(watcher.looks)  # what a writer before may have left
    app = live("rtbg-1", "Fake webcam", background)
    check("the virtual camera is there", until(lambda: offers(VCAM) == "C", START), app.said()[-800:])
    check("a reader that came first sees pictures", until(lambda: len(watcher.looks) > mark + 1, FEW), watcher.now())
    check("it begins with the card", [s.is_card for s in watcher.looks[mark : mark + 2]] == [True] * 2, watcher.now())
    check("then the picture", watcher.sees(lambda s: s.is_picture, START), watcher.now() + app.said()[-800:])
    readers()
    check("rtbg does not mind that readers went", app.runs, app.said()[-800:])

    code, out, err = rtbg_now("--webcam", "Fake webcam", "--vcam", VCAM, "--size", f"{WIDTH}x{HEIGHT}")
    check("a second rtbg is refused in one line", code == 1 and one_line(err) and VCAM in err, (code, out + err))
    check("the first one goes on", watcher.sees(lambda s: s.is_picture, START), watcher.now())

    source.end(signal.SIGKILL)  # as a camera that falls silent
    covered = watcher.sees(lambda s: s.is_card, FEW)
    check("the webcam fell silent: the card", covered, watcher.now())
    mark = len(watcher.looks)
    time.sleep(5)
    silent = watcher.looks[mark:]
    good = len(silent) >= 2 * RATE and all(s.is_card for s in silent)
    check("only the card, and the virtual camera goes on", good, f"{len(silent)} pictures")
    source = feed()
    check("the webcam is back: the picture", watcher.sees(lambda s: s.is_picture, START), app.said()[-800:])

    app.end(signal.SIGKILL)
    mark = len(watcher.looks)
    app = live("rtbg-2", "Fake webcam", background)
    check(
        "killed and started again, a reader stays: the card",
        watcher.sees(lambda s: s.is_card, START),
        app.said()[-800:],
    )
    check("then the picture, to the same reader", watcher.sees(lambda s: s.is_picture, START), app.said()[-800:])
    again = watcher.looks[mark:]
    worst = max((s.camera_only for s in watcher.looks), default=1)
    check("the room was never seen", worst < 0.01, f"{len(watcher.looks)} pictures, at most {worst:.2%} of one")
    early = [s for s in again if not s.is_picture and s.card < 0.6]
    check("card or picture, nothing else", len(early) <= 2, f"{len(early)} others; {early[:1]}")

    watcher.close()
    app.end(signal.SIGKILL)
    source.end(signal.SIGKILL)


def unplugged() -> None:
    """The same after a kill without any reader, with a camera that is unplugged. Blur: its card is grey."""
    app = live("rtbg-3", "vivid", "blur")
    check("killed and started again, no reader: works", until(lambda: offers(VCAM) == "C", START), app.said()[-800:])
    watcher = Watcher(EXPECTED)
    check("vivid: grey at the start", watcher.sees(lambda s: s.is_grey, START), watcher.now())
    check("vivid: then the picture", watcher.sees(lambda s: s.grey < 0.5, START), watcher.now() + app.said()[-800:])

    held = os.open(VIVID, os.O_RDWR)  # vivid comes back as soon as nobody has it open
    command("v4l2-ctl", "-d", VIVID, "-c", "disconnect=1")
    check("unplugged: grey", watcher.sees(lambda s: s.is_grey, FEW), watcher.now() + app.said()[-800:])
    mark = len(watcher.looks)
    time.sleep(4)
    away = watcher.looks[mark:]
    good = len(away) >= 2 * RATE and all(s.is_grey for s in away)
    check("unplugged: nothing but grey, and the virtual camera goes on", good, f"{len(away)} pictures")
    os.close(held)
    check("plugged in again: the picture", watcher.sees(lambda s: s.grey < 0.5, START), app.said()[-800:])

    began = time.monotonic()
    code = app.end(signal.SIGTERM)
    told = f"{code} after {time.monotonic() - began:.1f} s"
    check("SIGTERM: exit status 0", code == 0, told + app.said()[-800:])
    figures = all(w in app.said() for w in (" fps, latency p50 ", " p99 ", "CPU ", "dropped ", "OpenVINO"))
    check("SIGTERM: the closing summary", figures, app.said()[-300:])
    check("its last picture is the card", watcher.looks and watcher.looks[-1].is_grey, watcher.now())
    check("no error in what it said", "Traceback" not in app.said() and "rror" not in app.said(), app.said()[-800:])
    watcher.close()
    check("the device can be written again", until(lambda: offers(VCAM) == "O", 5), offers(VCAM))


def rtbg_now(*words: str) -> tuple[int, str, str]:
    return command(sys.executable, "-m", "rtbg", *words, seconds=START)


VIVID = "/dev/video20"
MODEL = model()
EXPECTED = Expected()


def main(words: list[str]) -> int:
    print(f"[{time.monotonic():6.1f}] model {MODEL}", flush=True)
    parts = (without_devices, load_modules, with_devices, webcam_to_virtual_camera, unplugged)
    for part in parts:
        if not words or part is load_modules or any(w in part.__name__ for w in words):
            began, before = time.monotonic(), passed
            part()
            took = f"{time.monotonic() - began:.0f} s"
            print(f"[{time.monotonic():6.1f}] {part.__name__}: {passed - before} passed in {took}", flush=True)
    print(f"{passed} passed, {len(failed)} failed{': ' if failed else ''}{'; '.join(failed)}", flush=True)
    return len(failed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
