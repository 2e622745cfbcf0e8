"""Headless Chromium over its debugging pipe, for tests that look at a page as a reader does. Nothing to install but the browser."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
REASON = "no Chromium here: apt-get install chromium"
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars", "--remote-debugging-pipe", "--disable-extensions", "--mute-audio")


class Browser:
    """One browser with one page; use it in a `with` block.

    Attributes:
        messages: what the page wrote to the console, and errors and refused requests.
    """

    def __init__(self) -> None:
        assert CHROMIUM is not None
        self._home = tempfile.mkdtemp(prefix="edgekit-browser-")
        # The browser reads commands on descriptor 3 and answers on 4, a NUL after each.
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        command = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, CHROMIUM, *FLAGS, f"--user-data-dir={self._home}", "about:blank"], pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer, self._number, self._session = b"", 0, ""
        self.messages: list[str] = []
        self._events: list[dict] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._read)
        os.close(self._write)
        shutil.rmtree(self._home, ignore_errors=True)

    def call(self, method: str, **params: Any) -> dict:
        """One command of the DevTools protocol; its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **({"sessionId": self._session} if self._session else {})}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer.get("result", {})

    def _next(self) -> dict:
        while b"\0" not in self._buffer:
            read = os.read(self._read, 1 << 20)
            assert read, "the browser ended"
            self._buffer += read
        one, _, self._buffer = self._buffer.partition(b"\0")
        event = json.loads(one)
        kind, params = event.get("method", ""), event.get("params", {})
        if kind == "Log.entryAdded":
            self.messages.append(params["entry"]["text"])
        elif kind == "Runtime.consoleAPICalled":
            self.messages.append(str([a.get("value") for a in params["args"]]))
        elif kind in ("Runtime.exceptionThrown", "Network.loadingFailed"):
            self.messages.append(f"{kind}: {json.dumps(params)[:300]}")
        elif kind:
            self._events.append(event)
        return event

    def open(self, path: Path, width: int = 1200, height: int = 900, scheme: str = "light") -> float:
        """Show a file; seconds until it is loaded and laid out."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._events.clear()
        started = time.perf_counter()
        self.call("Page.navigate", url=path.absolute().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._next()
        self.js("document.body.getBoundingClientRect().height")
        return time.perf_counter() - started

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16000), "scale": 1}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]))
