"""Where a path leads that a user wrote. Where that cannot be told (a name too long, a folder that is closed to us, an
unknown `~user`) the answer is no, as of `os.path`, while `pathlib` raises before Python 3.14.

Used wherever what a user names may be a file or something else; imports nothing of rtbg.
"""

from __future__ import annotations

import os
from pathlib import Path


def is_file(path: str | Path) -> bool:
    """Whether it leads to a file."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: str | Path) -> bool:
    """Whether it leads to a folder."""
    return os.path.isdir(path)  # noqa: PTH112


def same_file(a: str | Path, b: str | Path) -> bool:
    """Whether both lead to one file, by whatever names."""
    try:
        return os.path.samefile(a, b)  # noqa: PTH121
    except (OSError, ValueError):
        return False


def at_home(path: str) -> Path:
    """The path with `~` and `~user` written out."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
