"""What a training programme says to files, folders and options that it cannot use: one line, and an exit code.

Used by every `main` of this package. A fault of the programme itself keeps its traceback.

    TrainingError   ValueError   what was given cannot be used; the message says what is wrong and what to do
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


class TrainingError(ValueError):
    """See the module."""


@contextmanager
def one_line(programme: str, interrupted: str = "interrupted") -> Iterator[None]:
    """Around a `main`: ends the process with a line on stderr, code 1 for TrainingError, OSError and ImportError, code
    130 after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"{programme}: {interrupted}", file=sys.stderr)
        raise SystemExit(130) from None
    except (TrainingError, OSError, ImportError) as exc:
        said = f"{exc.filename}: {exc.strerror}" if isinstance(exc, OSError) and exc.filename else str(exc)
        raise SystemExit(f"{programme}: {' '.join(said.split())}") from exc


def make_folder(out: Path) -> Path:
    """The folder `out`, made where it is missing. Raises TrainingError where nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise TrainingError(f"--out {out} cannot be made a folder ({exc.strerror}): name another") from exc
    if not os.access(out, os.W_OK | os.X_OK):
        raise TrainingError(f"--out {out} cannot be written to: change its permissions, or name another folder")
    return out


def write(files: Mapping[Path, bytes]) -> None:
    """Writes files beside and then renames them, so that a kill or a full disk leaves the old ones whole. Raises
    TrainingError."""
    beside = {path: path.with_name(f"{path.name}.new") for path in files}
    try:
        for path, content in files.items():
            beside[path].write_bytes(content)
        for path, new in beside.items():
            new.replace(path)
    except OSError as exc:
        for new in beside.values():
            new.unlink(missing_ok=True)
        wrong = f"{path} cannot be written ({exc.strerror}); what was there is whole"
        raise TrainingError(f"{wrong}: make room, then start again") from exc
