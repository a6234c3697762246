"""Compiled networks ("plans") in the user's own cache folder: written whole or not at all, read only where they fit.

A plan fits one version of TensorRT on one GPU with one driver, and it can hold code. So it is kept under a name made
of everything that it depends on (`PlanKey`), with that key and a checksum in front of it; anything else found there
is deleted; and the folder must belong to this user alone. Two processes that need one plan at once compile it once:
the second waits on a lock that the operating system takes back when its owner ends, however it ends.
Used by `engines.tensorrt_engine`. Memory bound: one plan.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from engines.errors import EngineError
from engines.machine import cache_dir

logger = logging.getLogger("engines")

_MAGIC = b"rtbg plan 1\n"
# Three models, five sizes and two precisions, and as many of the version before.
MOST_FILES = 60
_POLL = 0.05  # seconds between two tries at a lock that another process holds


@dataclass(frozen=True)
class PlanKey:
    """Everything that a plan depends on: one that differs in any of it is another plan.

    flavour: "tensorrt" or "tensorrt_rtx", with its version. gpu, capability, driver: of the machine. network: SHA-256
    of the ONNX file and the version of what is done to it. shapes: `frame=1x4x176x320`. precision: "f16"."""

    flavour: str
    version: str
    gpu: str
    capability: str
    driver: str
    network: str
    shapes: str
    precision: str

    @property
    def stem(self) -> str:
        """The name of its files."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:40]

    @property
    def machine(self) -> str:
        """The name of what all plans of this version on this machine share: its timings."""
        parts = self.flavour, self.version, self.gpu, self.capability, self.driver
        return "timing-" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


