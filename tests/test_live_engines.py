"""A call goes on while another engine takes over its network (`engines.swap`), as TensorRT does when it is compiled."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from engines.onnxruntime_engine import OnnxRuntimeRunner
from engines.openvino_engine import OpenVINORunner
from engines.signature import adapt
from engines.spec import find_model
from engines.swap import Swapping
from rtbg.backdrop import Backdrop
from rtbg.control import Control
from rtbg.live import Output, run_live
from rtbg.matting import Matting, Refinement
from rtbg.sources.demo import DemoSource
from rtbg.stats import Stats, Stop
from tests.live_parts import Camera, Recording, Steps, info_at

SIZE = 320, 240


@pytest.mark.parametrize("right", [True, False])
def test_the_next_engine_takes_over_in_a_call(right: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Between two pictures, none of which is missing its matte; one that answers otherwise does not take over."""
    spec = find_model("fast")
    pytest.importorskip("onnxruntime", reason="pip install 'rtbg[test]'")
    pictures = [f.planes for f in iter(DemoSource(size=SIZE, seconds=2).read, None)]
    camera = Camera(lambda k: pictures[k % len(pictures)], rate=20)
    info = camera.info = info_at(20, SIZE)
    compiled = threading.Event()

    class Wrong(OnnxRuntimeRunner):
        def run(self, feeds, wanted):  # type: ignore[no-untyped-def]
            return [1 - out for out in super().run(feeds, wanted)]

    def second(_shapes: object, _cancelled: object) -> OnnxRuntimeRunner:
        assert compiled.wait(30)
        return (OnnxRuntimeRunner if right else Wrong)(spec, threads=1)

    def matting() -> Matting:
        first = OpenVINORunner(spec, threads=1, precision="f32")
        return Matting(adapt(spec, Swapping(first, second)), info, Refinement())

    stop, sink = Stop(), Recording()
    control = Control(quit=stop.end)
    path = tmp_path / "green.png"
    cv2.imwrite(str(path), np.full((60, 80, 3), (0, 160, 0), np.uint8))
    backdrop = Backdrop([str(path)], info, control=control)
    told = "runs the network from here on" if right else "the test portrait differs by"
    ran: list[str] = []
    marks: list[int] = []

    def begun(stats: Stats) -> bool:
        ran.append(stats.engine)
        return stats.frames_out >= 10

    def begin() -> None:
        marks.append(len(sink.frames))
        compiled.set()

    with caplog.at_level(logging.INFO, "engines"):
        stats = run_live(
            camera,
            matting,
            backdrop,
            [Output(sink)],
            control=control,
            stop=stop,
            progress=Steps(
                (begun, begin),
                (lambda _: told in caplog.text, lambda: marks.append(len(sink.frames))),
                (lambda s: len(sink.frames) >= marks[1] + 10, stop.end),
                limit=60,
            ),
            patience=2.0,
        )
    assert caplog.text.count(told) == 1
    first = "OpenVINO CPU f32"
    assert ran[-1] == first
    assert stats.engine == first if not right else "ONNX Runtime" in stats.engine
    own = [k for k, f in enumerate(sink.frames) if f.pts in camera.given]
    assert len(own) >= 20
    green = backdrop.card()
    for k in own[3:]:
        planes, picture = sink.frames[k].planes, pictures[camera.given[sink.frames[k].pts] % len(pictures)]
        for p, q in zip(planes, green, strict=True):
            corner = np.s_[: p.shape[0] // 6, -p.shape[1] // 8 :]
            assert np.abs(p[corner].astype(int) - q[corner]).max() <= 3, "the room beside her never shows"
        middle = np.s_[60:100, 125:165]
        difference = planes[0][middle].astype(int) - picture[0][middle]
        assert np.abs(difference).mean() < 6, "she does, before and after"
