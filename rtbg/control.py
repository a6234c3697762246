"""What a user can change while a live run goes on: keys of the terminal and of the preview, signals.

Used by `rtbg.live`; `rtbg.keys` and `rtbg.preview` press. Imports nothing heavy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

KEYS = {"b": "next background", "m": "matte view", "space": "freeze", "q": "quit"}


class Control:
    """Wishes of the user, from any thread. `matte`: the matte is shown instead of the composite. `frozen`: the last
    picture is sent again and again. `steps` and `reloads` only grow."""

    def __init__(self, *, quit: Callable[[], None]) -> None:
        self._quit = quit
        self._lock = threading.RLock()  # a signal may come on the very thread that presses a key
        self.matte = self.frozen = False
        self.steps = 0  # backgrounds forward since the start
        self.reloads = 0  # wishes for the background's file to be read again

    def press(self, key: str) -> bool:
        """One key by its name in `KEYS`, or as typed (" " is space); whether it means anything."""
        key = {" ": "space"}.get(key, key.lower())
        with self._lock:
            if key == "b":
                self.steps += 1
            elif key == "m":
                self.matte = not self.matte
            elif key == "space":
                self.frozen = not self.frozen
            elif key != "q":
                return False
        if key == "q":
            self._quit()
        return True

    def reload(self) -> None:
        """SIGHUP: read the background's file again."""
        with self._lock:
            self.reloads += 1
