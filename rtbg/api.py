"""What Python programs call: `matte` for one picture, `replace_background` for a file.

The engine behind them is loaded once per process, model and engine name (and once more for each further use at
the same time). Used by the command line too.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np

from engines import Engine, EngineError, load
from rtbg.backgrounds import open_background, parse_background
from rtbg.color import rgb_to_planes
from rtbg.composite import Compositor
from rtbg.errors import MattingError, UsageError
from rtbg.foreground import Foreground
from rtbg.frame import BT709, FULL, HLG, PQ, Array, Color, Frame, StreamInfo
from rtbg.gpu_frames import open_frames
from rtbg.matting import Matting, Refinement
from rtbg.options import Options, edge_of
from rtbg.paths import same_file
from rtbg.pipeline import run
from rtbg.protocols import Source
from rtbg.sinks import open_sink
from rtbg.sources import open_source
from rtbg.stats import Stats, Stop
from rtbg.threads import codec_threads, engine_threads
from rtbg.upsampling import Edge

# What looks at a picture that is no video (`rtbg.matting.look_closely`): one network at two sizes, the larger first.
PAIRS = {"balanced": ("quality", "balanced"), "quality": ("quality", "balanced")}

_log = logging.getLogger("rtbg")
_idle: dict[tuple[object, ...], list[Engine]] = defaultdict(list)
_lock = threading.Lock()


@contextmanager
def borrowed_engine(model: str, engine: str, device: str, threads: int, precision: str = "auto") -> Iterator[Engine]:
    """An engine that nobody else uses meanwhile, for its outputs are shared buffers. One that has been given back
    is taken again, so a process that does one thing at a time loads each model once. Raises MattingError."""
    key = (model, engine, device, threads, precision)
    with _lock:
        found = _idle[key].pop() if _idle[key] else None
    try:
        taken = found or load(model, engine=engine, device=device, threads=threads, precision=precision)
    except EngineError as exc:
        raise MattingError(str(exc)) from exc
    try:
        yield taken
    except MattingError:  # an engine that failed is not used again
        taken.close()
        raise
    except BaseException:
        with _lock:
            _idle[key].append(taken)
        raise
    with _lock:
        _idle[key].append(taken)


@contextmanager
def _engines(
    model: str, engine: str, device: str, threads: int, precision: str = "auto", *, closely: bool
) -> Iterator[list[Engine]]:
    """The engine of a model; with `closely`, those that look at a picture (`rtbg.matting.look_closely`), of a pair the
    larger first. No second one where the first is TensorRT's, which compiles for minutes. Raises MattingError."""
    names = PAIRS.get(model, (model,)) if closely and engine != "tensorrt" else (model,)
    with ExitStack() as stack:
        runners = [stack.enter_context(borrowed_engine(names[0], engine, device, threads, precision))]
        for name in names[1:] if runners[0].name != "tensorrt" else ():
            runners.append(stack.enter_context(borrowed_engine(name, runners[0].name, device, threads, precision)))
        yield runners


def close_engines() -> None:
    """Closes the engines that are kept for the next call, and ends what they compile meanwhile; a later call loads
    anew. Those in use are not touched. A process that ends need not call it."""
    with _lock:
        idle = [engine for kept in _idle.values() for engine in kept]
        _idle.clear()
    for engine in idle:
        engine.close()


def matte(image: Array, *, model: str | None = None, engine: str = "auto", closely: bool = True) -> Array:
    """The alpha matte of one picture.

    image: uint8 (H, W, 3) RGB. Returns float32 (H, W): 0 background, 1 person.
    model: a shipped model's name or an ONNX file; None: the default. closely: as pictures are looked at, see
    `rtbg.matting.look_closely`; False: as a frame of a video is, once by that model alone, in a tenth of the time.
    Safe to call from several threads.
    Raises ValueError for another kind of array, MattingError when the model cannot run.
    """
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"the picture is a uint8 array of shape (H, W, 3) in RGB, not {what}")
    if 0 in image.shape:
        raise ValueError(f"the picture is empty: {image.shape}")
    height, width = image.shape[:2]
    color = Color(BT709, FULL)
    planes = rgb_to_planes(image, color, height=height, bits=8, chroma=(1, 1))
    info = StreamInfo(width, height, Fraction(1), Fraction(1), color, chroma=(1, 1), frames=1, still=True)
    with _engines(model or Options().model, engine, "auto", engine_threads(), closely=closely) as runners:
        matting = _matting(runners, info, Refinement(), closely=closely)
        ((_, alpha),) = matting.push(Frame(planes, 0, Fraction(1), color))
    return alpha.astype(np.float32) / np.float32(255)


def replace_background(
    source: str | Path | Source,
    output: str | Path,
    *,
    background: str | Path | None = None,
    options: Options | None = None,
    stop: Stop | None = None,
    progress: Callable[[Stats], None] | None = None,
) -> Stats:
    """Writes `source` (a video or picture file, or an open Source, which is closed) to `output` with another
    background, its sound kept.

    background: as `Options.background`; None: that of `options`, whose start and duration are for files only: an open
    Source gives what it gives. progress is called about ten times a second with what has been done so far.
    Raises RtbgError of the kind that fits; `output` is then as it was.
    """
    chosen = options or Options()
    with ExitStack() as stack:
        if not isinstance(source, (str, Path)):
            if not hasattr(source, "read"):
                raise UsageError(f"the source is a path or an open Source, not {source!r}")
            stack.callback(source.close)
        spec = parse_background(str(chosen.background if background is None else background))
        if spec.path is not None and same_file(spec.path, output):
            raise UsageError(f"the output {output} is the background: write to another file")
        if isinstance(source, (str, Path)):
            source = open_source(source, start=chosen.start, duration=chosen.duration)
            stack.callback(source.close)
        closely = source.info.still and not source.live
        threads = chosen.threads or engine_threads()
        runners = stack.enter_context(
            _engines(chosen.model, chosen.engine, chosen.device, threads, chosen.precision, closely=closely)
        )
        unseen = chosen.show != "composite" and spec.kind != "transparent"
        if source.info.color.transfer in (PQ, HLG) and spec.kind in ("image", "color", "generated") and not unseen:
            name = source.info.path.name if source.info.path else "the video"
            _log.warning("%s is HDR: the background is not, and will be too bright: make the video SDR first", name)
        behind = open_background("black" if unseen else spec, source.info, fit=chosen.fit)
        stack.callback(behind.close)
        refinement = Refinement(
            smoothing=chosen.smoothing, lookahead=chosen.lookahead, edge=Edge(**edge_of(chosen.edge))
        )
        frames = None
        if not closely:
            frames = open_frames(runners[0], source.info, refinement, spec, show=chosen.show, wrap=chosen.light_wrap)
        compositor = Compositor(show=chosen.show, foreground=Foreground(wrap=chosen.light_wrap))
        sink = open_sink(
            output,
            source.info,
            alpha=spec.kind == "transparent" and chosen.show != "matte",
            codec=chosen.codec,
            crf=chosen.crf,
            preset=chosen.preset,
            audio=chosen.audio,
            overwrite=chosen.overwrite,
            threads=codec_threads(),
        )
        matting = _matting(runners, source.info, refinement, closely=closely)
        return run(source, matting, behind, [sink], compositor=compositor, frames=frames, stop=stop, progress=progress)


def _matting(runners: list[Engine], info: StreamInfo, refinement: Refinement, *, closely: bool) -> Matting:
    """As `_engines` gave them. A network that does not look at its past has nothing to look twice for."""
    twice = closely and runners[0].spec.kind == "rtbg"
    return Matting(runners[0], info, refinement, runners if twice else ())
