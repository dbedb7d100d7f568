"""Pictures in any browser, as motion JPEG over HTTP: every viewer sees the newest, none waits for another."""

from __future__ import annotations

import html
import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from numpy.typing import NDArray
from PIL import Image

QUALITY = 85
BOUNDARY = "visa-picture"
PAGE = """<!doctype html><meta charset="utf-8"><title>visa</title>
<style>body{{background:#222;color:#ddd;font:14px sans-serif;text-align:center}}img{{width:min(90vh,100%)}}</style>
<img src="/stream" alt="live picture"><p id="said">{said}</p>
<script>setInterval(async()=>{{said.textContent=await (await fetch("/said")).text()}},1000)</script>"""


class Broadcast:
    """The server.

    Args:
        host: address to listen on.
        port: 0 takes any.

    Raises:
        ValueError: the port is taken.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 8081) -> None:
        self._news = threading.Condition()
        self._jpeg, self._number, self._is_over, self.said = b"", 0, False, ""
        try:
            self._server = ThreadingHTTPServer((host, port), self._handler())
        except OSError as error:
            raise ValueError(f"--port {port}: {error.strerror}: give another port") from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True, name="broadcast")
        self._thread.start()

    @property
    def address(self) -> str:
        """To open in a browser."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def show(self, picture: NDArray[np.uint8]) -> None:
        """The newest picture, `[H,W,3]` RGB."""
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=QUALITY)
        with self._news:
            self._jpeg, self._number = file.getvalue(), self._number + 1
            self._news.notify_all()

    def _next(self, after: int) -> tuple[bytes, int]:
        """The newest picture and its number, once it is not the one `after`; no bytes at the end."""
        with self._news:
            self._news.wait_for(lambda: self._number != after or self._is_over)
            return (b"" if self._is_over else self._jpeg), self._number

    def close(self) -> None:
        """End all streams and free the port."""
        with self._news:
            self._is_over = True
            self._news.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        broadcast = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/stream":
                    self._stream()
                elif self.path in ("/", "/said"):
                    said = html.escape(broadcast.said)
                    is_page = self.path == "/"
                    self._answer(PAGE.format(said=said) if is_page else broadcast.said, "html" if is_page else "plain")
                else:
                    self.send_error(404)

            def _answer(self, text: str, kind: str) -> None:
                body = text.encode()
                self.send_response(200)
                self.send_header("Content-Type", f"text/{kind}; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _stream(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                number = 0
                try:
                    while True:
                        jpeg, number = broadcast._next(number)
                        if not jpeg:
                            return
                        head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                        self.wfile.write(head.encode() + jpeg + b"\r\n")
                except ConnectionError:
                    return  # this viewer has gone

            def log_message(self, *given: object) -> None:
                """Nothing is printed for a request."""

        return Handler
