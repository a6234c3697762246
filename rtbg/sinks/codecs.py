"""Which encoder writes which pictures into which container, and with what settings. Used by `VideoSink`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

import av

from rtbg.errors import UsageError

# Container by suffix: FFmpeg's name, the codec without and with transparency (None: holds none).
CONTAINERS = {
    ".mp4": ("mp4", "h264", None),
    ".mov": ("mov", "h264", "prores"),
    ".mkv": ("matroska", "h264", "ffv1"),
    ".webm": ("webm", "vp9", "vp9"),
}
_X26X_PRESETS = (
    *("ultrafast", "superfast", "veryfast", "faster", "fast"),
    *("medium", "slow", "slower", "veryslow", "placebo"),
)
_FORMAT = re.compile(r"yuv(a?)(420|422|444)p(10le)?")
_CHROMA = {"420": (2, 2), "422": (2, 1), "444": (1, 1)}


def _numbers(fastest: int) -> tuple[str, ...]:
    return tuple(str(n) for n in range(fastest, -1, -1))


@dataclass(frozen=True, slots=True)
class Codec:
    """One encoder. crf_max, crf: the worst quality and the default one (None: it has no such setting);
    presets, preset: from fast to slow, and the default. shape: whether the stream itself holds the shape of a
    pixel, for containers that FFmpeg does not tell it (Matroska). smallest: the least width and height."""

    encoder: str
    suffixes: tuple[str, ...]
    alpha: tuple[str, ...] = ()  # formats with transparency that are used
    crf: int | None = None
    crf_max: int = 0
    preset: str | None = None
    presets: tuple[str, ...] = ()
    options: dict[str, str] = field(default_factory=dict)
    shape: bool = False
    smallest: int = 1


_MP4_MOV_MKV = (".mp4", ".mov", ".mkv")
_MP4_MKV_WEBM = (".mp4", ".mkv", ".webm")
CODECS = {
    "h264": Codec("libx264", _MP4_MOV_MKV, crf=20, crf_max=51, preset="veryfast", presets=_X26X_PRESETS, shape=True),
    # x265 4.2 writes beyond its memory, and ends the process, at widths of 34 to 44 and heights below 32.
    "hevc": Codec(
        "libx265",
        _MP4_MOV_MKV,
        crf=22,
        crf_max=51,
        preset="veryfast",
        presets=_X26X_PRESETS,
        shape=True,
        smallest=32,
    ),
    "av1": Codec("libsvtav1", _MP4_MKV_WEBM, crf=30, crf_max=63, preset="8", presets=_numbers(13), smallest=4),
    # The preset is libvpx's cpu-used. yuva422p and yuva444p are experimental: most players see no alpha.
    "vp9": Codec(
        "libvpx-vp9",
        _MP4_MKV_WEBM,
        alpha=("yuva420p",),
        crf=30,
        crf_max=63,
        preset="5",
        presets=_numbers(8),
        options={"row-mt": "1", "b": "0"},
    ),
    "prores": Codec("prores_ks", (".mov", ".mkv"), alpha=("yuva444p10le",), options={"vendor": "apl0"}),
    "ffv1": Codec(
        "ffv1",
        (".mkv",),
        alpha=tuple(f"yuva{c}p{b}" for c in _CHROMA for b in ("", "10le")),
        options={"level": "3", "g": "1", "slicecrc": "1"},
    ),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How pictures are encoded. pix_fmt: FFmpeg's name. lossy: part of the input's depth or colour resolution
    does not fit the codec. even: (columns, rows) must be a multiple of these."""

    name: str
    codec: Codec
    container: str
    pix_fmt: str
    lossy: bool
    even: tuple[int, int]
    options: dict[str, str]
    description: str


