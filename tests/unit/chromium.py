"""For tests: a headless Chromium, told what to do over pipes in its own protocol (NUL-terminated JSON)."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find() -> str | None:
    """The browser's program, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """One browser with one page; ``with Chromium() as page``.

    ``problems`` collects console errors and warnings and uncaught exceptions, ``requests`` every address asked for.
    """

    def __init__(self, patience: float = 60.0):
        self.patience, self.problems, self.requests, self.events = patience, [], [], []
        self._count, self._rest = 0, b""

    def __enter__(self) -> Chromium:
        # High numbers first, so that none of the four ends is 3 or 4, where Chromium expects its two.
        ends = [*os.pipe(), *os.pipe()]
        high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
        for end in ends:
            os.close(end)
        its_in, self._in, self._out, its_out = high
        self._home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)

        def wire():
            os.dup2(its_in, 3)
            os.dup2(its_out, 4)

        command = [find(), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
                   "--disable-extensions", "--disable-background-networking", "--disable-component-update",
                   f"--user-data-dir={self._home.name}", "about:blank"]  # fmt: skip
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, preexec_fn=wire, pass_fds=(3, 4), start_new_session=True, **quiet)
        os.close(its_in)
        os.close(its_out)
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None
        try:
            self.call("Browser.close")
        except (OSError, TimeoutError, RuntimeError):
            pass
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)
        self._home.cleanup()

    def call(self, method: str, **params: object) -> dict:
        """The result of ``method``; what happens meanwhile is noted."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        text = json.dumps(message).encode() + b"\0"
        while text:
            text = text[os.write(self._in, text) :]
        return self._until(lambda m: m.get("id") == self._count)["result"]

    def _until(self, wanted) -> dict:
        deadline = time.monotonic() + self.patience
        while True:
            *whole, self._rest = self._rest.split(b"\0")
            messages = [json.loads(text) for text in whole]
            for i, message in enumerate(messages):
                self._note(message)
                if wanted(message):
                    if "error" in message:
                        raise RuntimeError(message["error"]["message"])
                    left = [json.dumps(m).encode() for m in messages[i + 1 :]]
                    self._rest = b"\0".join([*left, self._rest])
                    return message
            if not select.select([self._out], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError("Chromium does not answer")
            read = os.read(self._out, 1 << 20)
            if not read:
                raise RuntimeError("Chromium has gone")
            self._rest += read

    def _note(self, message: dict) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(params["exceptionDetails"])
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(params["args"])
        if method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"])
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def open(self, path: Path, fragment: str = "") -> None:
        """Load a file, anew."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=path.as_uri() + fragment)
        self.run("new Promise((done) => document.readyState === 'complete' ? done() : addEventListener('load', done))")

    def run(self, program: str) -> object:
        """The value of a JavaScript expression, awaited; RuntimeError where it throws."""
        done = self.call("Runtime.evaluate", expression=program, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in done:
            raise RuntimeError(str(done["exceptionDetails"]))
        return done["result"].get("value")

    def size(self, width: int, height: int) -> None:
        """The window's size in pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setScrollbarsHidden", hidden=True)

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        made = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(made["data"]))
