"""Where finished pictures go: one file per kind of sink; `open_sink` chooses among those that write a file."""

from __future__ import annotations

from pathlib import Path

from rtbg.errors import UsageError
from rtbg.frame import StreamInfo
from rtbg.protocols import Sink
from rtbg.sinks import still, video
from rtbg.sinks.microphone import Microphone
from rtbg.sinks.still import StillSink
from rtbg.sinks.video import VideoSink

__all__ = ["StillSink", "VideoSink", "open_sink"]


def open_sink(
    path: str | Path,
    info: StreamInfo,
    *,
    alpha: bool = False,
    codec: str | None = None,
    crf: int | None = None,
    preset: str | None = None,
    audio: bool = True,
    overwrite: bool = False,
    threads: int | None = None,
    sound: Microphone | None = None,
    live: bool = False,
) -> Sink:
    """Opens the output that the suffix of `path` names: a video (.mp4 .mov .mkv .webm) or a picture (.png .jpg
    .jpeg .webp; the input must be one picture). Everything is checked here, before any work.

    info: what the source says of the frames that will come. alpha: they carry a fourth plane.
    codec, crf, preset, threads: of a video's encoder, None for the usual ones. audio: False leaves the sound out.
    overwrite: an existing file may be replaced; it stays until the new one is whole. sound: recorded with a video.
    live: a video that fails is kept as far as it goes, see `VideoSink`.
    Raises UsageError for what does not fit together, and where the output is the input; OutputError where the
    folder is missing or refuses, or the target exists and may not be overwritten.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in video.SUFFIXES:
        return VideoSink(
            path,
            info,
            alpha=alpha,
            codec=codec,
            crf=crf,
            preset=preset,
            audio=audio,
            overwrite=overwrite,
            threads=threads,
            sound=sound,
            live=live,
        )
    if suffix not in still.SUFFIXES:
        known = " ".join((*video.SUFFIXES, *still.SUFFIXES))
        raise UsageError(f"{path.name}: the output's name must end in one of {known}")
    for option, value in (("--codec", codec), ("--crf", crf), ("--preset", preset)):
        if value is not None:
            raise UsageError(f"{option} is for videos: leave it away for {suffix}, or name an .mp4")
    return StillSink(path, info, alpha=alpha, overwrite=overwrite)
