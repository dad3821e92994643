"""A headless Chromium, driven through chromedriver: the W3C WebDriver protocol is JSON over HTTP, so the little of it
that a test needs takes no package. Debian: `apt install chromium chromium-driver`.
"""

import base64
import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-quic", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--force-prefers-reduced-motion", "--no-proxy-server"),
]
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name for a reference to one
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def what_is_missing() -> str | None:
    """Why no browser can be driven here; nothing where one can."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"needs {' and '.join(missing)} (Debian: apt install chromium chromium-driver)" if missing else None


@contextlib.contextmanager
def browser(profile: Path) -> Iterator["Browser"]:
    """A browser with a profile of its own in an empty directory."""
    flags = [*_FLAGS, f"--user-data-dir={profile}"]
    driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        port = next(
            found[1] for line in driver.stdout if (found := re.search(r"started successfully on port (\d+)", line))
        )
        options = {"binary": shutil.which("chromium"), "args": flags}
        wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
        session = _call("POST", f"http://127.0.0.1:{port}/session", wanted)["sessionId"]
        found = Browser(f"http://127.0.0.1:{port}/session/{session}")
        try:
            yield found
        finally:
            _call("DELETE", found.address)
    finally:
        driver.terminate()
        driver.wait()


class Browser:
    def __init__(self, address: str):
        self.address = address

    def open(self, url: str) -> None:
        self._post("url", url=url)

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that the body of a JavaScript function returns; `arguments` are its `arguments`."""
        return self._post("execute/sync", script=script, args=list(arguments))

    def text(self, selector: str) -> str:
        """What a person reads in an element; nothing where there is none."""
        return self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def texts(self, selector: str) -> list[str]:
        return self.run("return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)", selector)

    def click(self, selector: str) -> None:
        self._post(f"element/{self._find(selector)}/click")

    def type(self, selector: str, text: str) -> None:
        """Replace what is in a field by what is typed."""
        self._post(f"element/{self._find(selector)}/value", text="\ue009a\ue000" + (text or "\ue003"))

    def wait(self, until: Callable[[], Any], what: str, seconds: float = 60) -> Any:
        """The first true value of `until()`."""
        end = time.monotonic() + seconds
        while not (found := until()):
            assert time.monotonic() < end, f"waited {seconds:g} s for {what}; the page reads:\n{self.text('body')}"
            time.sleep(0.05)
        return found

    def resize(self, width: int, height: int) -> None:
        """The size of the page, also below the least that a window has."""
        self._post("goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params={
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600})  # fmt: skip

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        options = {"format": "png", "captureBeyondViewport": True}
        found = self._post("goog/cdp/execute", cmd="Page.captureScreenshot", params=options)
        path.write_bytes(base64.b64decode(found["data"]))

    def _find(self, selector: str) -> str:
        return self._post("element", using="css selector", value=selector)[_ELEMENT]

    def _post(self, path: str, **body: Any) -> Any:
        return _call("POST", f"{self.address}/{path}", body)


def _call(method: str, url: str, body: dict[str, Any] | None = None) -> Any:
    data = json.dumps(body or {}).encode() if method == "POST" else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with _direct(request, timeout=60) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(json.load(error)["value"]["message"]) from None
