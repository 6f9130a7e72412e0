"""A real Chromium, driven through chromedriver's W3C protocol by the standard library alone."""

import base64
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

DRIVER = shutil.which("chromedriver")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = "Chromium and its driver are not installed (Debian: chromium, chromium-driver)"

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--disable-dev-shm-usage")  # fmt: skip
KEYS = {"left": "\ue012", "up": "\ue013", "right": "\ue014", "down": "\ue015", "space": " ",
        "tab": "\ue004", "enter": "\ue007"}  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name for an element's id


class Browser:
    """One window."""

    def __init__(self, address: str, profile: Path) -> None:
        self.address, self.downloads = address, profile / "downloads"
        self.downloads.mkdir(parents=True)
        options = {
            "binary": CHROMIUM,
            "args": [*FLAGS, f"--user-data-dir={profile / 'profile'}"],
            "prefs": {"download.default_directory": str(self.downloads)},
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"performance": "ALL"}}
        made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.address += f"/session/{made['sessionId']}"

    def open(self, page: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open a file in a window of a size, in px, in light or dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self._ask("POST", "/url", {"url": page.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def until(self, script: str) -> None:
        """Wait until an expression in the page is true, 20 s at most."""
        ended = time.monotonic() + 20
        while not self.run(f"return Boolean({script})"):
            assert time.monotonic() < ended, f"never true: {script}"
            time.sleep(0.02)

    def reload(self) -> None:
        """Load the page again."""
        self._ask("POST", "/refresh", {})

    def click(self, selector: str) -> None:
        """A click of the mouse; refused by the browser where another element lies above."""
        found = self._ask("POST", "/element", {"using": "css selector", "value": selector})
        self._ask("POST", f"/element/{found[ELEMENT]}/click", {})

    def press(self, *keys: str) -> None:
        """Keys, one after the other, as a person presses them."""
        actions = [
            {"type": kind, "value": KEYS.get(key, key)}
            for key in keys
            for kind in ("keyDown", "keyUp")
        ]
        board = {"type": "key", "id": "board", "actions": actions}
        self._ask("POST", "/actions", {"actions": [board]})

    def text(self, selector: str) -> str:
        """The text of an element as it is seen, empty where it is hidden."""
        return str(self.run("return document.querySelector(arguments[0]).innerText", selector))

    def picture(self, path: Path) -> None:
        """A PNG of what is seen."""
        path.write_bytes(base64.b64decode(self._ask("GET", "/screenshot")))

    def command(self, name: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._ask("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def requests(self) -> list[str]:
        """Addresses that were asked for since the last call."""
        entries = self._ask("POST", "/se/log", {"type": "performance"})
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        sent = [one for one in messages if one["method"] == "Network.requestWillBeSent"]
        return [one["params"]["request"]["url"] for one in sent]

    def complaints(self) -> list[str]:
        """Errors that the browser has logged, a violated policy among them."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", {"type": "browser"})]

    def close(self) -> None:
        """End the session."""
        self._ask("DELETE", "")

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = Request(self.address + path, data, headers, method=method)
        with urlopen(request, timeout=60) as response:
            return json.load(response)["value"]


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser with an empty profile below ``folder``, closed at the end."""
    assert DRIVER is not None
    server = subprocess.Popen(
        [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"HOME": str(folder)},
    )  # fmt: skip
    try:
        assert server.stdout is not None
        started = (re.search(r"on port (\d+)\.", line) for line in server.stdout)
        port = next(found[1] for found in started if found)
        browser = Browser(f"http://127.0.0.1:{port}", folder)
        try:
            yield browser
        finally:
            browser.close()
    finally:
        server.terminate()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()
