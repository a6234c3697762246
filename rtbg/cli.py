"""The command line: fills `Options`, runs the files one after another, turns errors into one line.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from rtbg.control import Control
from rtbg.errors import Aborted, MattingError, OutputError, RtbgError, UsageError
from rtbg.options import CODECS, ENGINES, FAILURES, FITS, PRECISIONS, SHOWS, Options, seconds
from rtbg.paths import is_file, is_folder, same_file
from rtbg.progress import progress_bar, say, show
from rtbg.signals import signals
from rtbg.stats import Stats, Stop
from rtbg.version import __version__

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
STILLS = {".png", ".jpg", ".jpeg", ".webp"}
VIDEOS = {".mp4", ".mov", ".mkv", ".webm"}

EPILOG = """\
backgrounds:
  beach.jpg, loop.mp4, anim.gif   a picture or a video (looped)
  blur, blur:0.8                  the real background, blurred: 0 to 1
  "#00b140", green, white         a colour
  {generated}  generated ones
  transparent                     none: to .png, .webp, .mov, .webm or .mkv

examples:
  rtbg --webcam --bg beach.jpg          then choose "rtbg" as the camera in Zoom, Meet, Teams or OBS
                                        (on Windows and macOS "OBS Virtual Camera")
  rtbg in.mp4 -o out.mp4 --bg beach.jpg
  rtbg photo.jpg -o cutout.png --bg transparent
  rtbg *.mp4 -o done/ --bg blur
  rtbg --demo -o out.mp4
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser; its defaults are those of `Options`."""
    from rtbg.backgrounds.names import GENERATED

    d = Options()
    parser = _Parser(
        prog="rtbg",
        description="Replaces the background behind people: of a webcam, of videos and of pictures.",
        epilog=EPILOG.format(generated=", ".join(GENERATED)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("inputs", nargs="*", metavar="INPUT", type=Path, help="video or picture files")
    add("--demo", action="store_true", help="an animated portrait as the input, to try it with nothing at hand")
    add("-o", "--output", metavar="OUTPUT", help="output file, or a folder (ending in /) for several inputs; "
        "the suffix chooses: .mp4 .mov .mkv .webm, .png .jpg .webp (default: NAME-rtbg beside the input)")  # fmt: skip
    add("-y", "--overwrite", action="store_true", help="replace an existing output")
    add("--bg", "--background", dest="backgrounds", metavar="SPEC", action="append",
        help=f"what to put behind the person, see below (default: {d.background}); with --webcam several, key b "
        "goes to the next")  # fmt: skip
    add(
        "--bg-fit", dest="fit", choices=FITS, default=d.fit, help="how a picture fills the frame (default: %(default)s)"
    )
    add("--show", choices=SHOWS, default=d.show, help="what is written (default: %(default)s)")
    add("--smoothing", metavar="0..1", type=float, default=d.smoothing,
        help="how calm edges are in time (default: %(default)s)")  # fmt: skip
    add("--lookahead", metavar="FRAMES", type=int, default=d.lookahead,
        help="frames of the future that help with it, in files (default: %(default)s)")  # fmt: skip
    add("--edge", metavar="SPEC", default=d.edge, help="shift=PIXELS (grow, or shrink below 0), feather=PIXELS, "
        "hardness=0..1, joined by commas; pixels of a picture 1080 high")  # fmt: skip
    add("--light-wrap", metavar="0..1", type=float, default=d.light_wrap,
        help="light of the background on the person's edge (default: %(default)s)")  # fmt: skip
    add("--start", metavar="TIME", type=_time, default=d.start, help="begin there: seconds or H:MM:SS")
    add("--duration", metavar="TIME", type=_time, default=d.duration, help="stop after that much")
    add("--codec", choices=CODECS, default=d.codec, help="video codec (default: what suits the output's suffix)")
    add("--crf", metavar="N", type=int, default=d.crf, help="quality of the codec, lower is better")
    add("--preset", default=d.preset, help="speed of the codec, e.g. veryfast")
    add("--no-audio", dest="audio", action="store_false", help="leave sound out")
    add("--model", default=d.model, metavar="NAME|FILE.onnx", help="matting network (default: %(default)s)")
    add("--engine", choices=ENGINES, default=d.engine, help="what runs the network (default: %(default)s)")
    add("--device", default=d.device, help="device of the engine: cpu, cuda, mps; with --engine onnxruntime what its "
        "package has: dml, coreml, openvino, ... (default: %(default)s)")  # fmt: skip
    add("--precision", choices=PRECISIONS, default=d.precision, help="what the network computes in (default: "
        "%(default)s: int8 or bf16 on CPUs that are good at it, f16 on NVIDIA GPUs)")  # fmt: skip
    add("--threads", type=int, metavar="N", default=d.threads, help="threads for the network")
    live = parser.add_argument_group("live").add_argument
    live("--webcam", nargs="?", const="", metavar="CAMERA", help="a camera, by number, path or part of its name; a "
         "video file can stand in (default: the first camera)")  # fmt: skip
    live("--size", metavar="WxH", default=d.size, help="of the camera's and the virtual camera's picture "
         "(default: 1280x720; a file: its own)")  # fmt: skip
    live("--fps", type=float, metavar="N", default=d.fps, help="pictures a second (default: 30; a file: its own)")
    live("--mirror", action="store_true", help="swap left and right")
    live("--vcam", metavar="DEVICE", default=d.vcam, help='virtual camera to send to, or "none" (default: the one '
         "named rtbg, else a free one)")  # fmt: skip
    live("--on-failure", choices=FAILURES, default=d.on_failure, help="what is sent while the camera or the network "
         "fails; the camera's own picture never is (default: %(default)s)")  # fmt: skip
    live("--preview", action="store_true", help="show in a window what is sent")
    live("--mic", metavar="NAME", default=d.mic, help="record its sound with -o: a sound input as the system names it "
         "(Linux: an ALSA device, e.g. plughw:1,0), or a sound file")  # fmt: skip
    live("--list-cameras", action="store_true", help="show the cameras with their sizes and rates, and end")
    add("--build-engines", action="store_true", help="compile the shipped models, or --model FILE.onnx, for this "
        "machine's NVIDIA GPU, and end")  # fmt: skip
    live("--doctor", action="store_true", help="examine camera, virtual camera, engines and codecs, and end")
    add("-v", "--verbose", action="store_true", help="say more: time of every stage")
    add("-q", "--quiet", action="store_true", help="say nothing but errors")
    add("--version", action="version", version=f"rtbg {__version__}")
    return parser


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (rtbg --help shows all)")


def _time(text: str) -> float:
    try:
        return seconds(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: seconds or H:MM:SS") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    handler, before = _Lines(), logging.getLogger().level
    logging.getLogger().addHandler(handler)
    try:
        args = build_parser().parse_args(argv)
        level = logging.ERROR if args.quiet else logging.INFO if args.verbose else logging.WARNING
        logging.getLogger().setLevel(level)
        names = {f for f in Options.__dataclass_fields__ if hasattr(args, f)}
        options = Options(**{n: getattr(args, n) for n in names})
        if args.backgrounds:
            options = replace(options, background=args.backgrounds[0])
        if args.build_engines:
            return _build_engines(args)
        if args.list_cameras or args.doctor:
            return _inform(args, options)
        if args.webcam is not None:
            return _live(args, options)
        if not args.inputs and not args.demo:
            raise UsageError("nothing to do: --webcam, --demo, or name a video or picture (rtbg --help shows all)")
        if args.backgrounds and len(args.backgrounds) > 1:
            raise UsageError("several backgrounds are for --webcam: name one")
        for name in ("size", "fps", "mirror", "vcam", "preview", "mic"):
            if getattr(args, name):
                raise UsageError(f"--{name} is for --webcam")
        if options.on_failure != Options().on_failure:
            raise UsageError("--on-failure is for --webcam")
        stop = Stop()
        with signals(stop, quiet=args.quiet):
            return _files(args, options, stop)
    except UsageError as exc:
        return _say_error(exc, WRONG_USAGE)
    except RtbgError as exc:
        return _say_error(exc, FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        logging.getLogger().removeHandler(handler)
        logging.getLogger().setLevel(before)


def _build_engines(args: argparse.Namespace) -> int:
    from engines import EngineError, available_models, build_all

    def progress(done: int, total: int, label: str) -> None:
        if not args.quiet:
            say(f"rtbg: {done} of {total} compiled" + (f", now {label}" if label else ""))

    try:
        models = None if args.model in available_models() else [args.model]
        build_all(models, precision=args.precision, progress=progress)
    except EngineError as exc:
        raise MattingError(str(exc)) from exc
    return DONE


def _inform(args: argparse.Namespace, options: Options) -> int:
    if args.doctor:
        from rtbg.doctor import run_doctor

        return run_doctor(options, args.webcam or "")
    from rtbg.cameras import describe, list_cameras

    show(describe(list_cameras()).rstrip())
    return DONE


def _live(args: argparse.Namespace, options: Options) -> int:
    if args.inputs or args.demo:
        raise UsageError("--webcam takes no input files: name a file that is to stand in as --webcam FILE")
    plain = Options()
    for name in ("start", "duration", "lookahead"):
        if getattr(options, name) != getattr(plain, name):
            raise UsageError(f"--{name} is for files, not for --webcam")
    sys.setswitchinterval(0.0005)
    import cv2

    from rtbg.webcam import run_webcam

    cv2.setNumThreads(1)
    stop = Stop()
    control = Control(quit=stop.end)
    with signals(stop, quiet=True, reload=control.reload):
        try:
            stats = run_webcam(
                args.webcam,
                args.backgrounds or [options.background],
                options,
                record=args.output,
                control=control,
                stop=stop,
                verbose=args.verbose,
                quiet=args.quiet,
            )
        except Aborted as exc:
            if not args.quiet:
                say(f"rtbg: {exc}")
            return INTERRUPTED
    return FAILED if stats.lost else DONE


class _Lines(logging.Handler):
    """Log records as plain lines on stderr (looked up anew each time: the progress bar redirects it)."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"rtbg: {record.levelname.lower()}: {record.getMessage()}")


