"""rtbg as it is, but with a latency budget for an emulated computer: a matte takes seconds here, and a live run shows
no picture that is older than half a second."""

from rtbg import live
from rtbg.__main__ import main

SECONDS = 120.0

if __name__ == "__main__":
    assert live.run_live.__kwdefaults__ is not None
    live.run_live.__kwdefaults__["patience"] = live.PATIENCE = SECONDS
    raise SystemExit(main())
