"""The errors of `engines`, and how a library's complaint becomes one line.

    EngineError (RuntimeError)   a model or an engine that cannot be used, or used wrongly
    └── ModelError               the file itself is at fault: no other engine would do better

Each message is one line that says what is wrong and what to do.
"""

from __future__ import annotations

import re


class EngineError(RuntimeError):
    """A model or an engine that cannot be used here, or that was called wrongly."""


class ModelError(EngineError):
    """The model's file or card is at fault, whatever runs it; `engine="auto"` tries nothing further."""


# What OpenVINO and ONNX Runtime put around the reason: source positions, headings, status codes, the file's name.
_NOISE = re.compile(
    r"^(Exception from .*|Check '.*' failed at .*|FrontEnd API failed.*|Summary:|-- )"
    r"|^\[ONNXRuntimeError\] : \d+ : \w+ : |^Load model from .*? failed:\s*"
)


def short_reason(exc: BaseException, limit: int = 160) -> str:
    """One line, `limit` characters at most, of what a library's exception says."""
    kept = []
    for line in str(exc).splitlines():
        line, found = line.strip(), 1
        while found:
            line, found = _NOISE.subn("", line, count=1)
        if line:
            kept.append(line)
    text = " ".join(kept) or type(exc).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def import_error(title: str, package: str, command: str, exc: BaseException) -> EngineError:
    """The error for an import that failed: the package is missing (`command` installs it) or it is broken."""
    if isinstance(exc, ModuleNotFoundError) and exc.name == package:
        return EngineError(f"{title} is not installed: {command}")
    return EngineError(
        f"{title} is installed but does not start ({short_reason(exc)}): pip install --force-reinstall {package}"
    )