def _say_error(exc: Exception, code: int) -> int:
    say(f"rtbg: error: {' '.join(str(exc).split())}")
    return code


def plan_outputs(
    inputs: Sequence[Path], output: str | None, options: Options, *, demo: bool
) -> list[tuple[Path | None, Path]]:
    """(input, output) pairs; the demo's input is None. A folder for the outputs is made. Raises UsageError,
    OutputError."""
    sources: list[Path | None] = [*inputs, *([None] if demo else [])]
    folder = None
    if output == "":
        raise UsageError("-o names nothing: give a file, or a folder ending in /")
    if output is not None and (output.endswith(("/", "\\")) or is_folder(output)):
        folder = Path(output)
    if output is not None and folder is None:
        if len(sources) > 1:
            raise UsageError(f"{len(sources)} inputs need a folder: -o {output}/")
        return [(sources[0], Path(output))]
    pairs = [(s, (folder or (s.parent if s else Path())) / _name(s, options, beside=folder is None)) for s in sources]
    outputs = [o for _, o in pairs]
    for target in outputs:
        if outputs.count(target) > 1:
            raise UsageError(f"two inputs would be written to {target}: give them different names")
        if any(source is not None and same_file(source, target) for source in sources):
            raise UsageError(f"the output {target} is one of the inputs: name a folder with -o, or leave it out")
    if folder is not None and not is_folder(folder):
        try:
            folder.mkdir()
        except OSError as exc:
            raise OutputError(f"the output folder {folder} cannot be made: {exc.strerror}") from exc
    return pairs


