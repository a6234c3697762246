"""Headless Chromium as a video call: opens a camera with getUserMedia and says what it sees. Used by checks.py.

A page on http://localhost (a secure context, so that getUserMedia is there) opens the camera whose label begins with
LABEL, counts its frames, and every two seconds posts a picture, read through a canvas, back to this process.
"""

from __future__ import annotations

import http.server
import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

PAGE = """<video id=v autoplay muted playsinline></video><script>
const WANT = %s, out = {};
const wait = (ms) => new Promise(r => setTimeout(r, ms));
const post = (pixels) => fetch('/?' + encodeURIComponent(JSON.stringify(out)), {method: 'POST', body: pixels})
  .then(r => r.text());
(async () => {
  const cameras = async () => (await navigator.mediaDevices.enumerateDevices()).filter(d => d.kind == 'videoinput');
  let found;
  for (let n = 0; n < 20 && !found; n++) {
    found = (await cameras()).find(d => d.label.startsWith(WANT));
    await wait(500);
  }
  out.labels = (await cameras()).map(d => d.label);
  if (!found) throw new Error('no camera ' + WANT);
  const stream = await navigator.mediaDevices.getUserMedia(
      {video: {deviceId: {exact: found.deviceId}, width: {ideal: 1280}, height: {ideal: 720}}});
  const track = stream.getVideoTracks()[0];
  out.label = track.label; track.onended = () => out.ended = true;
  const v = document.getElementById('v'); v.srcObject = stream; await v.play();
  let n = 0; const tick = () => { n++; v.requestVideoFrameCallback(tick) }; v.requestVideoFrameCallback(tick);
  const c = document.createElement('canvas');
  for (let more = 'more'; more == 'more';) {
    await wait(2000);
    c.width = v.videoWidth; c.height = v.videoHeight; out.size = [c.width, c.height]; out.frames = n;
    const g = c.getContext('2d', {willReadFrequently: true}); g.drawImage(v, 0, 0);
    more = await post(g.getImageData(0, 0, c.width, c.height).data);
  }
})().catch(e => { out.error = e.name + ': ' + e.message; post(new Uint8ClampedArray(0)); });
</script>"""

FLAGS = """
--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --use-fake-ui-for-media-stream
--autoplay-policy=no-user-gesture-required --no-first-run --disable-extensions --disable-background-networking
--disable-component-update --disable-sync --mute-audio
"""


def look(label: str, enough: Callable[[np.ndarray], bool], patience: float, log: str) -> dict[str, Any]:
    """What the page saw: labels of all cameras, label, size, frames, error, ended; rgb: its last picture, uint8
    (H, W, 3), if any. It looks until `enough` says so of a picture, at most `patience` seconds."""
    answered, result = threading.Event(), {}
    until = time.monotonic() + patience

    class Page(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer("text/html", (PAGE % json.dumps(label)).encode() if self.path == "/" else b"")

        def do_POST(self) -> None:
            data = np.frombuffer(self.rfile.read(int(self.headers["Content-Length"])), np.uint8)
            seen, good = json.loads(unquote(self.path[2:])), False
            if data.size:
                seen["rgb"] = data.reshape(seen["size"][1], seen["size"][0], 4)[..., :3]
                good = enough(seen["rgb"])
            result.update(seen)
            over = good or "error" in seen or time.monotonic() > until
            self._answer("text/plain", b"done" if over else b"more")
            if over:
                answered.set()

        def _answer(self, kind: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, Path(log).open("w") as out:
        address = f"http://localhost:{server.server_address[1]}/"
        program = subprocess.Popen(
            ["chromium", *FLAGS.split(), f"--user-data-dir={profile}", address], stdout=out, stderr=out
        )
        try:
            if not answered.wait(patience + 30):
                result["error"] = f"the page did not answer within {patience + 30:.0f} s"
        finally:
            program.terminate()
            try:
                program.wait(10)
            except subprocess.TimeoutExpired:
                program.kill()
            server.shutdown()
    return result
