"""A page in a real headless browser: what its scripts make of it, what its console says, and how wide it is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import unquote

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Runs in a copy of the page, after its own scripts, and leaves what it has seen in the page.
PROBE = r"""
<script>
addEventListener("load", () => setTimeout(() => {
  const step = document.getElementById("step"), group = document.getElementById("group");
  const texts = () => [...group.querySelectorAll("article pre")].map((node) => node.textContent);
  const seen = {errors: window.seenErrors, width: innerWidth, content: document.documentElement.scrollWidth};
  seen.charts = document.querySelectorAll(".js-plotly-plot .main-svg").length;
  seen.lines = document.querySelectorAll(".scatterlayer .trace").length;
  // A chart that was drawn wider than its frame covers the next one.
  seen.wide = [...document.querySelectorAll(".js-plotly-plot")].filter((chart) =>
    [...chart.querySelectorAll(".main-svg")].some((drawn) => drawn.getBoundingClientRect().right
      > chart.closest(".chart").getBoundingClientRect().right + 1)).length;
  seen.chosen = step.value;
  seen.texts = texts();
  document.getElementById("earlier").click();
  seen.earlier = step.value;
  step.selectedIndex = 0;
  step.dispatchEvent(new Event("change"));
  seen.first = texts();
  // What is folded away is reached by opening it.
  const focusable = [...document.querySelectorAll("button, select, summary, [tabindex='0']")]
    .filter((node) => node.tagName === "SUMMARY" || !node.closest("details:not([open])"));
  seen.unreachable = focusable.filter((node) => { node.focus(); return document.activeElement !== node; }).length;
  seen.focusable = focusable.map((node) => node.id || node.tagName.toLowerCase());
  seen.small = [...document.querySelectorAll("body *")].filter((node) => node.childNodes.length === 1
    && node.firstChild.nodeType === 3 && parseFloat(getComputedStyle(node).fontSize) < 10).length;
  // A word of a table that stands on several lines: its column is narrower than it.
  seen.broken = [...document.querySelectorAll("th, td")].filter((cell) => {
    const range = document.createRange();
    range.selectNodeContents(cell);
    return /^\w{2,20}$/.test(cell.textContent) && range.getClientRects().length > 1;
  }).map((cell) => cell.textContent);
  seen.images = [...document.querySelectorAll("img")].length;
  const left = document.createElement("script");
  left.type = "application/json"; left.id = "seen"; left.textContent = encodeURIComponent(JSON.stringify(seen));
  document.body.append(left);
}, 1500));
</script>
"""
ERRORS = """<head><script>
window.seenErrors = [];
addEventListener("error", (event) => window.seenErrors.push(String(event.message)));
addEventListener("securitypolicyviolation", (event) => window.seenErrors.push("CSP " + event.violatedDirective));
for (const kind of ["error", "warn"]) {
  const own = console[kind];
  console[kind] = (...items) => { window.seenErrors.push(kind + " " + items.join(" ")); own(...items); };
}
</script>"""


def browser() -> str | None:
    """Return the command of a browser on this machine, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def _run(page: Path, folder: Path, *options: str) -> str:
    command = [browser() or "", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=8000", "--hide-scrollbars", *options]
    result = subprocess.run([*command, page.resolve().as_uri()], capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def look(report: Path, folder: Path, width: int) -> dict[str, Any]:
    """Return what a browser of some width has seen of a report, and what it does when its controls are used."""
    copy = folder / f"probed-{width}.html"
    text = report.read_text(encoding="utf-8")
    copy.write_text(text.replace("<head>", ERRORS, 1).replace("</body>", f"{PROBE}</body>", 1), encoding="utf-8")
    # A window is at least 500 pixels wide, a frame is as wide as it is told.
    frame = folder / f"frame-{width}.html"
    frame.write_text(
        f'<!doctype html><body style="margin:0"><iframe id="page" src="{copy.name}" style="border:0" width="{width}" height="6000">'
        "</iframe><script>addEventListener('load', () => setTimeout(() => { const seen = document.createElement('script');"
        "seen.type = 'application/json'; seen.id = 'seen';"
        "seen.textContent = document.getElementById('page').contentDocument.getElementById('seen').textContent;"
        "document.body.append(seen); }, 3000));</script>",
        encoding="utf-8",
    )
    dom = _run(frame, folder, "--allow-file-access-from-files", "--window-size=1400,1000", "--dump-dom")
    (found,) = re.findall(r'<script type="application/json" id="seen">(.*?)</script>', dom, re.DOTALL)
    return dict(json.loads(unquote(found)))


def screenshot(report: Path, folder: Path, width: int, height: int) -> Path:
    """Return a picture of a report at some width."""
    frame, picture = folder / f"shot-{width}.html", folder / f"report-{width}.png"
    frame.write_text(
        f'<!doctype html><body style="margin:0"><iframe src="{report.resolve().as_uri()}" style="border:0" width="{width}" '
        f'height="{height}"></iframe>',
        encoding="utf-8",
    )
    _run(
        frame,
        folder,
        "--allow-file-access-from-files",
        f"--window-size={max(width, 500)},{height}",
        f"--screenshot={picture}",
    )
    return picture
