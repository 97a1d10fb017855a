"""A bucket on loopback, behind a proxy that fails as networks and servers do."""

import http.client
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from gcp_storage_emulator.server import create_server

BUCKET = "study"


class Proxy(ThreadingHTTPServer):
    """Hands every request on to the emulator, but for those that one of ``faults`` is for.

    A fault is [method, how often, what]; the method of a download is DOWNLOAD. What is ``503``, ``cut`` (the connection
    ends half-way through what is sent or, of a download, received), ``lose`` (half of what is sent arrives, and passes
    for all) or ``flip`` (a byte arrives changed).
    """

    daemon_threads = True

    def __init__(self, port: int):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.emulator, self.faults, self.seen = port, [], []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_) -> None:
        pass  # who was cut off has hung up

    def fault(self, method: str, body: bytes) -> str | None:
        for fault in self.faults:
            # Of uploads the bytes themselves, of downloads what is large.
            if fault[1] and fault[0] == method and (method != "POST" or len(body) > 1000):
                fault[1] -= 1
                return fault[2]
        return None


class _Handler(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        media = self.command == "GET" and ("alt=media" in self.path or self.path.startswith("/download"))
        fault = self.server.fault("DOWNLOAD" if media else self.command, body)
        self.server.seen.append((self.command, self.path, fault))
        if fault == "503":
            return self.send_error(503)
        if fault in ("lose", "cut") and body:
            body = body[: len(body) // 2]
        if fault == "flip" and body:
            body = body[:-500] + bytes([body[-500] ^ 1]) + body[-499:]
        if fault == "cut" and not media:
            return self.connection.close()
        emulator = http.client.HTTPConnection("127.0.0.1", self.server.emulator)
        headers = {k: v for k, v in self.headers.items() if k not in ("Content-Length", "Accept-Encoding")}
        emulator.request(self.command, self.path, body, headers)
        response = emulator.getresponse()
        content = response.read()
        self.send_response(response.status)
        for key, value in response.getheaders():
            if key not in ("Content-Length", "Transfer-Encoding", "Date", "Server"):
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault == "flip" and not body:
            content = bytes([content[0] ^ 1]) + content[1:]
        self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
        emulator.close()

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _answer

    def log_message(self, *_) -> None:
        pass


@contextmanager
def fake_gcs():
    """The emulator with the empty bucket BUCKET, and a :class:`Proxy` before it, which is yielded."""
    emulator = create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    emulator.start()
    proxy = Proxy(emulator._api._httpd.server_address[1])
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        emulator.stop()
