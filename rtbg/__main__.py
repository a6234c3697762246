"""`python -m rtbg` and the console script."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Exits with the command line's code."""
    _open_standard_files()
    # Until the command line has its own handlers there is nothing to finish, and an interrupt inside an import
    # would come out as a traceback, or as somebody's ImportError.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from rtbg.cli import main as run

    sys.exit(run())


def _open_standard_files() -> None:
    """What is closed of standard input, output and error becomes the null device. The next file that is opened would
    get its number, and whatever a library says on standard error. `sys.stdout` and the like stay None."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number: this one


if __name__ == "__main__":
    main()
