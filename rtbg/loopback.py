"""Virtual cameras of Linux (the kernel module v4l2loopback): which one to write to, whether one may, who holds it.

Used by `rtbg.sinks.virtual_camera` and `rtbg.doctor`. Holds two descriptors for each claimed device, no pictures.

What the module does, by version:
- With exclusive_caps=1, which browsers need, a device offers OUTPUT while nobody writes to it, CAPTURE while
  somebody does. So "OUTPUT is missing" means that another program writes; except
- in 0.12, which offers OUTPUT again only when a descriptor that has done STREAMON is closed. A program that only
  does write(), as pyvirtualcam, leaves the device unusable for the next writer. `Claim` holds such a descriptor
  (the guard) beside pyvirtualcam's, which works after SIGKILL as well, and frees a device left behind (the rescue).
  STREAMON fails without any effect in 0.13 and later, which do not have the fault.
- A reader that stays when the writer goes pins the format; the next writer's S_FMT then "succeeds" without effect.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from rtbg import v4l2
from rtbg.errors import OutputError, UsageError
from rtbg.v4l2 import Device, PixelFormat

UNLOAD = "sudo modprobe -r v4l2loopback"
GROUP = "sudo usermod -aG video $USER"
_CONF = "/etc/modprobe.d/rtbg.conf"

# Seconds within which a program that really writes has written again, so that OUTPUT is missing again; the latter where
# a program is seen that may be writing, though slowly.
_SETTLE, _SLOWEST = 0.2, 1.0


# -- who holds a device --


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has a file open. access: "r", "w" or "rw", all its descriptors taken together."""

    pid: int
    name: str
    access: str

    def __str__(self) -> str:
        return f"{self.name}, pid {self.pid}"


def holders(path: str, *, own: bool = False) -> list[Holder]:
    """The processes that have this file open, by pid, this one only where `own`. Other users' processes are seen by
    root alone. Empty where there is no /proc. Never raises."""
    real, found = os.path.realpath(path), []
    for folder in Path("/proc").glob("[0-9]*"):
        if own or folder.name != str(os.getpid()):
            access = _access(folder, real)
            if access:
                found.append(Holder(int(folder.name), _program(folder), access))
    return sorted(found, key=lambda h: h.pid)


def _access(folder: Path, real: str) -> str:
    """How a process has a file open: "" for not at all."""
    modes: set[str] = set()
    try:
        for link in (folder / "fd").iterdir():
            try:
                if str(link.readlink()) == real:
                    modes.update(_mode((folder / "fdinfo" / link.name).read_text("ascii")))
            except OSError:  # closed in this moment
                continue
    except OSError:  # ended in this moment, or another user's
        return ""
    return "".join(sorted(modes))


def _mode(fdinfo: str) -> str:
    """The access mode told by the octal `flags:` of a /proc/PID/fdinfo/N."""
    flags = re.search(r"^flags:\s*([0-7]+)", fdinfo, re.MULTILINE)
    return ("r", "w", "rw", "rw")[int(flags[1], 8) & 3] if flags else "rw"


