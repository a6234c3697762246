"""Keys of a Windows console, as far as its C library can be played."""

from __future__ import annotations

import errno
import importlib.util
import sys
import time
from types import SimpleNamespace

import pytest

import rtbg.keys
from rtbg.control import Control


class Console:
    """`msvcrt` after getch.cpp and getwch.cpp of Microsoft's C library: a key without a letter gives 0 or 0xE0, and its
    code waits where `kbhit` does not look. Keys are given as what they send."""

    def __init__(self, *keys: str) -> None:
        self._keys = list(keys)
        self._pushed = ""
        self.waited = False

    def kbhit(self) -> bool:
        return bool(self._keys)

    def getwch(self) -> str:
        if self._pushed:
            pushed, self._pushed = self._pushed, ""
            return pushed
        if not self._keys:
            self.waited = True  # the real one does, for the next key
            return "\r"
        char, self._pushed = self._keys[0][0], self._keys[0][1:]
        del self._keys[0]
        return char

    def ungetwch(self, char: str) -> None:
        if self._pushed:
            raise OSError(errno.ENOENT, "No such file or directory")
        self._pushed = char


@pytest.mark.parametrize(
    ("keys", "pressed"),
    [
        (("b", "\xe0M", "m", "\0;", " ", "\xe0\x53"), ["b", "m", " "]),  # the right arrow is no m
        (("\xe0", "m"), ["m"]),  # an à takes no other key's place
        (("b", "\xe0"), ["b"]),  # nor is one waited for
    ],
)
def test_keys_of_a_windows_console(monkeypatch: pytest.MonkeyPatch, keys: tuple[str, ...], pressed: list[str]) -> None:
    console = Console(*keys)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setitem(sys.modules, "msvcrt", console)
    assert rtbg.keys.__file__ is not None
    spec = importlib.util.spec_from_file_location("keys_of_windows", rtbg.keys.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    control, said = Control(quit=lambda: None), list[str]()
    monkeypatch.setattr(control, "press", said.append)
    with module.terminal_keys(control) as taken:
        assert taken
        end = time.monotonic() + 10
        while console.kbhit() and time.monotonic() < end:
            time.sleep(0.01)
    assert said == pressed and not console.waited
