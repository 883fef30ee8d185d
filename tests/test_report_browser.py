"""The report in a real browser: a Chromium on the PATH, driven by playwright; without either the tests are skipped."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_job import CONFIG, start, write_inputs

from beam_prep.manifest import read_manifest
from beam_prep.report import gather
from beam_prep.report_page import failure_page, page
from beam_prep.report_verdict import findings

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_SHAPES = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]

# Contrast of every text that is seen against the first background behind it, by WCAG's formula; those below 4.5.
_LOW_CONTRAST = """() => {
  const luminance = rgb => {
    const [r, g, b] = rgb.map(c => c / 255).map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const numbers = colour => colour.match(/[0-9.]+/g).map(Number);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = numbers(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const low = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || element.closest("title, desc, style")) continue;
    const style = getComputedStyle(element);
    const front = luminance(numbers(element.closest("svg") ? style.fill : style.color).slice(0, 3));
    const back = luminance(behind(element));
    const contrast = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (contrast < 4.5) low.push([texts.currentNode.data.trim().slice(0, 40), contrast]);
  }
  return low;
}"""

_SMALL_TEXT = """() => [...document.querySelectorAll("svg text")]
  .map(text => text.getBoundingClientRect().height).filter(height => height < 10).length"""

_OUTSIDE = """() => [...document.querySelectorAll("svg text")].filter(text => {
  const inside = text.getBoundingClientRect(), all = text.closest("svg").getBoundingClientRect();
  return inside.left < all.left - 12 || inside.right > all.right + 12;
}).map(text => text.textContent)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'beam-prep[test]'")
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip("needs a Chromium on the PATH")
    with playwright.sync_playwright() as driver:
        # A container's root has no sandbox, and the page is ours.
        started = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of several sources, stages and splits, with rejected records."""
    folder = tmp_path_factory.mktemp("browser")
    write_inputs(folder / "in")
    config = CONFIG.format(folder=folder / "in")
    start(config + "stages: [{name: S1}, {name: S2, context_length: 128, min_tokens: 20}]\n", folder / "out")
    return folder / "out"


def look(browser: Any, path: Path, width: int, scheme: str, shot: Path) -> dict[str, Any]:
    """Opens a page as a reader would; what was seen of it."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    opened = context.new_page()
    told: list[str] = []
    requests: list[str] = []
    opened.on("console", lambda message: told.append(message.text))
    opened.on("pageerror", lambda error: told.append(str(error)))
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(path.as_uri())
    seen = {
        "told": told,
        "requests": [url for url in requests if not url.startswith("data:")],
        "width": opened.evaluate("document.documentElement.scrollWidth"),
        "background": opened.evaluate("getComputedStyle(document.body).backgroundColor"),
        "low": opened.evaluate(_LOW_CONTRAST),
        "small": opened.evaluate(_SMALL_TEXT),
        "outside": opened.evaluate(_OUTSIDE),
        "plots": opened.locator("svg").count(),
        "images": opened.get_by_role("img").count(),
        "unnamed": opened.get_by_role("img", name="", exact=True).count(),
        "first": opened.evaluate("document.querySelector('svg')?.getBoundingClientRect().width"),
    }
    opened.screenshot(path=str(shot), full_page=True)
    seen["printed"] = opened.pdf(format="A4")[:5] if scheme == "light" else b"%PDF-"
    context.close()
    return seen


@pytest.mark.parametrize(("width", "scheme"), _SHAPES)
@pytest.mark.parametrize("which", ["small", "mixture"])
def test_the_page_on_a_screen(
    browser: Any, finished: Any, mixture: Path, tmp_path: Path, which: str, width: int, scheme: str
) -> None:
    output = finished.output if which == "small" else mixture
    path = output / "report.html"
    seen = look(browser, path, width, scheme, tmp_path / f"{which}-{width}-{scheme}.png")
    assert seen["told"] == []
    assert seen["requests"] == [path.as_uri()]
    assert seen["width"] <= width
    assert seen["plots"] == seen["images"] >= 6
    assert seen["unnamed"] == 0
    assert seen["first"] > 300
    assert (sum(map(int, seen["background"][4:-1].split(","))) > 384) == (scheme == "light")
    assert seen["low"] == []
    assert seen["small"] == 0
    assert seen["outside"] == []
    assert seen["printed"] == b"%PDF-"


def test_what_to_worry_about_is_seen_first(browser: Any, mixture: Path) -> None:
    expected = [f.headline for f in findings(gather(str(mixture), read_manifest(str(mixture)), None))]
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    opened.goto((mixture / "report.html").as_uri())
    shown = opened.locator(".finding b").all_inner_texts()
    assert expected and [text.partition(": ")[2].rstrip(".") for text in shown] == expected
    assert opened.locator(".finding").first.bounding_box()["y"] < 450
    opened.locator("nav a").last.click()
    assert opened.locator("#run").bounding_box()["y"] < 900
    context.close()


def test_long_names_and_a_page_of_failure(browser: Any, mixture: Path, tmp_path: Path) -> None:
    manifest = read_manifest(str(mixture))
    long = "a-source-with-a-name-" + "x" * 100
    dumped = manifest.model_dump(mode="json")
    dumped["ledger"][long] = dumped["ledger"].pop("plain")
    for entry in dumped["outputs"].values():
        entry["sources"][long] = entry["sources"].pop("plain")
    renamed = type(manifest).model_validate(dumped)
    (tmp_path / "long.html").write_text(page(gather(str(mixture), renamed, None)), "utf-8")
    (tmp_path / "failed.html").write_text(failure_page(OSError("no " + "y" * 300)), "utf-8")
    for name in ("long", "failed"):
        seen = look(browser, tmp_path / f"{name}.html", 390, "dark", tmp_path / f"{name}.png")
        assert seen["told"] == [] and seen["width"] <= 390 and seen["outside"] == []
