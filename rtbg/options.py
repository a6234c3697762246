"""Every choice a user has, with its default, once. The command line and the Python functions only fill it."""

from __future__ import annotations

from dataclasses import dataclass

from rtbg.errors import UsageError

FITS = ("cover", "contain", "stretch")
SHOWS = ("composite", "matte", "foreground")
CODECS = ("h264", "hevc", "av1", "vp9", "prores", "ffv1")
ENGINES = ("auto", "tensorrt", "openvino", "onnxruntime", "torch")
PRECISIONS = ("auto", "f32", "bf16", "f16", "int8")
FAILURES = ("card", "freeze", "black")


@dataclass(frozen=True, slots=True)
class Options:
    """What to do with an input. Raises UsageError for values that make no sense.

    background: a picture or video file, `blur` or `blur:STRENGTH`, a colour, `transparent`, or a generated
        background's name. start, duration: the part of the input to use, in seconds.
    smoothing: 0 to 1, how calm edges are in time; lookahead: frames of the future that help with it. edge: as `edge_of`
        takes it. light_wrap: 0 to 1, how much of the background's light falls on the person's edge.
    codec, crf, preset: None leaves the choice to the output's suffix.
    precision: one of `PRECISIONS`, what the network computes in; "auto": see `engines.load`. threads: for the engine;
        None: what suits the machine.

    Live only: size, WIDTHxHEIGHT, and fps that are asked of the camera (None: 1280x720, 30, a file's own); mirror;
    vcam, the virtual camera to send to (None: the one for it, "none": none); on_failure, one of `FAILURES`: what is
    sent while something is wrong; preview, a window; mic, the sound input of a recording.
    """

    background: str = "blur"
    fit: str = "cover"
    show: str = "composite"
    smoothing: float = 0.5
    lookahead: int = 2
    edge: str = ""
    light_wrap: float = 0.0
    model: str = "balanced"
    engine: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    start: float = 0.0
    duration: float | None = None
    codec: str | None = None
    crf: int | None = None
    preset: str | None = None
    audio: bool = True
    overwrite: bool = False
    threads: int | None = None
    size: str | None = None
    fps: float | None = None
    mirror: bool = False
    vcam: str | None = None
    on_failure: str = "card"
    preview: bool = False
    mic: str | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("--bg-fit", self.fit, FITS),
            ("--show", self.show, SHOWS),
            ("--codec", self.codec, (None, *CODECS)),
            ("--engine", self.engine, ENGINES),
            ("--precision", self.precision, PRECISIONS),
            ("--on-failure", self.on_failure, FAILURES),
        ):
            if value not in known:
                raise UsageError(f"{name} {value!r} is not known: one of {', '.join(str(k) for k in known if k)}")
        number, whole, none = (int, float), (int,), type(None)
        kinds = {
            "start": number,
            "duration": (*number, none),
            "smoothing": number,
            "light_wrap": number,
            "lookahead": whole,
            "crf": (*whole, none),
            "threads": (*whole, none),
            "fps": (*number, none),
        }
        for field, kind in kinds.items():
            if not isinstance(getattr(self, field), kind):
                kind_of = "a number" if float in kind else "a whole number"
                raise UsageError(f"--{field.replace('_', '-')} is {kind_of}, not {getattr(self, field)!r}")
        for field in ("edge", "model", "device", "size", "vcam", "mic", "preset"):
            value = getattr(self, field)
            optional = field in ("size", "vcam", "mic", "preset")
            if not isinstance(value, str) and not (optional and value is None):
                raise UsageError(f"--{field} is a text, not {value!r}")
        if not 0 <= self.start < float("inf"):
            raise UsageError(f"--start is 0 or more seconds, not {self.start}")
        if self.duration is not None and not self.duration > 0:
            raise UsageError(f"--duration is more than 0 seconds, not {self.duration}")
        for name, share in (("--smoothing", self.smoothing), ("--light-wrap", self.light_wrap)):
            if not 0 <= share <= 1:
                raise UsageError(f"{name} is from 0 to 1, not {share}")
        if not 0 <= self.lookahead <= 15:
            raise UsageError(f"--lookahead is from 0 to 15 frames, not {self.lookahead}")
        edge_of(self.edge)
        if self.size is not None:
            size_of(self.size)
        if self.fps is not None and not 1 <= self.fps <= 240:
            raise UsageError(f"--fps is from 1 to 240 pictures a second, not {self.fps:g}")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads is at least 1, not {self.threads}")


def edge_of(text: str) -> dict[str, float]:
    """The numbers of `shift=2,feather=4,hardness=0.3`, each optional: see `rtbg.upsampling.Edge`. Raises UsageError."""
    limits = {"shift": (-20.0, 20.0), "feather": (0.0, 60.0), "hardness": (0.0, 1.0)}
    found: dict[str, float] = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        name, _, value = part.partition("=")
        low, high = limits.get(name, (0.0, 0.0))
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = float("nan")
        if name not in limits or not low <= found[name] <= high:
            known = ", ".join(f"{n}={a:g}..{b:g}" for n, (a, b) in limits.items())
            raise UsageError(f"--edge {part!r} is not understood: {known}, joined by commas")
    return found


def size_of(text: str) -> tuple[int, int]:
    """Width and height of `1280x720`. Raises UsageError."""
    width, _, height = text.lower().partition("x")
    if not (width.isascii() and width.isdigit() and height.isascii() and height.isdigit()):
        raise UsageError(f"--size {text!r} is not understood: WIDTHxHEIGHT, e.g. 1280x720")
    if not (16 <= int(width) <= 7680 and 16 <= int(height) <= 4320) or int(width) % 2 or int(height) % 2:
        raise UsageError(f"--size {text!r}: width and height are even, from 16x16 to 7680x4320")
    return int(width), int(height)


def seconds(text: str) -> float:
    """Seconds of `90`, `1:30` or `0:01:30.5`. Raises ValueError."""
    parts = [float(part) for part in text.split(":")]
    if len(parts) > 3 or not all(0 <= part < float("inf") for part in parts):
        raise ValueError(text)
    return float(sum(part * 60.0**k for k, part in enumerate(reversed(parts))))