def _expanded(inputs: Sequence[Path]) -> list[Path]:
    """On Windows, whose shells leave that to the program, the files that a pattern such as `*.mp4` stands for, if there
    are any."""
    found: list[Path] = []
    for path in inputs:
        alike: list[Path] = []
        if sys.platform == "win32" and set("*?[") & set(path.name) and not is_file(path):
            alike = sorted(p for p in path.parent.glob(path.name) if p.name[0] != "." or path.name[0] == ".")
        found += alike or [path]
    return found


def _name(source: Path | None, options: Options, *, beside: bool) -> str:
    """NAME-rtbg.EXT (NAME.EXT in another folder); a suffix that cannot be written becomes one that can."""
    suffix = source.suffix.lower() if source else ".mp4"
    clear = options.background.lower() == "transparent" and options.show != "matte"
    if suffix in STILLS or suffix in {".bmp", ".tif", ".tiff"}:
        suffix = ".png" if suffix not in STILLS or (clear and suffix in {".jpg", ".jpeg"}) else suffix
    elif suffix not in VIDEOS or (clear and suffix == ".mp4"):
        suffix = ".mov" if clear else ".mp4"
    return (source.stem if source else "demo") + ("-rtbg" if beside else "") + suffix


def _files(args: argparse.Namespace, options: Options, stop: Stop) -> int:
    """Every input in turn; a failing one does not keep the others from being done."""
    pairs = plan_outputs(_expanded(args.inputs), args.output, options, demo=args.demo)
    sys.setswitchinterval(0.0005)  # the codecs' threads get the interpreter lock back quickly
    import cv2

    from rtbg.backgrounds import parse_background

    cv2.setNumThreads(1)  # the stages run side by side already
    parse_background(options.background)  # before anything starts
    code = DONE
    for source, output in pairs:
        if stop.ended:
            return INTERRUPTED
        try:
            stats = _one(source, output, options, stop, args)
        except Aborted as exc:
            if not args.quiet:
                say(f"rtbg: {exc}: nothing was written")
            return INTERRUPTED
        except RtbgError as exc:
            if len(pairs) == 1:
                raise
            code = _say_error(exc, FAILED)
            continue
        if stats.interrupted:
            return INTERRUPTED
    return code


def _one(source: Path | None, output: Path, options: Options, stop: Stop, args: argparse.Namespace) -> Stats:
    from rtbg.api import replace_background
    from rtbg.sources import open_source
    from rtbg.sources.demo import DemoSource

    if source:
        opened, label = open_source(source, start=options.start, duration=options.duration), source.name
    else:
        opened, label = DemoSource(start=options.start, seconds=options.duration or DemoSource.SECONDS), "demo"
    with progress_bar(label, opened.info, show=not args.quiet) as progress:
        stats = replace_background(opened, output, options=options, stop=stop, progress=progress)
    if not args.quiet:
        _report(stats, verbose=args.verbose)
    return stats


def _report(stats: Stats, *, verbose: bool) -> None:
    what = "interrupted: what was finished is in" if stats.interrupted else "wrote"
    count = f"{stats.frames_out} frame{'s' if stats.frames_out != 1 else ''}"
    for output in stats.outputs:
        say(f"{what} {output}: {count}, {stats.fps:.1f} fps, {stats.engine}")
    if verbose and stats.frames_out:
        parts = (f"{name} {1000 * t / stats.frames_out:.2f}" for name, t in stats.stages.items())
        say("milliseconds a frame: " + ", ".join(parts))
