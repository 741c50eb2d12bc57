"""A headless Chromium, controlled by WebDriver (W3C).

The protocol is JSON over HTTP to Debian's chromedriver. The tests need only a
few of its commands.
"""

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request

import numpy as np
import pytest

KEYS = {
  "left": "\ue012",
  "up": "\ue013",
  "right": "\ue014",
  "down": "\ue015",
  "home": "\ue011",
  "end": "\ue010",
  "pageup": "\ue00e",
  "pagedown": "\ue00f",
  "shift": "\ue008",
  "ctrl": "\ue009",
}

PROGRAMS = "chromium", "chromedriver"
NEEDED = pytest.mark.skipif(
  not all(map(shutil.which, PROGRAMS)),
  reason=f"{' or '.join(PROGRAMS)} is not installed",
)


# Runs a script; returns its canvas calls, [method, color, *arguments].
DRAWN = """
  const { prototype } = CanvasRenderingContext2D, calls = [], own = {};
  for (const name of ["fillRect", "strokeRect", "moveTo", "lineTo",
    "fillText"]) {
    own[name] = prototype[name];
    prototype[name] = function (...values) {
      calls.push([name, name.startsWith("fill") ? this.fillStyle
        : this.strokeStyle, ...values]);
      return own[name].apply(this, values);
    };
  }
  DRAW;
  Object.assign(prototype, own);
  return calls;
"""


