"""The page in a real browser: on a phone, on a desktop, on paper; it asks nobody for anything."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from phalanx.report.model import Report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH to show pages in")

OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # root, as in a container, has none
    "--disable-gpu",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--enable-logging=stderr",
    "--hide-scrollbars",
    "--virtual-time-budget=2000",
)
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
MEASURE = """<script>
const OPEN = UNFOLD;
document.querySelectorAll("details").forEach(one => { if (OPEN) one.open = true; });
const all = selector => [...document.querySelectorAll(selector)];
const shown = one => one.getClientRects().length > 0;
const box = one => one.getBoundingClientRect();
const scrolls = one => one.closest(".wide, .scroll") !== null;
const found = {
  width: innerWidth,
  unfolded: OPEN,
  content: document.documentElement.scrollWidth,
  images: all("img").filter(one => one.naturalWidth > 0).length,
  tables: all("table").filter(shown).length,
  outside: all("body *").filter(one => shown(one) && !scrolls(one)
    && box(one).right > innerWidth + 1).map(one => one.outerHTML.slice(0, 80)),
  cut: all("svg text").filter(one => { const svg = box(one.ownerSVGElement), own = box(one);
    return shown(one) && (own.left < svg.left - 1 || own.right > svg.right + 1
      || own.top < svg.top - 1 || own.bottom > svg.bottom + 1); }).map(one => one.textContent),
  small: all("body *").filter(one => shown(one) && [...one.childNodes].some(
    node => node.nodeType === 3 && node.data.trim()))
    .map(one => [parseFloat(getComputedStyle(one).fontSize)
      * (one.ownerSVGElement ? box(one.ownerSVGElement).width
        / one.ownerSVGElement.viewBox.baseVal.width : 1), one.textContent.slice(0, 40)])
    .filter(([size]) => size < 11.5),
  pixelated: all("img").every(one => getComputedStyle(one).imageRendering === "pixelated"),
  crowded: all("svg").flatMap(svg => { const ticks = [...svg.querySelectorAll(".tick:not(.up)")]
    .map(box); return ticks.flatMap((a, i) => ticks.slice(i + 1).filter(b => a.left < b.right
      && b.left < a.right && a.top < b.bottom && b.top < a.bottom)); }).length,
};
console.log("FOUND" + btoa(unescape(encodeURIComponent(JSON.stringify(found)))) + "END");
</script>"""
"""Added to a copy of the page, whose policy would refuse it: what the layout came to."""
FRAME = '<iframe style="border: 0; width: {}px; height: 2000px" src="{}"></iframe>'
"""A window is not narrower than 500 pixels; a frame is."""
LAYOUTS = ((360, False), (360, True), (1200, True))
"""Widths in pixels, and whether what is folded away is shown."""


@dataclass(frozen=True)
class Shown:
    output: str
    told: str


def show(page: Path, *options: str) -> Shown:
    """Run the browser on a page, with a profile of its own."""
    assert BROWSER is not None
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [BROWSER, *OPTIONS, profile, *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return Shown(done.stdout, done.stderr)


@pytest.fixture(scope="module")
def page(full: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full.save(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def layouts(page: Path) -> list[dict[str, Any]]:
    """What each of `LAYOUTS` came to, all shown at once."""
    text, policies = POLICY.subn("", page.read_text())
    assert policies == 1
    frames = []
    for number, (width, unfold) in enumerate(LAYOUTS):
        script = MEASURE.replace("UNFOLD", "true" if unfold else "false")
        copy = page.with_name(f"measured-{number}.html")
        copy.write_text(text.replace("</body>", f"{script}</body>"))
        frames.append(FRAME.format(width, copy.name))
    outer = page.with_name("frames.html")
    outer.write_text("<!DOCTYPE html>" + "".join(frames))
    told = show(outer, "--window-size=1300,2100", "--dump-dom").told
    found = [json.loads(base64.b64decode(one)) for one in re.findall("FOUND(.*?)END", told)]
    return sorted(found, key=lambda one: (one["width"], one["unfolded"]))


@pytest.mark.parametrize("number", range(len(LAYOUTS)), ids=str)
def test_everything_fits_and_can_be_read(
    layouts: list[dict[str, Any]], full: Report, number: int
) -> None:
    assert len(layouts) == len(LAYOUTS)
    width, unfold = LAYOUTS[number]
    found = layouts[number]
    assert (found["width"], found["unfolded"]) == (width, unfold)
    assert found["content"] <= width
    assert found["outside"] == []
    assert found["cut"] == []
    assert found["small"] == []
    assert found["crowded"] == 0
    assert found["images"] == 3 * len(full.examples)
    assert found["pixelated"]
    assert found["tables"] >= (20 if unfold else 5)


def requests(log: Path) -> list[str]:
    """What pages asked for, besides files; the browser's own requests have no origin."""
    value = json.loads(log.read_text())
    start = value["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    events = [one.get("params", {}) for one in value["events"] if one["type"] == start]
    asked = [one for one in events if "url" in one]  # the event of a job's end has none
    urls = [one["url"] for one in asked if one["initiator"] != "not an origin"]
    return [url for url in urls if not url.startswith(("file:", "data:"))]


def test_it_asks_nobody_for_anything_and_has_no_fault(page: Path) -> None:
    log, picture = page.with_name("net.json"), page.with_name("page.png")
    shown = show(page, f"--log-net-log={log}", f"--screenshot={picture}", "--window-size=360,800")
    assert requests(log) == []
    assert "CONSOLE" not in shown.told
    head = picture.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    assert int.from_bytes(head[16:20], "big") == 360


def test_what_would_leak_is_seen_and_is_refused(page: Path) -> None:
    """The test above can fail; and the page's own policy stops what got into it all the same."""
    text, frames = page.read_text(), ""
    for name, kept in (("open", POLICY.sub("", text)), ("closed", text)):
        leak = f'<img src="http://127.0.0.1:9/{name}.png" alt=""><script>console.log(1)</script>'
        copy = page.with_name(f"{name}.html")
        copy.write_text(kept.replace("</body>", f"{leak}</body>"))
        frames += FRAME.format(600, copy.name)
    outer, log = page.with_name("leaks.html"), page.with_name("leaks.json")
    outer.write_text(f"<!DOCTYPE html>{frames}")
    shown = show(outer, f"--log-net-log={log}", "--dump-dom")
    assert requests(log) == ["http://127.0.0.1:9/open.png"]
    assert "CONSOLE" in shown.told


def pages(pdf: Path) -> int:
    data = pdf.read_bytes()
    assert data.startswith(b"%PDF-")
    return len(re.findall(rb"/Type\s*/Page\b", data))


def test_paper_shows_what_the_screen_folds_away(page: Path) -> None:
    folded = page.with_name("folded.html")
    folded.write_text(page.read_text().replace("details::details-content", "details::nothing"))
    counts = []
    for one in (page, folded):
        pdf = one.with_suffix(".pdf")
        show(one, f"--print-to-pdf={pdf}")
        counts.append(pages(pdf))
    assert counts[0] > counts[1] > 0
