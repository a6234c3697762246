"""What a file is, by its first bytes, and one-line errors for what cannot be read at all.

Used by `open_source`, `VideoSource` and `StillSource`. Reads 64 KiB at most, and a PNG's chunk headers.
"""

from __future__ import annotations

import stat
from pathlib import Path

from rtbg.errors import InputError

_HEAD = 65536
_STILL_STARTS = (b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
_PNG = b"\x89PNG\r\n\x1a\n"
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"mif1"}


def head(path: Path) -> bytes:
    """The first bytes of a file, at least one. Raises InputError: no such file, a folder, a device, empty, or
    not allowed."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{path} is a folder: name a video or a picture in it")
        if stat.S_ISCHR(mode):
            raise InputError(f"{path} is a device, not a file: this version reads files only")
        if not stat.S_ISREG(mode):
            raise InputError(f"{path} is not a file")
        with path.open("rb") as file:
            start = file.read(_HEAD)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file") from None
    except PermissionError as exc:
        raise InputError(f"{path} may not be read: check its permissions") from exc
    except InputError:
        raise
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        raise InputError(f"{path} cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
    if not start:
        raise InputError(f"{path} is empty")
    return start


def is_still(path: Path, start: bytes) -> bool:
    """Whether the file is one picture that `StillSource` reads, rather than a video. `start`: its `head`.
    Raises InputError for HEIC, of which FFmpeg would show one tile."""
    if start[4:8] == b"ftyp":
        end = min(int.from_bytes(start[:4]), 256)
        brands = {start[k : k + 4] for k in range(8, end - 3, 4)}
        if b"avif" in brands:
            return start[8:12] != b"avis"  # which is AVIF's own video
        if start[8:12] in _HEIC:
            raise InputError(f"{path} is a HEIC picture, which is not understood: save it as JPEG or PNG")
        return False
    if start.startswith(_PNG):
        return not is_apng(path)
    if start.startswith(b"\xff\xd8\xff"):  # many JPEGs in a row are a video, but a camera's .jpg may hold two
        return path.suffix.lower() not in (".mjpeg", ".mjpg")
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":  # FFmpeg does not decode the animated kind
        return True
    if start[:1] == b"P" and start[1:2] in b"123456" and start[2:3].isspace():
        return True
    return start.startswith(_STILL_STARTS)


def is_animated_webp(start: bytes) -> bool:
    """Whether a WebP file holds more than one picture (the flag in its VP8X chunk)."""
    return start[:4] == b"RIFF" and start[8:16] == b"WEBPVP8X" and bool(int.from_bytes(start[20:21]) & 0x02)


def is_apng(path: Path) -> bool:
    """Whether a PNG is animated: an acTL chunk of more than one picture before the first IDAT."""
    with path.open("rb") as file:
        file.seek(len(_PNG))
        while len(chunk := file.read(8)) == 8 and chunk[4:] != b"IDAT":
            if chunk[4:] == b"acTL":
                return int.from_bytes(file.read(4)) > 1
            file.seek(int.from_bytes(chunk[:4]) + 4, 1)
    return False


def demuxer(path: Path, start: bytes) -> str | None:
    """The FFmpeg demuxer to insist on, where its own choice goes by the name: `a%d.gif` is a file, not a series."""
    if start[:4] == b"GIF8":
        return "gif"
    return "apng" if start.startswith(_PNG) and is_apng(path) else None
