"""A live run from what the user asked for: opens camera, backgrounds and outputs, and hands them to `rtbg.live`.

Used by the command line (`rtbg --webcam`). Everything that can be refused is refused before the camera is opened.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from engines import EngineError, load
from rtbg.backdrop import Backdrop, refuse_transparent
from rtbg.cameras import find_camera
from rtbg.clock import Output
from rtbg.composite import Compositor
from rtbg.control import Control
from rtbg.errors import MattingError, UsageError
from rtbg.foreground import Foreground
from rtbg.frame import StreamInfo
from rtbg.keys import terminal_keys
from rtbg.live import run_live
from rtbg.matting import Matting, Refinement
from rtbg.options import Options, edge_of, size_of
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


def open_camera(spec: str, options: Options) -> tuple[WebcamSource | PacedSource, str | None]:
    """The source that `--webcam SPEC` names, and the camera's path (None: a file stands in). The camera itself is
    opened by the first read. Raises InputError, UsageError."""
    size = size_of(options.size) if options.size else None
    if spec and Path(spec).is_file():
        return PacedSource(spec, size=size, rate=options.fps, mirror=options.mirror), None
    camera = find_camera(spec)
    source = WebcamSource(camera, size=size or SIZE, rate=options.fps or RATE, mirror=options.mirror)
    return source, camera.path


def matting_factory(options: Options, info: StreamInfo) -> Callable[[], Matting]:
    """What opens a matting with an engine of its own, as `run_live` takes it. No look-ahead: that would be delay."""
    refinement = Refinement(smoothing=options.smoothing, edge=Edge(**edge_of(options.edge)))

    def open_matting() -> Matting:
        threads = options.threads or engine_threads()
        try:
            engine = load(options.model, engine=options.engine, device=options.device, threads=threads)
        except EngineError as exc:
            raise MattingError(str(exc)) from exc
        return Matting(engine, info, refinement)

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
    if options.vcam == "none" and not options.preview and not record:
        raise UsageError("nothing would be shown: --vcam none is for --preview or -o")
    if options.mic is not None and not record:
        raise UsageError("--mic is for a recording: name one with -o")
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
            add(_recorder(record, info, options, stack), clocked=False, required=False)
        began = time.process_time()
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
            )
        if not quiet:
            say(summary(stats, time.process_time() - began))
    return stats


def _recorder(record: str, info: StreamInfo, options: Options, stack: ExitStack) -> Sink:
    sound = None
    if options.mic is not None:
        sound = Microphone(options.mic)
        stack.callback(sound.close)
    say(f"rtbg: recording {sound.description}" if sound else "rtbg: sound is not recorded: --mic NAME would")
    return open_sink(
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
    )
