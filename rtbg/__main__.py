"""`python -m rtbg` and the console script."""

from __future__ import annotations

import sys

from rtbg.cli import main as run


def main() -> None:
    """Exits with the command line's code."""
    sys.exit(run())


if __name__ == "__main__":
    main()
