"""What the doctor asks the system itself: kernel module, Secure Boot, rights, display, GPU.

Used by `rtbg.doctor`. Every function looks below `root` where that matters, so that it can be shown other systems, and
never raises. Memory: nothing to speak of.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rtbg import loopback, v4l2
from rtbg.cameras import OWN

OK, NOTE, PROBLEM = "OK", "note", "problem"
ROOT = Path("/")

_SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
# In a process of its own: a broken driver may crash whoever asks it.
_CUDA = """
import ctypes
import sys
cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
error = cuda.cuInit(0)
if error:
    raise SystemExit(f"error {error}")
count = ctypes.c_int()
cuda.cuDeviceGetCount(ctypes.byref(count))
for i in range(count.value):
    name, memory = ctypes.create_string_buffer(100), ctypes.c_size_t()
    cuda.cuDeviceGetName(name, 100, i)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), i)
    print(f"{name.value.decode()}, {memory.value / 2**30:.0f} GiB")
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. state: "OK", "note" (nothing to worry about, or of no matter here) or "problem".
    fix: commands, or what else to do, a line each."""

    area: str
    state: str
    text: str
    fix: tuple[str, ...] = ()


def module(root: Path = ROOT) -> list[Finding]:
    """The kernel module of the virtual camera and its options; with Secure Boot where that may be in its way."""
    state = loopback.module(root)
    kernel = os.uname().release
    if not state.loaded:
        why = "is not loaded" if state.installed else f"is not installed for this kernel ({kernel})"
        if state.source and not state.installed:
            why = f"is installed, but was not built for this kernel ({kernel})"
        typed = loopback.commands(state, _os_release(root))
        return [Finding("kernel module", PROBLEM, f"v4l2loopback {why}", tuple(typed)), *secure_boot(root)]
    version = f" {state.version}" if state.version else ""
    told = {n: state.parameters[n] for n in ("exclusive_caps", "card_label", "video_nr") if n in state.parameters}
    options = "; ".join(f"{n} {_first(v)}" for n, v in told.items())
    text = f"v4l2loopback{version} is loaded" + (f": {options}" if options else "")
    others = [d.name for d in loopback.loopbacks() if OWN not in d.name.lower()] if root == ROOT else []
    if "exclusive_caps" in told and not re.search("[Y1]", told["exclusive_caps"]):
        text += "; without exclusive_caps=1 browsers do not list the camera"
        return [Finding("kernel module", PROBLEM, text, tuple(loopback.commands(state, others=others)))]
    return [Finding("kernel module", OK, text)]


def _first(value: str) -> str:
    """Of a module's parameter, which has a value for each of up to eight devices: up to the last that was set."""
    return re.sub(r"(,(N|-1|\(null\))?)+$", "", value)


def _os_release(root: Path) -> str | None:
    if root == ROOT:
        return None
    try:
        return (root / "etc/os-release").read_text("utf-8", "replace")
    except OSError:
        return ""


def secure_boot(root: Path = ROOT) -> list[Finding]:
    """A hint where the firmware only takes signed modules; nothing otherwise."""
    try:
        on = (root / _SECURE_BOOT).read_bytes()[4:5] == b"\1"  # four bytes of attributes come first
    except OSError:
        return []
    if not on:
        return []
    keys = ("var/lib/shim-signed/mok/MOK.der", "var/lib/dkms/mok.pub", "etc/pki/akmods/certs/public_key.der")
    key = next((k for k in keys if (root / k).exists()), keys[1])
    text = "is on: a module built on this machine loads only once its key is enrolled (modprobe: Key was rejected)"
    return [Finding("Secure Boot", NOTE, text, (f"sudo mokutil --import /{key}", "restart, and choose Enroll MOK"))]