class Browser:
  """A session of chromium."""

  def __init__(self, url):
    arguments = ["--headless=new", "--disable-gpu", "--hide-scrollbars"]
    arguments.append("--disable-dev-shm-usage")  # small in containers
    if os.geteuid() == 0:
      arguments.append("--no-sandbox")  # root has no sandbox
    self._url = url
    capabilities = {
      "browserName": "chrome",
      "goog:chromeOptions": {"args": arguments},
      "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
    }
    body = {"capabilities": {"alwaysMatch": capabilities}}
    session = self._send("session", body)["sessionId"]
    self._url = f"{url}/session/{session}"

  def open(self, path):
    """Open a file and wait until the page is drawn."""
    self._send("url", {"url": path.resolve().as_uri()})
    self.settle()

  def settle(self):
    """Wait until the page has its data and has drawn a frame."""
    self.run("""
      while (document.querySelector("main").ariaBusy === "true") {
        await new Promise((done) => setTimeout(done, 5));
      }
      for (const _ of [1, 2]) await new Promise(requestAnimationFrame);
    """)

  def run(self, script, *arguments):
    """Run the body of an async function in the page; return its result.

    Raises:
      RuntimeError: the script throws an error.
    """
    script = f"""
      const done = arguments[arguments.length - 1];
      (async (...args) => {{ {script} }})(...arguments).then(
        (value) => done({{ value }}),
        (error) => done({{ error: `${{error}}` }}),
      );
    """
    command = {"script": script, "args": arguments}
    result = self._send("execute/async", command)
    if "error" in result:
      raise RuntimeError(result["error"])
    return result.get("value")

  def press(self, *names):
    """Press keys, each a name of KEYS or a character, or two: "shift+up"."""
    actions = []
    for name in names:
      keys = [KEYS.get(key, key) for key in name.split("+")]
      actions += [{"type": "keyDown", "value": key} for key in keys]
      actions += [{"type": "keyUp", "value": key} for key in reversed(keys)]
    keyboard = {"type": "key", "id": "keyboard", "actions": actions}
    self._send("actions", {"actions": [keyboard]})
    self.settle()

  def click(self, x, y, pointer="mouse"):
    """Click or, with the pointer "touch", tap at a position, in pixels."""
    self.drag((x, y), pointer=pointer)

  def drag(self, *places, pointer="mouse"):
    """Press the button at the first of places [(x, y)], release at the last."""
    moves = [
      {"type": "pointerMove", "x": round(x), "y": round(y)} for x, y in places
    ]
    down, up = (
      {"type": f"pointer{kind}", "button": 0} for kind in ("Down", "Up")
    )
    source = {
      "type": "pointer",
      "id": pointer,
      "parameters": {"pointerType": pointer},
      "actions": [moves[0], down, *moves[1:], up],
    }
    self._send("actions", {"actions": [source]})
    self.settle()

  def push(self, selector, k=0):
    """Click the k-th element that a CSS selector finds."""
    self.run("document.querySelectorAll(args[0])[args[1]].click()", selector, k)
    self.settle()

  def corner(self, name):
    """Scroll to the element with that id; return its left and its top."""
    return self.run(
      "const e = document.getElementById(args[0]);"
      "e.scrollIntoView({ block: 'center' });"
      "const { left, top } = e.getBoundingClientRect(); return [left, top];",
      name,
    )

  def choose(self, name, value):
    """Set the value of a menu, a slider or a text box, as a user does."""
    self.run(
      "const e = document.getElementById(args[0]); e.value = args[1];"
      "const kind = e.tagName === 'SELECT' ? 'change' : 'input';"
      "e.dispatchEvent(new Event(kind));",
      name,
      value,
    )
    self.settle()

  def text(self, name):
    """Return the visible text of the element with that id."""
    return self.run("return document.getElementById(args[0]).innerText", name)

  def table(self, rows):
    """Return the texts of the children of each element of a CSS selector."""
    return self.run(
      "return [...document.querySelectorAll(args[0])].map((row) =>"
      "[...row.children].map((cell) => cell.textContent))",
      rows,
    )

  def drawn(self, script):
    """Return what a script draws on canvases, as in DRAWN."""
    return self.run(DRAWN.replace("DRAW", script))

  def value(self, name):
    """Return the value of a menu or a box."""
    return self.run("return document.getElementById(args[0]).value", name)

  def emulate(self, width, height, scheme="light"):
    """Set the size of the window and the color scheme."""
    self._devtools(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=False,
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    self._devtools("Emulation.setEmulatedMedia", features=[feature])

  def reset(self):
    """Leave the page, forget its messages, and undo `emulate`."""
    self._send("url", {"url": "about:blank"})
    self._devtools("Emulation.clearDeviceMetricsOverride")
    self._devtools("Emulation.setEmulatedMedia", features=[])
    self.errors()
    self.requests()

  def screenshot(self, path):
    """Write a PNG of the window."""
    path.write_bytes(base64.b64decode(self._send("screenshot")))

  def errors(self):
    """Return the messages in the console since the last call."""
    log = self._send("se/log", {"type": "browser"})
    return [entry["message"] for entry in log]

  def requests(self):
    """Return the URLs that were requested since the last call."""
    log = self._send("se/log", {"type": "performance"})
    messages = [json.loads(entry["message"])["message"] for entry in log]
    return [
      message["params"]["request"]["url"]
      for message in messages
      if message["method"] == "Network.requestWillBeSent"
    ]

  def close(self):
    """End the session."""
    self._send("", method="DELETE")

  def _devtools(self, name, **parameters):
    self._send("goog/cdp/execute", {"cmd": name, "params": parameters})

  def _send(self, command, body=None, method=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
      f"{self._url}/{command}".rstrip("/"), data, method=method
    )
    try:
      with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["value"]
    except urllib.error.HTTPError as error:
      message = json.load(error)["value"]["message"]
      raise RuntimeError(f"{command}: {message}") from None


@contextlib.contextmanager
def chromium():
  """Yield a Browser, which ends with the block."""
  # Chromium leaves its profile in $TMPDIR: remove it.
  temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
  with temporary as directory:
    # For port 0, chromedriver chooses a free port and prints it.
    driver = subprocess.Popen(
      ["chromedriver", "--port=0"],
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ | {"TMPDIR": directory},
    )
    try:
      port = next(
        (
          line.rstrip(".\n").rsplit(" ", 1)[1]
          for line in driver.stdout
          if "successfully on port" in line
        ),
        None,
      )
      assert port, "chromedriver has ended before it printed its port"
      browser = Browser(f"http://127.0.0.1:{port}")
      try:
        yield browser
      finally:
        browser.close()
    finally:
      driver.terminate()
      driver.communicate(timeout=20)


@contextlib.contextmanager
def viewing(chromium, page, width=1100):
  """Open a page and yield the browser with it.

  The page must log no message and request nothing but itself.
  """
  chromium.emulate(width, 900)
  chromium.errors(), chromium.requests()  # forget those of earlier pages
  chromium.open(page)
  yield chromium
  assert chromium.errors() == []
  assert set(chromium.requests()) == {page.resolve().as_uri()}


def number(text):
  """Return the number in a text of a page, whose minus sign is typographic."""
  return float(text.replace("−", "-").replace(",", "").rstrip(" %"))


# Returns what has no name for a screen reader.
UNNAMED = """
  const controls = "select, button, input, textarea, canvas, svg[role], "
    + "[tabindex]";
  return [...document.querySelectorAll(controls)].filter((e) => !e.ariaLabel
      && !e.closest("label, #swap, #text") && !e.hasAttribute("aria-labelledby")
      && !(e.tagName === "BUTTON" && e.textContent))
    .map((e) => e.outerHTML);
"""


def rgb(color):
  """Return [red, green, blue], 0 to 255, of "#rrggbb" or "rgb(…)"."""
  if color.strip().startswith("#"):
    return [int(color.strip()[k : k + 2], 16) for k in (1, 3, 5)]
  return [int(v) for v in re.findall(r"\d+", color)]


def mixed(end, share):
  """Return the colors between white and `end` that stand for shares, 0 to 1.

  A page has 64 shades of a color.
  """
  share = np.floor(64 * np.minimum(1, share) + 0.5)[..., None] / 64
  return np.floor(255 + (np.array(rgb(end)) - 255) * share + 0.5).tolist()


def contrast(one, other):
  """Return the contrast of two colors, as WCAG 2 defines it."""
  names = {"#fff": "#ffffff", "#000": "#000000"}

  def luminance(color):
    v = np.array(rgb(names.get(color, color))) / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]

  low, high = sorted(map(luminance, (one, other)))
  return (high + 0.05) / (low + 0.05)
