"""A metrics page on a loopback port, whose text, status and headers a test chooses."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Pages(ThreadingHTTPServer):
    """Answers every request with `body`, or with the next of `bodies`."""

    body = b""
    status = 200
    headers: dict[str, str] = {}
    asked: list[tuple[str, str | None]]
    hang: threading.Event | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Pages

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        if self.server.hang is not None:
            self.server.hang.wait(20)
            return  # the client has gone by now
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *arguments: object) -> None:
        """Nothing: the test's own output is enough."""


@pytest.fixture
def pages() -> Iterator[Pages]:
    server = Pages(("127.0.0.1", 0), _Handler)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    if server.hang is not None:
        server.hang.set()
    server.shutdown()
    thread.join()
    server.server_close()
