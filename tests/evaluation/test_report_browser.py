"""The page about runs in a real browser: it loads, its pictures show, its slider moves, nothing complains."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from run_folders import evaluate, make_run, score, trio

from translate.evaluation.report import write_run_report

pytestmark = pytest.mark.slow

# Errors are caught from the very beginning; what was found is left in the page, which the browser then prints.
CATCH = "<script>window.caught = []; addEventListener('error', (event) => caught.push(String(event.message)));</script>"
CHECK = """<script>
addEventListener("load", () => {
  const shown = () => [...document.querySelectorAll(".frame.shown figcaption")].map((caption) => caption.textContent);
  const found = {
    widths: [...document.images].map((image) => image.naturalWidth),
    curves: [...document.querySelectorAll(".charts path:not(.grid)")].map((path) => path.getTotalLength() > 0),
    overflow: document.documentElement.scrollWidth - innerWidth,
    last: shown(),
  };
  const slider = document.querySelector(".slider input");
  if (slider) { slider.value = 0; slider.dispatchEvent(new Event("input")); found.first = shown(); }
  found.caught = caught;
  const result = document.createElement("pre");
  result.id = "found";
  result.textContent = JSON.stringify(found);
  document.body.append(result);
});
</script>"""


class Seen(NamedTuple):
    found: dict[str, Any]
    console: list[str]


def seen(page: Path, folder: Path, width: int = 1200) -> Seen:
    """What Chromium makes of a copy of the page, with a script in it that looks around."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    copy = folder / f"copy of {page.name}"
    text = page.read_text(encoding="utf-8")
    copy.write_text(text.replace("<head>", "<head>" + CATCH).replace("</body>", CHECK + "</body>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--v=0"]
    options += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},1000", "--dump-dom", copy.as_uri()]
    result = subprocess.run([browser, *options], capture_output=True, text=True, timeout=120)
    match = re.search(r'<pre id="found">(.*?)</pre>', result.stdout, re.DOTALL)
    assert match, f"the browser did not finish the page (exit code {result.returncode}): {result.stderr[-2000:]}"
    return Seen(json.loads(unescape(match[1])), [line for line in result.stderr.splitlines() if ":CONSOLE" in line])


def complaints(page: Seen) -> list[str]:
    """All that is wrong with a page."""
    found = [f"picture {number} shows nothing" for number, width in enumerate(page.found["widths"]) if width == 0]
    return found + page.found["caught"] + page.console


@pytest.fixture
def pages(tmp_path: Path) -> dict[int, Path]:
    """The page of one run, and that of two."""
    runs = [make_run(tmp_path / f"000{n}-tiny", grids=(10 * n, 50)) for n in (1, 2)]
    for run in runs:
        folder = evaluate(run, [])
        evaluate(run, [score("psnr", 20.0)], pictures=[trio(folder, "a <b>.png", "best", 0.1)])
    return {count: write_run_report(runs[:count], tmp_path / f"{count}.html") for count in (1, 2)}


def test_the_page_of_one_run_loads(pages: dict[int, Path], tmp_path: Path) -> None:
    page = seen(pages[1], tmp_path)
    assert complaints(page) == []
    assert page.found["widths"] == [30, 30, 256, 256, 256]  # two grids and three test images
    assert len(page.found["curves"]) == 6 and all(page.found["curves"])


def test_the_slider_moves_both_runs(pages: dict[int, Path], tmp_path: Path) -> None:
    page = seen(pages[2], tmp_path)
    assert complaints(page) == []
    assert len(page.found["widths"]) == 2 * (2 + 3)
    assert page.found["last"] == ["200 images, step 50"] * 2
    # The second run has nothing of the first moment yet: its first grid stays.
    assert page.found["first"] == ["40 images, step 10", "80 images, step 20"]


def test_the_page_fits_a_phone(pages: dict[int, Path], tmp_path: Path) -> None:
    # 500 is as narrow as headless Chromium goes.
    assert all(seen(page, tmp_path, width=500).found["overflow"] <= 0 for page in pages.values())


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (r"data:image/webp;base64,[^\"]{40}", "data:image/webp;base64,AAAA", "picture 0 shows nothing"),
        ("</body>", "<script>nothing.here</script></body>", "nothing is not defined"),
        ("</body>", "<script>console.error('oh dear')</script></body>", "oh dear"),
        ("</body>", "<img src='https://example.org/a.png'></body>", "violates the following Content Security Policy"),
    ],
    ids=["broken picture", "exception", "console error", "a picture from elsewhere"],
)
def test_a_bad_page_is_caught(pages: dict[int, Path], tmp_path: Path, before: str, after: str, said: str) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(re.sub(before, lambda match: after, pages[1].read_text(encoding="utf-8"), count=1), encoding="utf-8")
    assert any(said in complaint for complaint in complaints(seen(bad, tmp_path)))
