"""A microphone beside a live recording: sound files stand in for it, and what was written is read back."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from rtbg.errors import OutputError, UsageError
from rtbg.frame import LIMITED, SMPTE170M, Color, Frame, StreamInfo
from rtbg.sinks import VideoSink
from rtbg.sinks.microphone import Microphone, _Clock
from rtbg.sinks.tracks import LiveTrack
from tests.media import beeps

RATE = 44100  # not the recording's
INFO = StreamInfo(128, 96, Fraction(1, 1_000_000), Fraction(30), Color(SMPTE170M, LIMITED))
SUFFIXES = [".mp4", ".mkv", ".mov", ".webm"]


def wav(path: Path, begins: float, seconds: float, *, rate: int = RATE, channels: int = 1, codec: str = "pcm_s16le"):
    """Silence, and from `begins` on a tone of 1 kHz."""
    t = np.arange(round(seconds * rate)) / rate
    samples = np.where(t >= begins, 12000 * np.sin(2 * np.pi * 1000 * t), 0).astype(np.int16)
    samples = np.repeat(samples, channels)[None]
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, layout="mono" if channels == 1 else "stereo")
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono" if channels == 1 else "stereo")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def picture(captured: float, k: int = 0, made: float = 0.0) -> Frame:
    """One as a live source gives it; `made`: when that source was."""
    y = np.full((INFO.height, INFO.width), 40 + k % 150, np.uint8)
    c = np.full((INFO.height // 2, INFO.width // 2), 128, np.uint8)
    return Frame((y, c, c), round((captured - made) * 1_000_000), INFO.time_base, INFO.color, captured)


def record(
    path: Path, microphone: Microphone | None, seconds: float, each: Callable[[int], None] | None = None
) -> float:
    """Pictures in real time, at uneven gaps, from now on. Returns when the first was captured."""
    sink = VideoSink(
        path, INFO, sound=microphone, overwrite=True, preset="ultrafast" if path.suffix != ".webm" else None
    )
    made = time.perf_counter() - 2.5
    first = now = time.perf_counter()
    k = 0
    while now - first < seconds:
        sink.write(picture(now, k, made))
        if each is not None:
            each(k)
        k += 1
        time.sleep((0.02, 0.05, 0.033)[k % 3])
        now = time.perf_counter()
    sink.close()
    return first


def spans(path: Path) -> dict[str, tuple[float, float]]:
    """First and last moment of each kind of track, by what is decoded."""
    found = {}
    with av.open(str(path)) as source:
        kinds = {s.type for s in source.streams}
    for kind in kinds:
        with av.open(str(path)) as source:
            frames = [f for f in source.decode(**{kind: 0}) if f.pts is not None]
        if frames:
            ends = frames[-1].samples / frames[-1].sample_rate if kind == "audio" else 1 / 30
            found[kind] = (
                float(frames[0].pts * frames[0].time_base),
                float(frames[-1].pts * frames[-1].time_base) + ends,
            )
    return found


def heard(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(seconds, loudness) of each 5 ms of the sound track, at the times that the file gives."""
    at, loud = [], []
    with av.open(str(path)) as source:
        for frame in source.decode(audio=0):
            samples = frame.to_ndarray().astype(np.float64)[0]
            step = frame.sample_rate // 200
            for k in range(0, frame.samples - step + 1, step):
                at.append(float(frame.pts * frame.time_base) + k / frame.sample_rate)
                loud.append(float(np.sqrt((samples[k : k + step] ** 2).mean())))
    return np.array(at), np.array(loud)


def onset(path: Path) -> float:
    """When the tone begins."""
    at, loud = heard(path)
    return float(at[np.argmax(loud > 0.1)])


@pytest.fixture
def opened() -> Iterator[Callable[[Path | str], Microphone]]:
    made: list[Microphone] = []

    def open_one(name: Path | str) -> Microphone:
        made.append(Microphone(str(name)))
        return made[-1]

    yield open_one
    for microphone in made:
        microphone.close()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_recording_has_both_tracks_at_the_right_times(tmp_path: Path, suffix: str, opened) -> None:
    tone = wav(tmp_path / "tone.wav", 1.6, 6, channels=2)
    out = tmp_path / f"rec{suffix}"
    microphone = opened(tone)
    begun = time.perf_counter()  # the file's second 0, within what opening takes
    assert microphone.description == f"{tone}: 44100 Hz, stereo, a file"
    time.sleep(0.4)
    first = record(out, microphone, 3)
    assert not microphone.alive
    found = spans(out)
    assert set(found) == {"video", "audio"}
    assert found["video"][0] == pytest.approx(0, abs=0.002)
    assert found["audio"][0] == pytest.approx(0, abs=0.03)
    assert found["video"][1] == pytest.approx(found["audio"][1], abs=0.1)
    assert found["video"][1] == pytest.approx(3, abs=0.5)
    assert onset(out) == pytest.approx(begun + 1.6 - first, abs=0.08)
    with av.open(str(out)) as source:
        assert source.streams.audio[0].codec_context.name == ("opus" if suffix == ".webm" else "aac")
        assert source.streams.audio[0].codec_context.layout.nb_channels == 2