def permissions(devices: list[v4l2.Device]) -> list[Finding]:
    """Whether this user may open the cameras. Nothing where there is none."""
    if not devices:
        return []
    import grp

    denied = [d for d in devices if not os.access(d.path, os.R_OK | os.W_OK)]
    if not denied:
        return [Finding("permissions", OK, f"this user may open all video devices ({len(devices)})")]
    paths = ", ".join(d.path for d in denied)
    owners = set()
    for device in denied:
        try:
            owners.add(grp.getgrgid(Path(device.path).stat().st_gid).gr_name)
        except (OSError, KeyError):
            owners.add("?")
    groups = ", ".join(sorted(owners))
    if owners == {"video"}:
        fix: tuple[str, ...] = (loopback.GROUP, "log out and in again")
        if _user() in grp.getgrnam("video").gr_mem:  # joined after this session began
            fix = ("log out and in again",)
    else:
        fix = (f"sudo chgrp video {paths.replace(',', '')} && sudo chmod 660 {paths.replace(',', '')}", loopback.GROUP)
    return [Finding("permissions", PROBLEM, f"{paths} may not be opened by this user (group {groups})", fix)]


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return ""


def display() -> list[Finding]:
    """Whether --preview can show a window. It is not needed otherwise."""
    have = importlib.util.find_spec("pygame") is not None
    install = () if have else ("pip install pygame-ce",)
    if sys.platform == "linux":
        shown = next((f"{n}={os.environ[n]}" for n in ("WAYLAND_DISPLAY", "DISPLAY") if os.environ.get(n)), "")
        if not shown:
            text = "none (no DISPLAY, no WAYLAND_DISPLAY): --preview is not possible"
            return [Finding("display", NOTE, text, install)]
    else:
        shown = "the desktop"
    if not have:
        return [Finding("display", NOTE, f"{shown}; --preview needs pygame-ce", install)]
    return [Finding("display", OK, f"{shown}; pygame-ce is installed: --preview is possible")]


def gpu(root: Path = ROOT, library_test: str = _CUDA) -> list[Finding]:
    """NVIDIA GPUs and their driver. None is needed: the CPU runs the network."""
    answer = ask(library_test, 30)
    driver = _driver(root)
    told = f"driver {driver}" if driver else "driver"
    if answer.ok and answer.text:
        return [Finding("GPU", OK, f"{'; '.join(answer.text.splitlines())}; {told}")]
    if driver:
        why = answer.reason or "it shows no GPU"
        fix = ("restart; if that does not help, install the NVIDIA driver anew",)
        return [Finding("GPU", NOTE, f"the NVIDIA {told} is loaded, but CUDA does not start ({why}): not used", fix)]
    if _nvidia_hardware(root):
        text = "an NVIDIA GPU without its driver: not used, the CPU runs the network"
        return [Finding("GPU", NOTE, text, ("install the NVIDIA driver of your distribution, then restart",))]
    return [Finding("GPU", NOTE, "no NVIDIA GPU: the CPU runs the network, which is enough")]


def _driver(root: Path) -> str:
    try:
        text = (root / "proc/driver/nvidia/version").read_text("utf-8", "replace")
    except OSError:
        return ""
    found = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", text)
    return found[1] if found else "of unknown version"


def _nvidia_hardware(root: Path) -> bool:
    for device in (root / "sys/bus/pci/devices").glob("*"):
        try:
            if (device / "vendor").read_text().strip() == "0x10de" and (device / "class").read_text()[:4] == "0x03":
                return True
        except OSError:
            continue
    return False


@dataclass(frozen=True, slots=True)
class Answer:
    """Of a Python program of its own. ok: it ended well. text: its output. reason: else why, one line."""

    ok: bool
    text: str
    reason: str


def ask(program: str, seconds: float, *words: str) -> Answer:
    """Runs Python code in a process of its own, which may crash or hang without harm. Never raises."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Answer(False, "", f"no answer within {seconds:.0f} s")
    except OSError as exc:
        return Answer(False, "", str(exc))
    lines = done.stderr.strip().splitlines()
    reason = lines[-1] if lines else f"it ended with {done.returncode}"
    if done.returncode < 0:
        reason = f"it crashed with signal {-done.returncode}"
    return Answer(done.returncode == 0, done.stdout.strip(), "" if done.returncode == 0 else reason)
