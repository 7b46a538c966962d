"""A headless Chromium over its debugging pipe: open a page, ask it things, and hear what its console said."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

ANSWER_S = 60.0
NEAR = ("http://127.0.0.1:", "data:", "blob:", "about:", "file:")


def find_browser() -> str:
    """The browser's path; the test is skipped where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if (path := shutil.which(name)) is not None:
            return path
    pytest.skip("no browser: apt-get install chromium")


class Browser:
    """One browser with one tab, which reaches nothing but this machine.

    Args:
        profile: an empty folder for its files.
    """

    def __init__(self, profile: Path) -> None:
        (low_in, self._write), (self._read, low_out) = os.pipe(), os.pipe()
        # The browser reads from 3 and writes to 4; copies far from these, so that one is not overwritten by the other.
        to_browser, from_browser = (fcntl.fcntl(end, fcntl.F_DUPFD, 50) for end in (low_in, low_out))
        command = [
            "bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "bash", find_browser(), "--headless",
            "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(to_browser, from_browser)
        )
        for end in (low_in, low_out, to_browser, from_browser):
            os.close(end)
        self._numbers, self._rest, self._session = itertools.count(1), b"", ""
        self.console: list[str] = []
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for room in ("Runtime", "Log", "Network", "Page"):
            self._ask(f"{room}.enable")

    def open(self, address: str) -> None:
        """Goes to a page."""
        self._ask("Page.navigate", url=address)

    def until(self, expression: str, limit_s: float = ANSWER_S) -> Any:
        """The value of a JavaScript expression as soon as it is true."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
            value = answer.get("result", {}).get("value")
            if value:
                return value
            time.sleep(0.1)
        raise AssertionError(f"after {limit_s} s it is not true: {expression}; console: {self.console}")

    def resize(self, width: int, height: int) -> None:
        """Gives the page this size in CSS pixels, without scroll bars."""
        self._ask("Emulation.setScrollbarsHidden", hidden=True)
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def prefer(self, scheme: str) -> None:
        """Prefers a colour scheme, ``light`` or ``dark``, as a reader's system does."""
        self._ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression now."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def mouse(self, kind: str, x: float, y: float, clicks: int = 0) -> None:
        """An event of the mouse: ``mouseMoved``, ``mousePressed`` or ``mouseReleased``, with the left button."""
        button = {"button": "left", "buttons": 1} if clicks else {}
        self._ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, clickCount=clicks, **button)

    def click(self, x: float, y: float, clicks: int = 1) -> None:
        """A click, or a double click."""
        self.mouse("mouseMoved", x, y)
        for count in range(1, clicks + 1):
            self.mouse("mousePressed", x, y, count)
            self.mouse("mouseReleased", x, y, count)

    def picture(self) -> bytes:
        """The visible part of the page as a PNG file."""
        return base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        """Ends the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        question = {"id": number, "method": method, "params": parameters}
        if self._session:
            question["sessionId"] = self._session
        os.write(self._write, json.dumps(question).encode() + b"\0")
        end = time.monotonic() + ANSWER_S
        while time.monotonic() < end:
            answer = self._hear(end - time.monotonic())
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
        raise AssertionError(f"the browser did not answer to {method}")

    def _hear(self, limit_s: float) -> dict[str, Any]:
        """The next message; errors of the page are kept in ``console``."""
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], limit_s)[0]:
                return {}
            found = os.read(self._read, 1 << 16)
            assert found, "the browser has ended"
            self._rest += found
        text, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(text)
        method, details = message.get("method"), message.get("params", {})
        if method == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning"):
            self.console.append(str([part.get("value", part.get("description")) for part in details["args"]]))
        elif method == "Runtime.exceptionThrown":
            self.console.append(str(details["exceptionDetails"]))
        elif method == "Log.entryAdded" and details["entry"]["level"] in ("error", "warning"):
            self.console.append(f"{details['entry']['text']} {details['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent" and not details["request"]["url"].startswith(NEAR):
            self.console.append(f"asked for {details['request']['url']}")
        return message