def test_without_a_microphone_the_first_picture_is_at_0(tmp_path: Path) -> None:
    """And the others when they were captured, in every container; no sound track is there."""
    steps = np.cumsum(np.random.default_rng(0).uniform(0.008, 0.09, 60))
    steps[40:] += 1.5
    moments = [0.0, *steps]
    for suffix in SUFFIXES:
        out = tmp_path / f"rec{suffix}"
        sink = VideoSink(out, INFO)
        for k, at in enumerate(moments):
            sink.write(picture(54_321.9 + at, k, made=54_319.5))
        sink.close()
        with av.open(str(out)) as source:
            assert [s.type for s in source.streams] == ["video"]
            times = [float(f.pts * f.time_base) for f in source.decode(video=0)]
            assert times == pytest.approx(moments, abs=0.001)
            length = moments[-1] + moments[-1] - moments[-2]
            assert source.duration / 1e6 == pytest.approx(length, abs=0.002)


def test_recorded_while_no_picture_comes(tmp_path: Path, opened) -> None:
    """The camera is frozen or gone for a while: what is said meanwhile is there."""
    tone = wav(tmp_path / "tone.wav", 0.8, 6)
    out = tmp_path / "rec.mp4"
    microphone = opened(tone)
    begun = time.perf_counter()
    first = record(out, microphone, 1.8, each=lambda k: time.sleep(1.4 if k == 5 else 0))
    at, loud = heard(out)
    assert onset(out) == pytest.approx(begun + 0.8 - first, abs=0.08)
    during = (at > begun + 0.9 - first) & (at < 1.5)
    assert during.sum() > 50
    assert (loud[during] > 0.1).mean() > 0.9


def test_a_file_is_heard_again_and_again(tmp_path: Path, opened) -> None:
    tone = wav(tmp_path / "tone.wav", 0.3, 0.6)
    record(tmp_path / "rec.mkv", opened(tone), 2)
    _, loud = heard(tmp_path / "rec.mkv")
    assert 2 <= int(((loud[:-1] <= 0.1) & (loud[1:] > 0.1)).sum()) <= 5, "times that the tone begins"


def test_a_failing_microphone_ends_the_sound_only(tmp_path: Path, opened, caplog) -> None:
    """After 0.8 s the file goes on at another rate, which is refused."""
    parts = [wav(tmp_path / f"{rate}.aac", 0, 0.8, rate=rate, codec="aac") for rate in (44100, 32000)]
    tone = tmp_path / "tone.aac"
    tone.write_bytes(b"".join(part.read_bytes() for part in parts))
    microphone = opened(tone)
    caplog.set_level(logging.WARNING, "rtbg")
    record(tmp_path / "rec.mp4", microphone, 2.5)
    found = spans(tmp_path / "rec.mp4")
    assert found["video"][1] == pytest.approx(2.5, abs=0.3)
    assert found["audio"][1] == pytest.approx(0.8, abs=0.2)
    (warning,) = [r.getMessage() for r in caplog.records]
    assert str(tone) in warning
    assert "the recording goes on without sound" in warning
    assert "\n" not in warning


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_microphone_that_gives_nothing_at_all(tmp_path: Path, suffix: str, opened) -> None:
    """Its track is empty; the pictures are all there."""
    microphone = opened(wav(tmp_path / "tone.wav", 0, 1))
    sink = VideoSink(tmp_path / f"rec{suffix}", INFO, sound=microphone)
    microphone.close()
    microphone.record(lambda frame: None)
    for k in range(10):
        sink.write(picture(100 + k / 30, k))
    sink.close()
    with av.open(str(tmp_path / f"rec{suffix}")) as source:
        assert len(list(source.decode(video=0))) == 10


def test_abort_and_a_refused_target_free_the_microphone(tmp_path: Path, opened) -> None:
    tone = wav(tmp_path / "tone.wav", 0, 1)
    microphone = opened(tone)
    sink = VideoSink(tmp_path / "rec.mp4", INFO, sound=microphone)
    sink.write(picture(time.perf_counter()))
    sink.abort()
    assert not microphone.alive
    assert [p.name for p in tmp_path.iterdir()] == ["tone.wav"]
    microphone = opened(tone)
    with pytest.raises(OutputError):
        VideoSink(tmp_path / "none" / "rec.mp4", INFO, sound=microphone)
    with pytest.raises(UsageError):
        VideoSink(tmp_path / "rec.mp4", INFO, codec="vp9x", sound=microphone)
    microphone.close()
    assert not microphone.alive
    microphone.close()


# -- gaps and clocks --

CHUNK = 960  # samples, 20 ms


