"""What the doctor finds of the system: the kernel module, permissions, the display, the GPU."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

from rtbg import doctor_system as system
from rtbg import loopback
from rtbg.doctor_system import NOTE, OK, PROBLEM, Answer
from rtbg.v4l2 import Device

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc and /sys")


def tree(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


# -- kernel module and Secure Boot --

KERNEL = os.uname().release if hasattr(os, "uname") else ""
PARAMETERS = "sys/module/v4l2loopback/parameters/"
SECURE = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


@linux
def test_a_missing_module_is_a_problem_with_this_systems_commands(tmp_path):
    root = tree(tmp_path, {"etc/os-release": "ID=arch\n"})
    (finding,) = system.module(root)
    assert finding.state == PROBLEM and "not installed" in finding.text
    assert finding.fix[0] == "sudo pacman -S v4l2loopback-dkms linux-headers"


@linux
def test_an_unbuilt_module_is_told_apart(tmp_path):
    root = tree(tmp_path, {"etc/os-release": "ID=debian\n", "usr/src/v4l2loopback-0.13/x": ""})
    (finding,) = system.module(root)
    assert "was not built for this kernel" in finding.text and "sudo dkms autoinstall" in finding.fix


@linux
def test_an_installed_module_is_only_to_be_loaded(tmp_path):
    root = tree(tmp_path, {f"lib/modules/{KERNEL}/modules.dep": "extra/v4l2loopback.ko: a.ko\n"})
    (finding,) = system.module(root)
    assert "is not loaded" in finding.text and finding.fix[0].startswith("sudo modprobe v4l2loopback")


@linux
def test_a_loaded_module_tells_its_options(tmp_path):
    files = {PARAMETERS + "exclusive_caps": "Y,Y,N,N,N\n", PARAMETERS + "video_nr": "10,11,-1,-1,-1\n"}
    (finding,) = system.module(tree(tmp_path, {**files, "sys/module/v4l2loopback/version": "0.15.0\n"}))
    assert finding.state == OK
    assert finding.text == "v4l2loopback 0.15.0 is loaded: exclusive_caps Y,Y; video_nr 10,11"


@linux
def test_a_module_without_exclusive_caps_is_a_problem(tmp_path):
    (finding,) = system.module(tree(tmp_path, {PARAMETERS + "exclusive_caps": "N,N,N\n"}))
    assert finding.state == PROBLEM and "exclusive_caps N;" in finding.text
    assert finding.fix[0] == loopback.UNLOAD and "exclusive_caps=1" in finding.fix[1]


@linux
def test_secure_boot_is_named_where_it_may_be_in_the_way(tmp_path):
    on, off = b"\x06\0\0\0\x01", b"\x06\0\0\0\0"
    root = tree(tmp_path, {SECURE: on, "var/lib/shim-signed/mok/MOK.der": b""})
    assert [f.area for f in system.module(root)] == ["kernel module", "Secure Boot"]
    assert system.secure_boot(root)[0].fix[0] == "sudo mokutil --import /var/lib/shim-signed/mok/MOK.der"
    assert system.secure_boot(tree(tmp_path, {SECURE: off})) == []
    assert system.secure_boot(tmp_path / "nothing") == []


# -- permissions --


@linux
def test_permissions_of_a_user_who_may_not(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        file = Path(folder) / "video0"
        file.write_bytes(b"")
        file.chmod(0o660)
        device = Device(str(file), "Cam", "uvcvideo", "", True, False, 0)
        (fine,) = system.permissions([device])
        assert fine.state == OK
        read, write = os.pipe()
        child = os.fork()
        if child == 0:  # no import is left to be done here
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            (finding,) = system.permissions([device])
            os.write(write, f"{finding.state}|{finding.text}|{'|'.join(finding.fix)}".encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            told = pipe.read()
        os.waitpid(child, 0)
    assert told.startswith(f"{PROBLEM}|{file} may not be opened by this user (group root)|sudo chgrp video {file} ")
    assert told.endswith("|sudo usermod -aG video $USER")


@linux
def test_without_devices_there_is_nothing_to_permit():
    assert system.permissions([]) == []


# -- display, GPU --


@linux
def test_display(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert "--preview is not possible" in system.display()[0].text
    monkeypatch.setenv("DISPLAY", ":7")
    assert "DISPLAY=:7" in system.display()[0].text
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert "WAYLAND_DISPLAY=wayland-0" in system.display()[0].text


VERSION = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024\nGCC version: 12\n"
FAILS = "raise SystemExit('error 999')"


@linux
def test_gpu_of_many_systems(tmp_path):
    loaded = tree(tmp_path / "a", {"proc/driver/nvidia/version": VERSION})
    found = {"vendor": "0x10de\n", "class": "0x030000\n"}
    bare = tree(tmp_path / "b", {f"sys/bus/pci/devices/0000:01:00.0/{n}": t for n, t in found.items()})
    (finding,) = system.gpu(loaded, "print('NVIDIA H200, 139 GiB')")
    assert (finding.state, finding.text) == (OK, "NVIDIA H200, 139 GiB; driver 550.54.14")
    assert "550.54.14" in system.gpu(loaded, FAILS)[0].text and "error 999" in system.gpu(loaded, FAILS)[0].text
    assert "without its driver" in system.gpu(bare, FAILS)[0].text
    assert "no NVIDIA GPU" in system.gpu(tmp_path / "nothing", FAILS)[0].text


@linux
def test_a_driver_that_crashes_does_not_take_us_along(tmp_path):
    root = tree(tmp_path, {"proc/driver/nvidia/version": VERSION})
    (finding,) = system.gpu(root, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert finding.state == NOTE and "crashed with signal 11" in finding.text


def test_the_real_test_of_the_gpu_answers():
    answer = system.ask(system._CUDA, 60)
    assert answer.text if answer.ok else answer.reason
    assert answer.ok or "Syntax" not in answer.reason


def test_a_program_that_hangs_is_ended():
    answer = system.ask("import time; time.sleep(600)", 1)
    assert answer == Answer(False, "", "no answer within 1 s")