class PlanCache:
    """The plans in one folder. Any number of threads and processes at once."""

    def __init__(self, folder: Path) -> None:
        """folder: exists. Raises EngineError where others could write to it: a plan can hold code."""
        self.folder = folder
        if hasattr(os, "geteuid"):
            found = folder.stat()
            if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise EngineError(
                    f"the cache folder {folder} can be written by others, and compiled networks can hold code: "
                    f"chmod 700 it, or set RTBG_CACHE_DIR to a folder of your own"
                )

    def load(self, key: PlanKey) -> bytes | None:
        """The plan, None where there is none. One that is damaged or not what its name says is deleted."""
        path = self._path(key)
        try:
            with _open_own(path) as file:
                data = file.read()
        except FileNotFoundError:
            return None
        except OSError as exc:
            logger.info("the compiled network %s cannot be read (%s): compiling it anew", path, exc.strerror)
            self.discard(key)
            return None
        body = _unpack(data, asdict(key))
        if body is None:
            logger.info("the compiled network %s is damaged or another one: compiling it anew", path)
            self.discard(key)
            return None
        with contextlib.suppress(OSError):  # its last use, for `_prune`
            os.utime(path)
        return body

    def get(self, key: PlanKey, build: Callable[[], bytes], *, cancelled: Callable[[], bool] | None = None) -> bytes:
        """The plan from the folder, else from `build`, which is called by one process at a time, and then kept.

        Where it cannot be kept (a full disk) that is said as information and it is given all the same. cancelled: asked
        while another process compiles; where it says True this raises EngineError. Raises what `build` raises."""
        found = self.load(key)
        if found is not None:
            return found
        with self.locked(key, cancelled):
            found = self.load(key)  # another process may have made it meanwhile
            if found is None:
                found = build()
                self._write(self._path(key), _pack(asdict(key), found))
                self._prune()
        return found

    def discard(self, key: PlanKey) -> None:
        """Deletes the plan: it did not load."""
        self._delete(self._path(key))

    def load_note(self, name: str) -> bytes:
        """What was kept beside the plans under a name (timings); empty where there is nothing usable."""
        try:
            with _open_own(self.folder / f"{name}.note") as file:
                data = file.read()
        except OSError:
            return b""
        return _unpack(data, {"note": name}) or b""

    def save_note(self, name: str, data: bytes) -> None:
        """Keeps it; the last writer wins."""
        self._write(self.folder / f"{name}.note", _pack({"note": name}, data))

    @contextlib.contextmanager
    def locked(self, key: PlanKey, cancelled: Callable[[], bool] | None = None) -> Iterator[None]:
        """Holds the plan's lock. Where locks cannot be had (some network drives) it goes without: `_write` is atomic,
        so that costs a compilation and nothing else. Raises EngineError where `cancelled` says so."""
        path = self.folder / f"{key.stem}.lock"
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        except OSError as exc:
            logger.info("no lock in %s (%s): compiling without", self.folder, exc.strerror)
            yield
            return
        try:
            while not _try_lock(handle):
                if cancelled is not None and cancelled():
                    raise EngineError("given up waiting for another process that compiles the same network")
                time.sleep(_POLL)
            yield
        finally:
            os.close(handle)  # which gives the lock back; the file stays: to delete it would let two hold it

    def _path(self, key: PlanKey) -> Path:
        return self.folder / f"{key.stem}.plan"

    def _write(self, path: Path, data: bytes) -> None:
        """Under another name first, renamed when it is whole and on the disk."""
        try:
            handle, name = tempfile.mkstemp(prefix=f".{path.stem[:16]}-", suffix=".part", dir=self.folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                Path(name).replace(path)
            except BaseException:
                self._delete(Path(name))
                raise
        except OSError as exc:
            logger.info("the compiled network cannot be kept in %s (%s)", self.folder, exc.strerror)

    def _delete(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as exc:  # open in another process, on Windows
            logger.info("%s cannot be deleted (%s)", path, exc.strerror)

    def _prune(self) -> None:
        """Deletes the plans that were not used for longest, and what writers that were killed left behind."""
        try:
            ages = sorted((p.stat().st_mtime, p) for p in self.folder.iterdir() if p.suffix in (".plan", ".part"))
        except OSError:  # another process tidies up too
            return
        plans = [p for _, p in ages if p.suffix == ".plan"]
        stale = [p for age, p in ages if p.suffix == ".part" and time.time() - age > 3600]
        for path in [*plans[: max(0, len(plans) - MOST_FILES)], *stale]:
            self._delete(path)


def user_cache() -> PlanCache | None:
    """The one in the user's cache folder; None where nothing can be written. Raises EngineError, see `PlanCache`."""
    folder = cache_dir("tensorrt")
    return None if folder is None else PlanCache(folder)


def _open_own(path: Path) -> BinaryIO:
    """A file for reading that is this user's own, no link to somewhere else. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    try:
        found = os.fstat(handle)
        foreign = hasattr(os, "geteuid") and found.st_uid != os.geteuid()
        if not stat.S_ISREG(found.st_mode) or foreign:
            raise PermissionError(1, "not a file of this user")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _pack(head: dict[str, str], body: bytes) -> bytes:
    line = json.dumps(head | {"sha256": hashlib.sha256(body).hexdigest()}, sort_keys=True)
    return _MAGIC + line.encode() + b"\n" + body


def _unpack(data: bytes, head: dict[str, str]) -> bytes | None:
    """The body of a file with just that head; None for any other."""
    if not data.startswith(_MAGIC):
        return None
    line, found, body = data[len(_MAGIC) :].partition(b"\n")
    wanted = json.dumps(head | {"sha256": hashlib.sha256(body).hexdigest()}, sort_keys=True).encode()
    return body if found and line == wanted else None


if sys.platform == "win32":

    def _try_lock(handle: int) -> bool:
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except PermissionError:  # somebody has it
            return False
        except OSError as exc:  # a file system without locks
            logger.info("no locks in the cache folder (%s): compiling without", exc.strerror)
        return True

else:

    def _try_lock(handle: int) -> bool:
        import fcntl

        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as exc:  # a file system without locks
            logger.info("no locks in the cache folder (%s): compiling without", exc.strerror)
        return True
