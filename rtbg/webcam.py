"""A live run from what the user asked for: opens camera, backgrounds and outputs, and hands them to `rtbg.live`.

Used by the command line (`rtbg --webcam`). Everything that can be refused is refused before the camera is opened.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from engines import EngineError, StatefulEngine, load, nearest_size
from engines.spec import find_model
from rtbg import native
from rtbg.backdrop import Backdrop, refuse_transparent
from rtbg.backgrounds import parse_background
from rtbg.cameras import find_camera
from rtbg.clock import Output
from rtbg.composite import Compositor
from rtbg.control import Control
from rtbg.errors import InputError, MattingError, NoPicture, UsageError
from rtbg.foreground import Foreground
from rtbg.frame import StreamInfo
from rtbg.keys import terminal_keys
from rtbg.live import run_live
from rtbg.matting import Matting, Refinement
from rtbg.options import Options, edge_of, size_of
from rtbg.paths import is_file, same_file
from rtbg.preview import Preview
from rtbg.progress import say
from rtbg.protocols import Sink
from rtbg.sinks import open_sink
from rtbg.sinks.microphone import Microphone
from rtbg.sinks.virtual_camera import VirtualCamera
from rtbg.sources.paced import PacedSource
from rtbg.sources.webcam import WebcamSource
from rtbg.stats import Stats, Stop
from rtbg.status import live_status, summary
from rtbg.threads import codec_threads, engine_threads
from rtbg.upsampling import Edge

SIZE, RATE = (1280, 720), 30
# What a file's name may end in; a camera's does not.
FILES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif", ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif"}
DEVICES = ("auto", "cpu", "cuda", "mps")


def open_camera(spec: str, options: Options) -> tuple[WebcamSource | PacedSource, str | None]:
    """The source that `--webcam SPEC` names, and the camera's path (None: a file stands in). The camera itself is
    opened by the first read. Raises InputError, UsageError."""
    size = size_of(options.size) if options.size else None
    if spec and is_file(spec):
        return PacedSource(spec, size=size, rate=options.fps, mirror=options.mirror), None
    try:
        camera = find_camera(spec)
    except InputError:
        if _means_a_file(spec) and not is_file(spec):
            raise InputError(f"{spec}: no such file") from None
        raise
    source = WebcamSource(camera, size=size or SIZE, rate=options.fps or RATE, mirror=options.mirror)
    return source, camera.path


def try_camera(spec: str, options: Options, seconds: float) -> str:
    """What `--webcam SPEC` gives, as people call it, once a picture of it has come. Raises NoPicture where none has
    within that time, about, and what `open_camera` raises."""
    source, _ = open_camera(spec, options)
    until = time.monotonic() + seconds
    try:
        while True:
            try:
                source.read()
                return source.obtained
            except NoPicture:
                if time.monotonic() > until:
                    raise
    finally:
        source.close()


def _means_a_file(spec: str) -> bool:
    separated = "/" in spec or (os.sep in spec)
    return (separated and not spec.startswith("/dev/")) or Path(spec).suffix.lower() in FILES


def check_network(options: Options) -> None:
    """Raises MattingError for a model, or a device, that there is not, without loading anything, and without native
    code. What this lets through is refused when the engine is opened."""
    native.load()
    try:
        find_model(options.model)
    except EngineError as exc:
        raise MattingError(str(exc)) from exc
    device = options.device.lower()
    if device.partition(":")[0] not in DEVICES and options.engine != "onnxruntime":
        raise MattingError(f"the device {options.device!r} is not known: use {', '.join(DEVICES)}")
    runs = {"openvino": "cpu", "tensorrt": "cuda"}.get(options.engine)
    if runs is not None and device not in ("auto", runs):
        raise MattingError(f"the engine {options.engine} does not run on the device {options.device!r}: use auto")


def refuse_overwriting(record: str, spec: str, backgrounds: Sequence[str], mic: str | None) -> None:
    """Raises UsageError where the recording would take the place of a file that is read meanwhile."""
    behind = [str(path) for path in (parse_background(b).path for b in backgrounds) if path is not None]
    for name in (spec, *behind, mic or ""):
        if is_file(record) and same_file(record, name):
            raise UsageError(f"the recording {record} is a file that is read: choose another name with -o")


def matting_factory(options: Options, info: StreamInfo) -> Callable[[], Matting]:
    """What opens a matting with an engine of its own, as `run_live` takes it. No look-ahead: that would be delay.

    The engine has run once by then: some compile at their first picture, for seconds, which is not to be in the call.
    What it answers to a black picture is of no matter."""
    refinement = Refinement(smoothing=options.smoothing, edge=Edge(**edge_of(options.edge)))

    def open_matting() -> Matting:
        threads = options.threads or engine_threads()
        with ExitStack() as stack:
            try:
                engine = load(
                    options.model,
                    engine=options.engine,
                    device=options.device,
                    threads=threads,
                    precision=options.precision,
                )
                stack.callback(engine.close)
                width, height = nearest_size(engine.spec.sizes, *info.shown_size)
                engine.infer({"frame": np.zeros((1, 4, height, width), np.float32)})
                if isinstance(engine, StatefulEngine):
                    engine.reset()
            except EngineError as exc:
                raise MattingError(str(exc)) from exc
            matting = Matting(engine, info, refinement)
            stack.pop_all()  # the matting's owner closes it
        return matting

    return open_matting


def run_webcam(
    spec: str,
    backgrounds: Sequence[str],
    options: Options,
    *,
    record: str | None,
    control: Control,
    stop: Stop,
    verbose: bool = False,
    quiet: bool = False,
) -> Stats:
    """Runs until `stop`. record: a video file to write as well. Raises RtbgError of the kind that fits."""
    refuse_transparent(backgrounds)
    check_network(options)
    if options.vcam == "none" and not options.preview and not record:
        raise UsageError("nothing would be shown: --vcam none is for --preview or -o")
    if options.mic is not None and not record:
        raise UsageError("--mic is for a recording: name one with -o")
    if record is not None:
        refuse_overwriting(record, spec, backgrounds, options.mic)
    with ExitStack() as stack:
        source, path = open_camera(spec, options)
        stack.callback(source.close)
        info = source.info
        backdrop = Backdrop(backgrounds, info, fit=options.fit, control=control)
        stack.callback(backdrop.close)
        outputs: list[Output] = []

        def add(sink: Sink, *, clocked: bool = True, required: bool = True) -> None:
            stack.callback(sink.abort)  # nothing to do for one that was closed
            outputs.append(Output(sink, clocked=clocked, required=required))

        shown = ""
        if options.vcam != "none":
            camera = VirtualCamera((info.width, info.height), info.rate, device=options.vcam, avoid=path)
            add(camera)
            shown = camera.description
        preview = None
        if options.preview:
            preview = Preview((info.width, info.height), control)
            add(preview, required=False)
        if record is not None:
            add(_recorder(record, info, options, stack, quiet=quiet), clocked=False, required=False)
        told = not quiet
        with (
            terminal_keys(control) as keys,
            live_status(
                control, lambda: backdrop.name, show=not quiet, verbose=verbose, keys=keys or bool(preview)
            ) as status,
        ):

            def progress(stats: Stats) -> None:
                nonlocal told
                if told and source.obtained:
                    told = False
                    say(f"rtbg: {source.obtained}" + (f" -> {shown}" if shown else ""))
                status(stats)

            def completing() -> None:
                if not quiet:
                    say(f"rtbg: completing {record}; again to give it up")

            compositor = Compositor(show=options.show, foreground=Foreground(wrap=options.light_wrap))
            stack.pop_all()  # all of it is the run's now
            stats = run_live(
                source,
                matting_factory(options, info),
                backdrop,
                outputs,
                compositor=compositor,
                on_failure=options.on_failure,
                control=control,
                stop=stop,
                progress=progress,
                wait=preview.pump if preview is not None else None,
                completing=completing,
            )
        if not quiet:
            if record is not None and not (stats.outputs or stats.lost):
                say("rtbg: nothing was recorded: no picture was finished before the end")
            say(summary(stats, verbose=verbose))
    return stats


def _recorder(record: str, info: StreamInfo, options: Options, stack: ExitStack, *, quiet: bool) -> Sink:
    sound = None
    if options.mic is not None:
        sound = Microphone(options.mic)
        stack.callback(sound.close)
    sink = open_sink(
        record,
        info,
        alpha=False,
        codec=options.codec,
        crf=options.crf,
        preset=options.preset,
        audio=False,
        overwrite=options.overwrite,
        threads=codec_threads(),
        sound=sound,
        live=True,
    )
    if not quiet:
        say(f"rtbg: recording {sound.description}" if sound else "rtbg: sound is not recorded: --mic NAME would")
    return sink