def fed(path: Path, opened, chunks: Iterator[tuple[float, np.ndarray]], seconds: float) -> Path:
    """A recording of chunks of sound, each at its time, with a picture each tenth of a second."""
    microphone = opened(wav(path.with_name("any.wav"), 0, 1, rate=48000))
    sink = VideoSink(path, INFO, sound=microphone)
    microphone.close()
    track = sink._track
    assert isinstance(track, LiveTrack)
    sink.write(picture(1000.0))
    shown = 1
    for at, samples in chunks:
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, round((1000 + at) * 1e6), Fraction(1, 1_000_000)
        track.feed(frame)
        while shown / 10 < min(at, seconds):
            sink.write(picture(1000 + shown / 10, shown))
            shown += 1
    sink.close()
    return path


def starts(path: Path) -> list[float]:
    """When each beep begins."""
    found: list[float] = []
    for at, loud in zip(*heard(path), strict=True):
        if loud > 0.08 and (not found or at - found[-1] > 0.5):
            found.append(float(at))
    return found


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("gap", [0.5, 1.5, 5.0, 30.0])
def test_what_follows_a_gap_is_on_time(tmp_path: Path, suffix: str, gap: float, opened) -> None:
    """The sound of seconds 1.5 to 1.5 + gap was lost."""
    end = 5 + gap
    sound = beeps(round(end * 48000))
    chunks = (
        (k / 48000, sound[k : k + CHUNK]) for k in range(0, len(sound), CHUNK) if not 1.5 <= k / 48000 < 1.5 + gap
    )
    out = fed(tmp_path / f"rec{suffix}", opened, chunks, end)
    kept = [s for s in range(math.ceil(end)) if not 1.5 <= s < 1.5 + gap]
    assert starts(out) == pytest.approx(kept, abs=0.04)
    found = spans(out)
    assert found["audio"][1] == pytest.approx(found["video"][1], abs=0.15)
    with av.open(str(out)) as source:
        packets = sum(1 for p in source.demux(audio=0) if p.size)
    filled = end if gap < 2 else end - gap
    assert packets == pytest.approx(filled * 48000 / (960 if suffix == ".webm" else 1024), abs=5)


def test_sound_that_cannot_be_encoded_ends_there(tmp_path: Path, opened) -> None:
    """It changes its rate on the way: that is refused, nothing after it is taken, and what there was is kept."""
    microphone = opened(wav(tmp_path / "any.wav", 0, 1, rate=48000))
    sink = VideoSink(tmp_path / "rec.mp4", INFO, sound=microphone)
    microphone.close()
    track = sink._track
    assert track is not None
    sound = beeps(48000)
    for k in range(30):
        sink.write(picture(1000 + k / 30, k))
        frame = av.AudioFrame.from_ndarray(sound[None, k * 1600 : k * 1600 + 1600], format="s16", layout="mono")
        frame.sample_rate = 48000 if k < 15 else 32000
        frame.pts, frame.time_base = round((1000 + k / 30) * 1e6), Fraction(1, 1_000_000)
        with pytest.raises(ValueError) if k == 15 else nullcontext():
            track.feed(frame)
    sink.close()
    found = spans(tmp_path / "rec.mp4")
    assert found["video"][1] == pytest.approx(1, abs=0.05)
    assert found["audio"][1] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("drift", [0.002, -0.002])
def test_a_sound_card_with_a_clock_of_its_own(tmp_path: Path, drift: float, opened) -> None:
    """Over a minute 120 ms would have come together; the times are those that `_Clock` gives."""
    sound = beeps(60 * 48000)
    clock = _Clock(48000)

    def chunks() -> Iterator[tuple[float, np.ndarray]]:
        rng = np.random.default_rng(0)
        for k in range(0, len(sound), CHUNK):
            arrived = (k + CHUNK) / 48000 * (1 + drift) + float(rng.exponential(0.003))
            yield clock.time(arrived, CHUNK), sound[k : k + CHUNK]

    out = fed(tmp_path / "rec.mkv", opened, chunks(), 60)
    expected = [k * (1 + drift) for k in range(60)]
    assert starts(out) == pytest.approx(expected, abs=0.05)


def test_lost_samples_and_a_late_first_packet() -> None:
    """A driver holds the first packets up for 0.3 s; later it loses 0.2 s; now and then a thread waits for its turn."""
    clock = _Clock(1000)
    times = {}
    for k in range(1, 400):
        taken = k * 0.02 + (0.2 if k > 200 else 0)  # when the last sample of the packet was recorded
        held = max(taken, 0.3) if k < 15 else taken + (0.4 if k in (50, 51, 120) else 0)
        times[k] = clock.time(held, 20) - (taken - 0.02)
    assert all(abs(error) < 0.011 for k, error in times.items() if 15 < k <= 200 or k > 310)
    assert times[1] == pytest.approx(0.28, abs=0.001)
