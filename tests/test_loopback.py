"""Loopback devices of Linux: who holds a file, which state the module is in, what to type. Devices themselves are
tested in the virtual machine of tests/camera_vm."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rtbg import loopback
from rtbg.errors import OutputError
from rtbg.loopback import UNLOAD, Claim, Holder, Module, commands, holders, in_a_line, module
from rtbg.v4l2 import Device

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="v4l2loopback is Linux's")

LOAD = 'sudo modprobe v4l2loopback exclusive_caps=1 card_label="rtbg"'
PERSIST = [
    "echo v4l2loopback | sudo tee /etc/modules-load.d/rtbg.conf",
    "echo 'options v4l2loopback exclusive_caps=1 card_label=\"rtbg\"' | sudo tee /etc/modprobe.d/rtbg.conf",
]
HOLD = """
import os, sys, fcntl, time
fd = os.open(sys.argv[1], {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}[sys.argv[2]])
if len(sys.argv) > 3:
    fcntl.flock(fd, fcntl.LOCK_EX)
print("up", flush=True)
sys.stdin.read()
"""


class Other:
    """Another process that has a file open until the end of the block."""

    def __init__(self, path: Path, access: str, *words: str, program: Path | None = None) -> None:
        code = [str(program)] if program else ["-c", HOLD]
        self.process = subprocess.Popen(
            [sys.executable, *code, str(path), access, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> int:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == "up"
        return self.process.pid

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "device"
    path.write_bytes(b"")
    return path


# -- holders --


@pytest.mark.parametrize("access", ["r", "w", "rw"])
def test_a_process_that_holds_a_file_is_found_with_its_access(file, access):
    assert holders(str(file)) == []
    with Other(file, access) as pid:
        (found,) = holders(str(file))
        assert (found.pid, found.access) == (pid, access)
    assert holders(str(file)) == []


def test_a_link_to_the_file_finds_the_same(file, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(file)
    with Other(link, "r") as pid:
        assert [h.pid for h in holders(str(link))] == [h.pid for h in holders(str(file))] == [pid]


def test_several_processes_and_descriptors(file):
    with Other(file, "r") as one, Other(file, "w") as two, file.open("rb"), file.open("ab"):
        assert {(h.pid, h.access) for h in holders(str(file))} == {(one, "r"), (two, "w")}
        own = [h for h in holders(str(file), own=True) if h.pid == os.getpid()]
        assert [h.access for h in own] == ["rw"]


def test_a_python_script_goes_by_its_own_name(file, tmp_path):
    script = tmp_path / "their_camera.py"
    script.write_text(HOLD)
    with Other(file, "w", program=script) as pid:
        assert [str(h) for h in holders(str(file))] == [f"their_camera.py, pid {pid}"]


def test_another_file_is_not_taken_for_it(file, tmp_path):
    other = tmp_path / "device2"
    other.write_bytes(b"")
    with Other(other, "w"):
        assert holders(str(file)) == []


# -- which device is free --


def device(path, capture, output, error=0):
    return Device(str(path), "rtbg", "v4l2 loopback", "platform:v4l2loopback-000", capture, output, 0, error)


def test_what_a_device_offers_tells_whether_it_is_free(file):
    idle, written, left_behind = device(file, False, True), device(file, True, False), device(file, False, False)
    assert [loopback.free(d) for d in (idle, written, left_behind)] == [True, False, True]


def test_without_exclusive_caps_the_holders_tell(file):
    both = device(file, True, True)
    assert loopback.free(both)
    with Other(file, "r"):
        assert loopback.free(both)
    with Other(file, "rw"):
        assert not loopback.free(both)
        assert loopback.free(device(file, False, True)), "a reader may open for both"
    with Other(file, "w"):
        assert not loopback.free(both)
        assert not loopback.free(device(file, False, True))


def test_only_the_module_tells_what_browsers_will_not_list(tmp_path, file):
    """A device with exclusive_caps offers both sides too, while a reader outlives its writer."""
    root = system(tmp_path, {"sys/module/v4l2loopback/parameters/exclusive_caps": "N,Y,N\n"})

    def numbered(number, capture=True):
        return Device(str(file), "x", "v4l2 loopback", f"platform:v4l2loopback-00{number}", capture, True, 0)

    assert [loopback.hidden(numbered(n), root) for n in (0, 1, 2, 3)] == [True, False, True, False]
    assert not loopback.hidden(numbered(0, capture=False), root)
    assert not loopback.hidden(numbered(0), tmp_path / "nothing")


@pytest.mark.parametrize(
    ("flags", "numbers", "number", "hidden"),
    [
        ("Y,N,N", "10,2,-1", 10, False),  # the first, whatever its number
        ("Y,N,N", "10,2,-1", 2, True),
        ("N,Y,Y", "10,0,1", 0, False),
        ("N,Y,N", "10,-1,-1", 10, True),
        ("N,Y,N", "10,-1,-1", 0, False),  # the lowest number that is free
        ("N,Y,N", "-1,-1,-1", 1, False),
        ("N,N,N", "-1,-1,-1", 40, True),  # made later, by v4l2loopback-ctl
        ("Y,N,N", "-1,-1,-1", 40, False),
    ],
)
def test_a_device_is_known_to_the_module_by_its_place(tmp_path, file, flags, numbers, number, hidden):
    folder = "sys/module/v4l2loopback/parameters/"
    root = system(tmp_path, {folder + "exclusive_caps": flags + "\n", folder + "video_nr": numbers + "\n"})
    one = Device(str(file), "x", "v4l2 loopback", f"platform:v4l2loopback-{number:03d}", True, True, 0)
    assert loopback.hidden(one, root) == hidden


def test_no_device_says_what_to_type(monkeypatch):
    if loopback.loopbacks():
        pytest.skip("there is a loopback here")
    for wanted in (None, "rtbg", "/dev/video63", "63"):
        with pytest.raises(OutputError) as caught:
            loopback.choose(wanted, label="rtbg")
        text = str(caught.value)
        assert LOAD in text and all(line in text for line in PERSIST) and "\n" not in text
    assert "63" in text


def test_a_file_that_is_no_camera_is_refused(file):
    with pytest.raises(OutputError, match="is no video device"):
        loopback.choose(str(file), label="rtbg")
    with pytest.raises(OutputError, match="is no video device"):
        loopback.choose("/dev/null", label="rtbg")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "usermod -aG video"),
        (errno.EBUSY, "is busy"),
        (errno.ENODEV, "is gone"),
        (errno.EIO, "rtbg --doctor"),
    ],
)
def test_each_reason_is_one_line(number, words):
    text = str(loopback.refusal("/dev/video9", number))
    assert "/dev/video9" in text and words in text and "\n" not in text


# -- the claim --


def test_a_locked_device_is_refused_and_its_holder_named(file):
    with Other(file, "r", "lock"), pytest.raises(OutputError, match=r"^another program writes to .*--vcam$"):
        Claim(str(file))
    with (
        Other(file, "rw", "lock") as pid,
        pytest.raises(OutputError, match=rf"^another program \(python.*, pid {pid}\) writes"),
    ):
        Claim(str(file))
    # Let go with the process: what is wrong now is that it is no camera.
    with pytest.raises(OutputError, match="is no video device"):
        Claim(str(file))


def test_a_claim_that_failed_holds_nothing(file):
    for _ in range(3):
        with pytest.raises(OutputError, match="is no video device"):
            Claim(str(file))
    assert holders(str(file), own=True) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may open everything")
def test_no_permission_names_the_group(file):
    file.chmod(0)
    with pytest.raises(OutputError, match="usermod -aG video"):
        Claim(str(file))


def test_a_missing_device_is_gone(tmp_path):
    with pytest.raises(OutputError, match="is gone"):
        Claim(str(tmp_path / "nothing"))


# -- the module, and what to type --


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


KERNEL = os.uname().release
DEP = f"lib/modules/{KERNEL}/modules.dep"


def test_an_empty_system_has_no_module(tmp_path):
    assert module(tmp_path) == Module(False, False, False, "", {})


@pytest.mark.parametrize("name", ["updates/dkms/v4l2loopback.ko.xz", "extra/v4l2loopback.ko"])
def test_a_module_that_is_built_but_not_loaded(tmp_path, name):
    root = system(tmp_path, {DEP: f"kernel/a.ko.xz: kernel/b.ko.xz\n{name}: kernel/videodev.ko.xz\n"})
    assert module(root) == Module(False, True, False, "", {})


def test_a_module_that_only_resembles_it_is_none(tmp_path):
    files = {DEP: "extra/my_v4l2loopback.ko:\n", "proc/modules": "v4l2loopback_dc 1 0 - Live 0x0\n"}
    assert module(system(tmp_path, files)) == Module(False, False, False, "", {})


def test_a_package_that_was_not_built(tmp_path):
    root = system(tmp_path, {"usr/src/v4l2loopback-0.12.7/dkms.conf": ""})
    state = module(root)
    assert state.source and not state.installed
    typed = commands(state, "ID=debian\n")
    assert typed[:3] == ["sudo apt install v4l2loopback-dkms linux-headers-$(uname -r)", "sudo dkms autoinstall", LOAD]


def test_a_loaded_module_tells_version_and_options(tmp_path):
    root = system(
        tmp_path,
        {
            "proc/modules": "videodev 300 1 v4l2loopback, Live 0x0\nv4l2loopback 45056 0 - Live 0x0 (OE)\n",
            "sys/module/v4l2loopback/version": "0.12.7\n",
            "sys/module/v4l2loopback/parameters/exclusive_caps": "Y,N,N\n",
        },
    )
    assert module(root) == Module(True, True, False, "0.12.7", {"exclusive_caps": "Y,N,N"})
    assert commands(module(root), "") == [UNLOAD, LOAD, *PERSIST]


RELEASES = {
    "debian": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n',
    "mint": 'ID=linuxmint\nID_LIKE="ubuntu debian"\n',
    "fedora": "NAME='Fedora Linux'\nID=fedora\nVERSION_ID=43\n",
    "arch": "ID=arch\n",
    "manjaro": "ID=manjaro\nID_LIKE=arch\n",
    "tumbleweed": 'ID="opensuse-tumbleweed"\nID_LIKE="opensuse suse"\n',
    "other": "ID=plan9\n",
    "none": "",
}
TOOLS = {"debian": "apt", "mint": "apt", "fedora": "dnf", "arch": "pacman", "manjaro": "pacman", "tumbleweed": "zypper"}


@pytest.mark.parametrize("release", RELEASES)
def test_each_distribution_gets_its_own_commands(release):
    typed = commands(Module(False, False, False, "", {}), RELEASES[release])
    tools = {line.split()[1] for line in typed if line.startswith("sudo")} - {"modprobe", "akmods"}
    assert tools == ({TOOLS[release]} if release in TOOLS else set())
    assert typed[-3:] == [LOAD, *PERSIST]
    line = in_a_line(typed)
    assert "\n" not in line and LOAD in line and line.count("sudo modprobe") == 1
    assert "#" not in line and (release in TOOLS or "package manager" in line)


def test_an_installed_module_needs_no_package_manager():
    assert commands(Module(False, True, True, "", {}), RELEASES["debian"]) == [LOAD, *PERSIST]


def test_what_is_typed_says_what_modprobe_must_hear():
    assert shlex.split(LOAD) == ["sudo", "modprobe", "v4l2loopback", "exclusive_caps=1", "card_label=rtbg"]
    text = subprocess.run(PERSIST[1].split(" | ")[0], shell=True, capture_output=True, text=True, check=True).stdout
    assert text == 'options v4l2loopback exclusive_caps=1 card_label="rtbg"\n'


def test_other_virtual_cameras_are_kept():
    state = Module(True, True, False, "", {})
    typed = commands(state, "", others=["OBS Cam", 'odd, "name"'])
    load = 'sudo modprobe v4l2loopback devices=3 exclusive_caps=1,1,1 card_label="OBS Cam,odd   name ,rtbg"'
    assert typed[:2] == [UNLOAD, load]
    assert shlex.split(load)[-1] == "card_label=OBS Cam,odd   name ,rtbg"


def test_a_file_of_options_that_would_win_is_named(tmp_path):
    files = {
        "etc/modprobe.d/v4l2loopback.conf": "# mine\noptions v4l2loopback devices=2 video_nr=10,11\n",
        "etc/modprobe.d/obs.conf": "#options v4l2loopback card_label=OBS\n",
        "etc/modprobe.d/rtbg.conf": "options v4l2loopback exclusive_caps=1\n",
        "etc/modprobe.d/webcam.conf": "options uvcvideo quirks=2\noptions v4l2loopback_dc x=1\n",
        "etc/modprobe.d/masked.conf": "",
        "usr/lib/modprobe.d/masked.conf": "options v4l2loopback devices=1\n",
        "usr/lib/modprobe.d/z.conf": "  options\tv4l2loopback devices=1\n",
        "etc/modprobe.d/readme": "options v4l2loopback devices=1\n",
    }
    state = module(system(tmp_path, files))
    assert state.elsewhere == ("/etc/modprobe.d/v4l2loopback.conf", "/usr/lib/modprobe.d/z.conf")
    note = f"# take the options of v4l2loopback out of {' and '.join(state.elsewhere)}"
    assert commands(Module(True, True, False, "", {}, state.elsewhere), "") == [note, UNLOAD, LOAD, *PERSIST]
    line = in_a_line(commands(Module(True, True, False, "", {}, state.elsewhere), ""))
    assert line.startswith(f"{note[2:]}, then: {UNLOAD} && {LOAD}; to have it at every start: ") and "#" not in line


def test_holders_read_well():
    assert loopback.in_brackets([]) == ""
    assert loopback.in_brackets([Holder(7, "zoom", "rw"), Holder(9, "obs", "w")]) == " (zoom, pid 7; obs, pid 9)"
