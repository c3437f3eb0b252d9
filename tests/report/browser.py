"""Headless Chromium by its own protocol (CDP) through a pipe: nothing has to be installed but the browser."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

EXECUTABLE = shutil.which(os.environ.get("CHROMIUM", "chromium"))
_FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-sync",
)
_PATIENCE = 30.0  # seconds


class Browser:
    """One page of a browser.

    Args:
        profile: an empty directory.

    Attributes:
        events: (method, what it says) of everything that the page has told.
    """

    def __init__(self, profile: Path) -> None:
        assert EXECUTABLE is not None
        (read, self._out), (self._in, write) = os.pipe(), os.pipe()
        # The browser reads from descriptor 3 and writes to 4; shells know descriptors of two digits as files alone.
        pipes = f'exec "$@" 3< /dev/fd/{read} 4> /dev/fd/{write}'
        command = ["sh", "-c", pipes, "sh", EXECUTABLE, *_FLAGS, f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            [*command, "about:blank"], pass_fds=(read, write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(read)
        os.close(write)
        self._number, self._buffer, self._session = 0, b"", ""
        self.events: list[tuple[str, dict[str, Any]]] = []
        targets = self("Target.getTargets")["targetInfos"]
        (page,) = [target["targetId"] for target in targets if target["type"] == "page"]
        self._session = self("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for something and wait for the answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self.events.append((answer["method"], answer["params"]))

    def open(self, file: Path, query: str = "") -> float:
        """Open a file from disk, with a query for its scripts; returns the seconds until it is loaded and painted."""
        self.events.clear()
        begun = time.monotonic()
        self("Page.navigate", url=file.as_uri() + (f"?{query}" if query else ""))
        while "Page.loadEventFired" not in [method for method, _ in self.events]:
            answer = self._next()
            self.events.append((answer["method"], answer["params"]))
        self("Runtime.evaluate", expression="new Promise(requestAnimationFrame)", awaitPromise=True)
        return time.monotonic() - begun

    def value(self, expression: str) -> Any:
        """What JavaScript says in the page, as JSON."""
        return self("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def press(self, key: str) -> None:
        """A key down and up: Tab, Enter."""
        code = {"Tab": 9, "Enter": 13}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        kwargs = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self("Input.dispatchKeyEvent", type="keyDown", **kwargs, **text)
        self("Input.dispatchKeyEvent", type="keyUp", **kwargs)

    def prefer(self, **features: str) -> None:
        """Media features, such as prefers_color_scheme="dark"."""
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self("Emulation.setEmulatedMedia", features=named)

    def width(self, pixels: int) -> None:
        self("Emulation.setDeviceMetricsOverride", width=pixels, height=900, deviceScaleFactor=1, mobile=False)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], _PATIENCE)
            assert ready, "the browser does not answer"
            part = os.read(self._in, 2**16)
            assert part, "the browser has ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)
