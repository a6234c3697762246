"""`python -m rtbg` and the console script."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Exits with the command line's code."""
    # Until the command line has its own handlers there is nothing to finish, and an interrupt inside an import
    # would come out as a traceback, or as somebody's ImportError.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from rtbg.cli import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
