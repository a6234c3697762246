"""Every error that rtbg raises on purpose. Each message is one line that says what is wrong and what to do.

    RtbgError
    ├── UsageError (ValueError)        wrong options or arguments: exit code 2
    ├── InputError (OSError)           an input that is missing, unreadable or not what it should be
    │   └── NoPicture                  a live source has nothing right now; reading again tries again
    ├── BackgroundError (ValueError)   a background that is missing, unreadable or not understood
    ├── OutputError (OSError)          an output that cannot be written
    ├── MattingError (RuntimeError)    the network failed, hung or answered nonsense
    ├── MissingDependency (ImportError)  an optional package; the message holds the pip command
    └── Aborted (RuntimeError)         a run ended by `abort()` before its end

Engines, which know nothing of rtbg, raise `engines.EngineError`; it becomes a MattingError on its way up.
"""

from __future__ import annotations


class RtbgError(Exception):
    """Root of the tree; catching it catches everything that rtbg raises on purpose."""


class UsageError(RtbgError, ValueError):
    """Options or arguments that make no sense."""


class InputError(RtbgError, OSError):
    """An input is missing, unreadable, or holds no picture."""


class NoPicture(InputError):
    """A camera has no picture right now (unplugged, busy, silent): the message says which and what to do. Not final:
    the source keeps trying, `read` may be called again."""


class BackgroundError(RtbgError, ValueError):
    """A background is missing, unreadable, or its name is not understood."""


class OutputError(RtbgError, OSError):
    """An output cannot be written: no such folder, no space, codec refused."""


class MattingError(RtbgError, RuntimeError):
    """The network failed or answered nonsense."""


class MissingDependency(RtbgError, ImportError):
    """An optional package is not installed; the message names the pip command."""


class Aborted(RtbgError, RuntimeError):
    """The run was aborted (second Ctrl-C, or `Stop.abort()`)."""
