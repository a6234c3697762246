"""A file that appears whole or not at all, and never in place of one that was not to be overwritten.

Used by every sink that writes a file. What is written goes to a hidden file beside the target (same folder, so
the same disk) and takes the target's name in one step at the end.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from rtbg.errors import OutputError, RtbgError, UsageError
from rtbg.signals import LAST_RESORT

_NO_SPACE = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the system's and FFmpeg's errors (both are OSError or have errno) into one line of OutputError."""
    try:
        yield
    except RtbgError:
        raise
    except Exception as exc:
        number = getattr(exc, "errno", None)
        if not isinstance(exc, OSError) and number is None:
            raise
        if number in _NO_SPACE:
            raise OutputError(f"no space left for {path}: free some, or write to another disk with -o") from exc
        if isinstance(exc, PermissionError):
            raise OutputError(f"no permission to write {path}: choose another folder with -o") from exc
        raise OutputError(f"cannot write {path}: {getattr(exc, 'strerror', None) or exc}") from exc


class Replacement:
    """The place where an output is written, and its way to the name that it is for.

    path: the target; a symbolic link is followed, so what it points to is replaced. temp: write there; an empty
    file, made at once, so that a folder that refuses it is known before any work is done.
    source: the input, which is never written over.
    Raises UsageError where the output is the input, OutputError where the folder is missing, the target is not
    a plain file, exists without `overwrite`, or cannot be made. Ends with `commit` or `discard`.
    """

    def __init__(self, path: Path, *, overwrite: bool, source: Path | None = None) -> None:
        self._overwrite = overwrite
        self._done = False
        with writing(path):
            self.path = self._check(path, source)
            self.temp = self._make_temp()
        LAST_RESORT.add(self.discard)

    def _check(self, path: Path, source: Path | None) -> Path:
        if source is not None and _same(path, source):
            raise UsageError(f"the output {path} is the input itself: choose another name with -o")
        if path.is_dir():
            raise OutputError(f"{path} is a folder: name a file in it")
        if not path.parent.is_dir():
            raise OutputError(f"no such folder: {path.parent}: make it first, or choose another with -o")
        target = Path(os.path.realpath(path))
        if target.exists():
            if not target.is_file():
                raise OutputError(f"{path} is not a plain file: choose another name with -o")
            if not self._overwrite:
                raise OutputError(f"{path} exists: add -y to overwrite")
        return target

    def _make_temp(self) -> Path:
        # The stem is cut so that the longest name that a file system takes still fits.
        for n in itertools.count():
            name = f".{self.path.stem[:40]}.rtbg-{os.getpid()}{f'-{n}' if n else ''}.tmp{self.path.suffix}"
            temp = self.path.with_name(name)
            try:
                temp.open("xb").close()
            except FileExistsError:  # another sink of this process, or left by a killed one
                continue
            return temp
        raise AssertionError

    def commit(self, *, interrupted: bool = False) -> Path:
        """Gives the file its name and returns it: the target's, or NAME.partial.EXT where an older output stays,
        because the work was interrupted. Raises OutputError where the target has appeared meanwhile or cannot
        be replaced; the work then stands in NAME.partial.EXT, which the message says."""
        self._done = True
        LAST_RESORT.discard(self.discard)
        appeared = not self._overwrite and self.path.exists()
        if not appeared and not (interrupted and self.path.exists()):
            try:
                self.temp.replace(self.path)
                return self.path
            except OSError as exc:  # on Windows: the older output is open in another program
                reason, cause = f"cannot replace {self.path} ({exc.strerror})", exc
        else:
            reason, cause = f"{self.path} has appeared meanwhile", None
        partial = self._partial()
        with writing(partial):
            try:
                self.temp.replace(partial)
            except OSError:
                self._done = False
                self.discard()
                raise
        if interrupted and not appeared and cause is None:
            return partial
        raise OutputError(f"{reason}: the result is in {partial}") from cause

    def outlast(self, wanted: bool = True) -> None:
        """Whether a signal that kills leaves the hidden file, what can be played of it, or takes it away."""
        (LAST_RESORT.discard if wanted else LAST_RESORT.add)(self.discard)

    def keep(self) -> Path:
        """Leaves the file, unfinished, under NAME.partial.EXT and returns that; its own, hidden name where even that
        cannot be given to it."""
        self._done = True
        LAST_RESORT.discard(self.discard)
        partial = self._partial()
        try:
            return self.temp.replace(partial)
        except OSError:
            return self.temp

    def _partial(self) -> Path:
        for n in itertools.count(1):
            part = self.path.with_name(f"{self.path.stem}.partial{f'-{n}' if n > 1 else ''}{self.path.suffix}")
            if not part.exists():  # it may be the input, a background or anything else: it was not to be overwritten
                return part
        raise AssertionError

    def discard(self) -> None:
        """Deletes what was written; an older output stays. Never raises; after `commit` it does nothing."""
        LAST_RESORT.discard(self.discard)
        if not self._done:
            # Fails where the file is still open on Windows: call again once it is closed.
            with contextlib.suppress(OSError):
                self.temp.unlink(missing_ok=True)
                self._done = True


def _same(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:  # one of them does not exist
        return os.path.realpath(a) == os.path.realpath(b)