def plan(
    suffix: str,
    *,
    codec: str | None,
    alpha: bool,
    crf: int | None,
    preset: str | None,
    bits: int,
    chroma: tuple[int, int],
    threads: int,
) -> Plan:
    """Chooses and checks everything before any work. bits, chroma: of the input, kept where the codec allows.
    Raises UsageError, one line that says what would do."""
    container, usual, transparent = CONTAINERS[suffix]
    if alpha and transparent is None:
        raise UsageError(f"{suffix} holds no transparency: use .mov (ProRes 4444) or .webm (VP9)")
    name = (codec or (transparent if alpha else usual) or usual).lower()
    if name not in CODECS:
        raise UsageError(f"unknown codec {codec!r}: choose one of {', '.join(CODECS)}")
    chosen = CODECS[name]
    if alpha and not chosen.alpha:
        raise UsageError(f"{name} holds no transparency: use .mov (ProRes 4444) or .webm (VP9)")
    if suffix not in chosen.suffixes:
        raise UsageError(f"{name} does not go into {suffix}: use {' or '.join(chosen.suffixes)}, or another --codec")
    options = dict(chosen.options)
    crf = _crf(name, chosen, crf)
    if crf is not None:
        options["crf"] = str(crf)
    preset = _preset(name, chosen, preset)
    options.update(_speed(name, preset, threads, alpha))
    pix_fmt, lossy = nearest(formats(chosen, alpha), bits, chroma)
    # x264 and x265 refuse pictures whose chroma has no whole number of samples; the others do not.
    even = parts(pix_fmt)[1] if name in ("h264", "hevc") else (1, 1)
    description = f"{name} {pix_fmt.removesuffix('le')}" + (f" crf {crf}" if crf is not None else "")
    return Plan(name, chosen, container, pix_fmt, lossy, even, options, description)


def _crf(name: str, codec: Codec, crf: int | None) -> int | None:
    if crf is None:
        return codec.crf
    if codec.crf is None:
        raise UsageError(f"{name} has no --crf: leave it away, or use another --codec")
    if not 0 <= crf <= codec.crf_max:
        raise UsageError(f"--crf of {name} is 0 (best) to {codec.crf_max}, not {crf}")
    return crf


def _preset(name: str, codec: Codec, preset: str | None) -> str | None:
    if preset is None:
        return codec.preset
    if not codec.presets:
        raise UsageError(f"{name} has no --preset: leave it away, or use another --codec")
    if preset not in codec.presets:
        raise UsageError(f"--preset of {name} is one of {', '.join(codec.presets)}, not {preset!r}")
    return preset


def _speed(name: str, preset: str | None, threads: int, alpha: bool) -> dict[str, str]:
    if name == "h264":
        return {"preset": str(preset)}
    if name == "hevc":  # libx265 prints to stderr by itself, and takes no thread count from FFmpeg
        return {"preset": str(preset), "x265-params": f"log-level=none:pools={threads}"}
    if name == "av1":
        return {"preset": str(preset), "svtav1-params": f"lp={min(threads, 6)}"}
    if name == "vp9":
        speed = {"cpu-used": str(preset), "deadline": "realtime" if str(preset) > "5" else "good"}
        return speed | {"auto-alt-ref": "0"} if alpha else speed  # libvpx: no alternate references with alpha
    return {}


@lru_cache(maxsize=32)
def _offered(encoder: str) -> tuple[str, ...]:
    try:
        return tuple(f.name for f in av.Codec(encoder, "w").video_formats or ())
    except (LookupError, ValueError) as exc:
        raise UsageError(f"this PyAV was built without {encoder}: choose another --codec") from exc


def formats(codec: Codec, alpha: bool) -> tuple[str, ...]:
    """The planar YUV formats of 8 and 10 bits that this build of the encoder takes."""
    offered = _offered(codec.encoder)
    if alpha:
        return tuple(f for f in offered if f in codec.alpha)
    return tuple(f for f in offered if (m := _FORMAT.fullmatch(f)) and not m[1])


def parts(pix_fmt: str) -> tuple[int, tuple[int, int], bool]:
    """(bits, chroma, alpha) of a format's name, as `Frame` has them."""
    m = _FORMAT.fullmatch(pix_fmt)
    if m is None:
        raise ValueError(pix_fmt)
    return (10 if m[3] else 8, _CHROMA[m[2]], bool(m[1]))


def name_of(bits: int, chroma: tuple[int, int], alpha: bool = False) -> str:
    """FFmpeg's name of a format: the inverse of `parts`."""
    digits = next(d for d, c in _CHROMA.items() if c == chroma)
    return f"yuv{'a' if alpha else ''}{digits}p{'10le' if bits == 10 else ''}"


def nearest(choices: tuple[str, ...], bits: int, chroma: tuple[int, int]) -> tuple[str, bool]:
    """(format, whether something of the input is lost): the least loss first, then the least that is added."""

    def cost(pix_fmt: str) -> tuple[int, int]:
        b, c, _ = parts(pix_fmt)
        steps = [(b - bits) // 2, chroma[0] - c[0], chroma[1] - c[1]]  # positive: more than the input has
        return -sum(s for s in steps if s < 0), sum(s for s in steps if s > 0)

    best = min(choices, key=cost)
    return best, cost(best)[0] > 0
