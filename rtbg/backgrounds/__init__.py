"""What is put behind the person: one file per kind, and here the language in which a user asks for one.

    blur, blur:0.8        the real background, blurred: strength 0 (weakest that still hides) to 1, default 0.5
    beach.jpg             a picture; over black where it is transparent, turned as its EXIF tag says
    loop.mp4, anim.gif    a video, looped in time with the frames
    "#00b140", 00b140, "#0b4", green     a colour: hexadecimal, or one of `names.COLORS`
    studio, dusk, …       drawn by code: one of `names.GENERATED`
    transparent           none

An existing file of exactly that name wins over everything else. Names do not mind case.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from rtbg.backgrounds.names import COLORS, GENERATED
from rtbg.errors import BackgroundError, InputError, UsageError
from rtbg.frame import StreamInfo
from rtbg.options import FITS
from rtbg.paths import at_home, is_file, is_folder
from rtbg.protocols import Background

__all__ = ["COLORS", "GENERATED", "BackgroundSpec", "open_background", "parse_background"]

STRENGTH = 0.5  # of `blur`


@dataclass(frozen=True, slots=True)
class BackgroundSpec:
    """A background that was asked for, checked as far as can be without a frame.

    kind: image, video, blur, color, transparent or generated; the field that belongs to it is set:
    path of image and video, strength (0..1) of blur, rgb (0..255) of color, name of generated.
    """

    kind: str
    path: Path | None = None
    strength: float = STRENGTH
    rgb: tuple[int, int, int] | None = None
    name: str = ""


def parse_background(spec: str) -> BackgroundSpec:
    """Understands what a user wrote (see this module's head). Files are opened and their first picture decoded.
    Raises BackgroundError, one line that says what is wrong and what to do."""
    path = at_home(spec)
    if spec and is_file(path):
        return _parse_file(path)
    name = spec.strip().lower()
    kind, colon, value = name.partition(":")
    if kind == "blur":
        return BackgroundSpec("blur", strength=_strength(value) if colon else STRENGTH)
    if name == "transparent":
        return BackgroundSpec("transparent")
    if name in GENERATED:
        return BackgroundSpec("generated", name=name)
    if name in COLORS or name.startswith("#") or re.fullmatch("[0-9a-f]{6}", name):
        return BackgroundSpec("color", rgb=_rgb(COLORS.get(name, name)))
    raise BackgroundError(_unknown(spec, path))


def open_background(spec: str | BackgroundSpec, info: StreamInfo, *, fit: str = "cover") -> Background:
    """The background, for frames of `info`; frames of other sizes and formats are served too, at a cost.

    fit: how pictures and videos fill the frame as a viewer sees it (turned upright, square pixels): "cover" cuts
        off what is too much, "contain" leaves black beside them, "stretch" distorts them.
    Raises BackgroundError, and UsageError for another `fit`. The caller closes it.
    """
    if fit not in FITS:
        raise UsageError(f"fit is {', '.join(FITS[:-1])} or {FITS[-1]}, not {fit!r}")
    if isinstance(spec, str):
        spec = parse_background(spec)
    # Imported on use: the command line's help lists the names above without loading OpenCV and FFmpeg.
    if spec.kind == "blur":
        from rtbg.backgrounds.blur import BlurBackground

        return BlurBackground(spec.strength, info)
    if spec.kind == "image" and spec.path is not None:
        from rtbg.backgrounds.image import open_image

        return open_image(spec.path, info, fit)
    if spec.kind == "video" and spec.path is not None:
        from rtbg.backgrounds.video import VideoBackground

        return VideoBackground(spec.path, info, fit)
    if spec.kind == "generated":
        from rtbg.backgrounds.generated import open_generated

        return open_generated(spec.name, info)
    from rtbg.backgrounds.solid import SolidBackground, TransparentBackground

    if spec.kind == "color" and spec.rgb is not None:
        return SolidBackground(spec.rgb)
    if spec.kind == "transparent":
        return TransparentBackground()
    raise BackgroundError(f"{spec!r} is incomplete: make it with parse_background")


def _parse_file(path: Path) -> BackgroundSpec:
    from rtbg.backgrounds.image import is_picture, read_picture
    from rtbg.backgrounds.video import Loop
    from rtbg.sources.probe import head, is_still

    if path.stat().st_size == 0:
        raise BackgroundError(f"the background {path} is empty: choose another file")
    if is_picture(path):
        read_picture(path, small=True)
        return BackgroundSpec("image", path=path)
    try:
        is_still(path, head(path))  # a HEIC picture is refused by it: FFmpeg would show one tile
    except InputError as exc:
        raise BackgroundError(f"the background {exc}") from exc
    loop = Loop(path)
    loop.close()
    return BackgroundSpec("video", path=path)


def _strength(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise BackgroundError(f"the strength of blur is a number from 0 to 1, as in blur:0.8, not {text!r}")
    return value


def _rgb(text: str) -> tuple[int, int, int]:
    digits = text.removeprefix("#")
    if not re.fullmatch("[0-9a-f]{3}|[0-9a-f]{6}", digits):
        raise BackgroundError(f"the colour {text!r} is not understood: write it as #rrggbb or #rgb")
    if len(digits) == 3:
        digits = "".join(2 * d for d in digits)
    return int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:], 16)


def _unknown(spec: str, path: Path) -> str:
    """What to say of a spec that is neither a file nor a name."""
    if spec and is_folder(path):
        return f"the background {spec} is a folder: name a picture or a video in it"
    if path.suffix or path.parent != Path():
        beside: list[str] = []
        try:
            with suppress(FileNotFoundError, NotADirectoryError):
                path.stat()
            if is_folder(path.parent):
                beside = [p.name for p in path.parent.iterdir()]
        except (OSError, ValueError) as exc:
            return f"the background {spec} cannot be read ({getattr(exc, 'strerror', exc)}): choose another file"
        near = get_close_matches(path.name, beside, n=1)
        return f"no such background file: {spec}" + (f" (did you mean {path.parent / near[0]}?)" if near else "")
    near = get_close_matches(spec.lower(), ["blur", "transparent", *GENERATED, *COLORS], n=1)
    return (
        f"the background {spec!r} is neither a file nor a known name"
        + (f" (did you mean {near[0]}?)" if near else "")
        + f": use a picture, a video, blur, transparent, a colour, or one of {', '.join(GENERATED)}"
    )