def _program(folder: Path) -> str:
    """What people call a process: the script where Python runs it."""
    try:
        name = (folder / "comm").read_text("utf-8", "replace").strip()
        if name.startswith("python"):
            words = (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")[1:]
            script = next((w for w in words if w == "-c" or not w.startswith("-")), "-c")
            name = name if script in ("-c", "") else Path(script).name
    except OSError:
        return "?"
    return " ".join(name.split()) or "?"


# -- which device --


def is_loopback(device: Device) -> bool:
    """Whether a device is v4l2loopback's: by its driver, or where it may not be asked by its place in sysfs."""
    return device.is_loopback or Path(f"/sys/class/video4linux/{Path(device.path).name}/max_openers").exists()


def loopbacks() -> list[Device]:
    """The virtual cameras of this system, those that may not be opened too. Never raises."""
    return [d for d in v4l2.devices() if is_loopback(d)]


def choose(wanted: str | None, *, label: str, avoid: str | None = None) -> Device:
    """The device to write to: the one that is `wanted` (a path, a number, or part of its name); else the one whose
    name holds `label`; else one that nobody writes to. Never `avoid`, the webcam's own path.
    Raises OutputError, one line with the commands that help here; UsageError where `wanted` is the webcam."""
    known = loopbacks()
    if wanted is not None:
        return _wanted(wanted, known, avoid)
    everyone, known = known, [d for d in known if not _same(d.path, avoid)]
    named = [d for d in known if label.lower() in d.name.lower()]
    if named:
        return min(named, key=lambda d: (bool(d.error), d.name.lower() != label.lower(), not free(d), d.index))
    usable = [d for d in known if not d.error and free(d)]
    if usable:
        return usable[0]
    if denied := [d for d in known if d.error]:
        raise refusal(denied[0].path, denied[0].error)
    if known:
        busy = ", ".join(f"{d.path}{in_brackets(holders(d.path))}" for d in known)
        typed = in_a_line(commands(others=[d.name for d in everyone]))
        raise OutputError(f"every virtual camera is in use, {busy}: end one, or end all and have one more: {typed}")
    if everyone:
        typed = in_a_line(commands(others=[d.name for d in everyone]))
        raise OutputError(f"there is no virtual camera but {avoid}, the webcam: end what writes to it, then {typed}")
    raise OutputError(f"there is no virtual camera: {in_a_line(commands())}")


def _wanted(wanted: str, known: list[Device], avoid: str | None) -> Device:
    text = f"/dev/video{wanted}" if wanted.isdecimal() else wanted
    if "/" not in text:
        named = [d for d in known if text.lower() in d.name.lower()]
        if not named:
            have = ", ".join(f"{d.path} is {d.name}" for d in known) or in_a_line(commands())
            raise OutputError(f"no virtual camera is named {wanted!r}: {have}")
        found = min(named, key=lambda d: (_same(d.path, avoid), d.name.lower() != text.lower(), d.index))
    else:
        if not Path(text).exists():
            have = ", ".join(f"{d.path} is {d.name}" for d in known) or in_a_line(commands())
            raise OutputError(f"the virtual camera {text} does not exist: {have}")
        real = os.path.realpath(text)
        found = next((d for d in known if d.path == real), None) or v4l2.device(real)
    if _same(found.path, avoid):
        raise UsageError(f"{found.path} is the webcam itself: name another device for --vcam")
    if found.error:
        raise refusal(found.path, found.error)
    if not is_loopback(found):
        what = f"{found.name} ({found.driver})" if found.driver else "no video device"
        raise OutputError(f"{found.path} is {what}, not a virtual camera: rtbg --doctor shows which there are")
    return found


def free(device: Device) -> bool:
    """Whether nobody writes to a loopback, as far as can be told without touching it. A device that offers nothing
    at all was left behind by 0.12's fault. One that offers both is without exclusive_caps, or has a reader left whose
    writer has gone: that tells nothing, so nobody may hold it for writing."""
    if device.can_output and device.can_capture:
        return not any("w" in h.access for h in holders(device.path))
    if device.can_output or not device.can_capture:
        return not any(h.access == "w" for h in holders(device.path))
    return False


def hidden(device: Device, root: Path = Path("/")) -> bool:
    """Whether browsers will not list a loopback, since it was made without exclusive_caps."""
    if not (device.can_capture and device.can_output):
        return False
    parameters = module(root).parameters
    flags = [flag in ("N", "0") for flag in filter(None, parameters.get("exclusive_caps", "").split(","))]
    number = re.search(r"-(\d+)$", device.bus)
    place = _place(int(number[1]), parameters.get("video_nr", "")) if number else len(flags)
    return flags[place] if place < len(flags) else bool(flags) and all(flags)


def _place(number: int, wanted: str) -> int:
    """The place among the module's devices, by which its parameters go, of the one with a number. wanted: `video_nr`,
    where each device has its number or -1 for the lowest that is free."""
    given: list[int] = []
    for nr in map(int, re.findall(r"-?\d+", wanted)):
        given.append(nr if nr >= 0 else next(k for k in range(len(given) + 1) if k not in given))
    return given.index(number) if number in given else number


def _same(path: str, other: str | None) -> bool:
    return other is not None and os.path.realpath(path) == os.path.realpath(other)


def refusal(path: str, error: int) -> OutputError:
    """Why a device cannot be opened, and what to do, for an errno."""
    if error in (errno.EACCES, errno.EPERM):
        return OutputError(f"no permission for {path}: {GROUP}, then log out and in again")
    if error == errno.EBUSY:
        return OutputError(f"{path} is busy{in_brackets(holders(path))}: end the programs that use it")
    if error in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return OutputError(f"the virtual camera {path} is gone: sudo modprobe v4l2loopback {options()}")
    if error in (errno.ENOTTY, errno.EINVAL):
        return OutputError(f"{path} is no video device: rtbg --doctor shows the virtual cameras")
    return OutputError(f"{path} cannot be opened: {os.strerror(error)}; rtbg --doctor tells more")


def in_brackets(found: list[Holder]) -> str:
    """Holders in brackets, for a message; nothing for none."""
    return f" ({'; '.join(map(str, found))})" if found else ""


# -- the right to write --


class Claim:
    """The right to write to a loopback: no other rtbg has it, and no other program writes there.

    A lock on the device's file, taken at once and ended by the system with the process, keeps a second rtbg out. Then
    a device that was left behind by 0.12's fault is rescued. Raises OutputError, one line."""

    def __init__(self, path: str) -> None:
        import fcntl

        self.path = path
        self._guard: int | None = None
        try:
            self._lock: int | None = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            raise refusal(path, exc.errno or errno.EIO) from exc
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not v4l2.capability(self._lock).caps & v4l2.CAP_OUTPUT:
                self._rescue()
            if any(h.access == "w" for h in holders(path)):
                raise self.written()
        except BlockingIOError as exc:
            self.close()
            raise self.written() from exc
        except BaseException as exc:
            self.close()
            if isinstance(exc, OSError) and not isinstance(exc, OutputError):
                raise refusal(path, exc.errno or errno.EIO) from exc
            raise

    def _rescue(self) -> None:
        with v4l2.opened(self.path) as fd:
            _streamon(fd)
        assert self._lock is not None
        others = any("w" in h.access for h in holders(self.path))
        end = time.monotonic() + (_SLOWEST if others else _SETTLE)
        while v4l2.capability(self._lock).caps & v4l2.CAP_OUTPUT:
            if time.monotonic() > end:
                return
            time.sleep(0.05)
        raise self.written()  # its next picture has taken OUTPUT away again

    def written(self) -> OutputError:
        """The error that says who writes."""
        found = holders(self.path)
        writers = [h for h in found if h.access == "w"] or [h for h in found if "w" in h.access]
        return OutputError(
            f"another program{in_brackets(writers)} writes to {self.path}: end it, or name another with --vcam"
        )

    def guard(self, rate: Fraction | None = None) -> None:
        """To be called once the camera is open: from now on the device can be written again whatever happens to this
        process. To be closed after the camera. rate: what its readers are told, else 30. Raises OSError."""
        self._guard = os.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        _streamon(self._guard)
        if rate is not None:
            with suppress(OSError):  # a reader that stays, or another version, may not have it: no more than a hint
                v4l2.set_rate(self._guard, rate)

    def format(self) -> PixelFormat | None:
        """What the device really gives, None where it does not say. Raises OSError, ENODEV where it is gone."""
        fd = self._lock if self._guard is None else self._guard
        assert fd is not None
        for output in (True, False):  # from 0.13 on, the output side answers only before the first picture
            try:
                return v4l2.get_format(fd, output=output)
            except OSError as exc:
                if exc.errno not in (errno.EINVAL, errno.ENOTTY):
                    raise
        return None

    def is_there(self) -> bool:
        """Whether the path still leads to this very device."""
        assert self._lock is not None
        try:
            return Path(self.path).stat().st_rdev == os.fstat(self._lock).st_rdev
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Gives the device back; the lock goes last. May be called twice."""
        guard, self._guard = self._guard, None
        lock, self._lock = self._lock, None
        for fd in (guard, lock):
            if fd is not None:
                os.close(fd)


def _streamon(fd: int) -> None:
    try:
        v4l2.streamon(fd, output=True)
    except OSError as exc:
        # Without a format yet (0.12: its effect is there nevertheless), or not needed (0.13 and later).
        if exc.errno not in (errno.EINVAL, errno.EBUSY, errno.EIO):
            raise


# -- the kernel module, and what to type --


@dataclass(frozen=True, slots=True)
class Module:
    """State of v4l2loopback on this system. installed: there is one for the running kernel. source: the package is
    there, built or not. version: "" where not told. parameters: as sysfs has them. elsewhere: the files that set its
    options at every start, but for the one that rtbg's own commands write."""

    loaded: bool
    installed: bool
    source: bool
    version: str
    parameters: dict[str, str]
    elsewhere: tuple[str, ...] = ()


def module(root: Path = Path("/")) -> Module:
    """Looks at /proc, /sys, /lib/modules and the folders of modprobe.d below `root`. Never raises."""
    sys = root / "sys/module/v4l2loopback"
    loaded = sys.exists() or bool(re.search(r"^v4l2loopback ", _read(root / "proc/modules"), re.MULTILINE))
    parameters = {}
    if (sys / "parameters").is_dir():
        parameters = {p.name: _read(p).strip() for p in sorted((sys / "parameters").iterdir())}
    kernel = os.uname().release
    listed = _read(root / "lib/modules" / kernel / "modules.dep")
    installed = bool(re.search(r"(^|/)v4l2loopback\.ko", listed, re.MULTILINE))
    source = any((root / "usr/src").glob("v4l2loopback-*")) or (root / "var/lib/dkms/v4l2loopback").exists()
    version = _read(sys / "version").strip()
    return Module(loaded, loaded or installed, source, version, parameters, _elsewhere(root))


def _elsewhere(root: Path) -> tuple[str, ...]:
    """See `Module`; paths as without `root`. A file hides those of its name in the folders that follow."""
    files: dict[str, Path] = {}
    for folder in ("etc", "run", "usr/local/lib", "usr/lib", "lib"):
        for path in (root / folder / "modprobe.d").glob("*.conf"):
            files.setdefault(path.name, path)
    files.pop(Path(_CONF).name, None)
    found = [p for _, p in sorted(files.items()) if re.search(r"^\s*options\s+v4l2loopback\s", _read(p), re.MULTILINE)]
    return tuple(f"/{path.relative_to(root)}" for path in found)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def os_release() -> str:
    """The text that tells the distribution; empty where there is none."""
    return _read(Path("/etc/os-release")) or _read(Path("/usr/lib/os-release"))


def install_commands(release: str) -> list[str]:
    """What installs v4l2loopback on the distribution whose os-release this is; a comment where that is not known."""
    pairs = dict(re.findall(r"^(ID|ID_LIKE)=[\"']?([^\"'\n]*)", release, re.MULTILINE))
    ids = f"{pairs.get('ID', '')} {pairs.get('ID_LIKE', '')}".lower().split()
    return next((typed for ours, typed in _INSTALL if ours & set(ids)), [_UNKNOWN])


_UNKNOWN = "# install the kernel module v4l2loopback with your package manager"
_FUSION = "https://mirrors.rpmfusion.org/free/fedora/rpmfusion-free-release-$(rpm -E %fedora).noarch.rpm"
_INSTALL = (
    ({"debian", "ubuntu", "raspbian"}, ["sudo apt install v4l2loopback-dkms linux-headers-$(uname -r)"]),
    ({"fedora"}, [f"sudo dnf install {_FUSION}", "sudo dnf install akmod-v4l2loopback", "sudo akmods"]),
    ({"arch", "archlinux", "manjaro"}, ["sudo pacman -S v4l2loopback-dkms linux-headers"]),
    ({"suse", "opensuse"}, ["sudo zypper install v4l2loopback-kmp-default"]),
)


def options(others: Sequence[str] = ()) -> str:
    """The module's options for a device named rtbg beside `others`."""
    names = [*(re.sub(r"[^ -~]|[\\\"',]", " ", name) for name in others), "rtbg"]
    count = f"devices={len(names)} " if others else ""
    return f'{count}exclusive_caps={",".join("1" for _ in names)} card_label="{",".join(names)}"'


def commands(state: Module | None = None, release: str | None = None, *, others: Sequence[str] = ()) -> list[str]:
    """What to type to get a virtual camera named rtbg, now and at every start, on this system, of which `state` and
    `release` tell; only what is missing; what is to be done by hand begins with "#". others: names of virtual cameras
    that are to stay."""
    state = module() if state is None else state
    release = os_release() if release is None else release
    first = []
    if not state.installed:
        first += install_commands(release)
        if state.source:  # the package is there, but nothing was built for the running kernel
            first.append("sudo dkms autoinstall")
    if state.elsewhere:  # modprobe joins all files by their names, and the last one wins
        first.append(f"# take the options of v4l2loopback out of {' and '.join(state.elsewhere)}")
    if state.loaded:  # its devices do not do; they can be named at the loading only
        first.append(UNLOAD)
    return [
        *first,
        f"sudo modprobe v4l2loopback {options(others)}",
        "echo v4l2loopback | sudo tee /etc/modules-load.d/rtbg.conf",
        f"echo 'options v4l2loopback {options(others)}' | sudo tee {_CONF}",
    ]


def in_a_line(typed: list[str]) -> str:
    """Commands for a message of one line: what makes it last is told apart."""
    notes = [c.removeprefix("# ") for c in typed if c.startswith("#")]
    now = " && ".join(c for c in typed if c.startswith("sudo"))
    later = " && ".join(c for c in typed if c.startswith("echo"))
    return ", then: ".join([*notes, now]) + (f"; to have it at every start: {later}" if later else "")
