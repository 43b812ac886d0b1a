"""The report in headless Chromium: it asks for nothing, complains of nothing, fits, and is accessible.

Screenshots are written to build/report.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import report_cases
from axe_playwright_python.sync_playwright import Axe
from fleet.hardware import gpu_by_name
from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page, Request

SHOTS = report_cases.CHECKOUT / "build" / "report"
CASES = ("example", "changed", "lab", "quantized", "refused", "large")
SIZES = {360: 780, 1440: 900}
SCHEMES = ("light", "dark")
SECTIONS = ["summary", "refusals", "load", "placement", "memory", "curves", "losses", "moves", "changes", "candidates"]
# Chromium draws no more than this at once.
TALLEST_SHOT = 16_000
MOST_BYTES = 3_000_000

OPEN_ALL = "document.querySelectorAll('details').forEach(one => one.open = true)"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# Of every bar on the page: bytes of the parts and of the card, and the end of each part in percent.
BARS = """() => [...document.querySelectorAll('svg.memory')].map(bar => {
  const symbol = document.querySelector(bar.querySelector('use').getAttribute('href'))
  const parts = [...symbol.querySelectorAll('rect')]
  return {
    total: Number(symbol.dataset.totalBytes) + Number(symbol.dataset.overBytes),
    parts: parts.map(part => ({
      kind: part.dataset.kind, bytes: Number(part.dataset.bytes),
      x: parseFloat(part.getAttribute('x')), width: parseFloat(part.getAttribute('width')),
    })),
    name: bar.getAttribute('aria-labelledby'),
    shown: bar.getBoundingClientRect().width,
  }
})"""


@dataclass
class Seen:
    """What a page complained about and asked for, its own file excepted."""

    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert executable, "no chromium on PATH: make report-tests installs Debian's"
    # The sandbox of Chromium does not start as root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="session", params=CASES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A case and the file of its report."""
    directory = tmp_path_factory.mktemp(request.param)
    make = getattr(report_cases, request.param)
    case = make(directory) if request.param == "lab" else make()
    path = directory / "report.html"
    path.write_text(case.page, encoding="utf-8")
    return request.param, case, path


def watch(page: Page) -> Seen:
    seen = Seen()

    def asked(request: Request) -> None:
        if not (request.is_navigation_request() and request.url.startswith("file:")):
            seen.requests.append(request.url)

    page.on("console", lambda message: seen.console.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.console.append(str(error)))
    page.on("request", asked)
    return seen


def opened(browser: Browser, path: Path, width: int, scheme: str, **options) -> tuple[Page, Seen]:
    viewport = {"width": width, "height": SIZES[width]}
    page = browser.new_page(viewport=viewport, color_scheme=scheme, offline=True, **options)
    seen = watch(page)
    page.goto(path.as_uri())
    return page, seen


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", SIZES)
def test_looks(browser: Browser, written, width: int, scheme: str):
    name, _, path = written
    page, seen = opened(browser, path, width, scheme)
    assert page.evaluate(OVERFLOW) == 0
    SHOTS.mkdir(parents=True, exist_ok=True)
    height = min(page.evaluate("document.documentElement.scrollHeight"), TALLEST_SHOT)
    shot = SHOTS / f"{name}-{width}-{scheme}.png"
    page.screenshot(path=shot, full_page=True, clip={"x": 0, "y": 0, "width": width, "height": height})
    page.evaluate(OPEN_ALL)
    assert page.evaluate(OVERFLOW) == 0
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(background.removeprefix("rgb(").split(",")[0])
    assert red < 64 if scheme == "dark" else red > 192
    assert seen == Seen()
    page.close()


def test_sections_and_headings(browser: Browser, written):
    name, case, path = written
    page, _ = opened(browser, path, 1440, "light")
    found = page.eval_on_selector_all("main > section", "all => all.map(one => one.id)")
    assert [one for one in found if one not in ("simulation", "quantized")] == SECTIONS
    assert ("quantized" in found) == (name == "quantized")
    assert page.locator("main > section > h2").count() == len(found)
    linked = page.eval_on_selector_all("nav a", "all => all.map(one => one.getAttribute('href').slice(1))")
    assert linked == found
    summary = page.locator("#summary").inner_text()
    assert f"{case.plan.summary.gpus_used:,}" in summary
    for model in case.plan.summary.carried:
        assert model in summary
    for refusal in case.plan.refused:
        assert refusal.nearest_change in page.locator("#refusals").inner_text()
    page.close()


def test_quantized_checkpoints_show_what_was_measured_and_why_one_was_refused(browser: Browser, tmp_path: Path):
    path = tmp_path / "report.html"
    path.write_text(report_cases.quantized().page, encoding="utf-8")
    page, seen = opened(browser, path, 1440, "light")
    rows = [row.split("\t") for row in page.locator("#quantized tbody").inner_text().splitlines() if row.strip()]
    by_verdict = {row[2].split(maxsplit=1)[1]: row for row in rows}
    assert set(by_verdict) == {"serves", "kept, not used by this plan", "refused"}
    recipe, figures, agreement, places, on = (by_verdict["serves"][place] for place in (1, 3, 4, 5, 6))
    assert recipe.startswith("AWQ, 4 bits, groups of 128, 128 samples of 2048 tokens")
    assert figures == "8.39 / 8.21 = 1.022 (at most 1.10)"
    assert agreement == "96.3 % (at least 85.0 %)"
    assert (places, on) == ("8,188", "l40s-a")
    assert by_verdict["kept, not used by this plan"][6] == "l40s-a, l40s-b"
    page.evaluate(OPEN_ALL)
    told = page.locator("#quantized").inner_text()
    assert "Refused: its perplexity is 1.707 times the source's, at most 1.100 is allowed, and it chooses" in told
    assert "Libraries: compressed-tensors 0.19.0, llmcompressor 0.14.0.1, torch 2.13.0." in told
    assert f"Checkpoint {'a' * 12}, of the source {'5' * 12}; it took 1,235 s." in told
    assert seen == Seen()
    page.close()


def test_every_gpu_is_there_and_adds_up(browser: Browser, written):
    name, case, path = written
    page, _ = opened(browser, path, 1440, "light")
    page.evaluate(OPEN_ALL)
    bars = page.evaluate(BARS)
    total = gpu_by_name("L40S", where="test").torch_visible_bytes
    for bar in bars:
        assert bar["total"] == total
        assert sum(part["bytes"] for part in bar["parts"]) == total
        end = 0.0
        for part in bar["parts"]:
            assert part["x"] == pytest.approx(end, abs=0.01)
            assert part["width"] == pytest.approx(100 * part["bytes"] / total, abs=0.01)
            end = part["x"] + part["width"]
        assert end == pytest.approx(100.0, abs=0.01)
        assert bar["shown"] > 300
        assert bar["name"]
    gpus = sum(len(host.gpus) for host in case.hosts)
    # Equal hosts are shown once.
    assert len(bars) == gpus if name != "large" else 8 * 2 < len(bars) < gpus
    page.close()


def test_points_are_marked_in_the_curves(browser: Browser, written):
    name, case, path = written
    page, _ = opened(browser, path, 1440, "light")
    page.evaluate(OPEN_ALL)
    figures = page.locator("#curves figure")
    running = {one.model for one in case.plan.instances}
    assert figures.count() >= len(running)
    assert page.locator("#curves figure svg .curve.decode").count() == 2 * figures.count()
    # Where there is a demand, the planned point lies on the line of the steady stream, in both panels.
    planned = page.locator("#curves figure svg .mark.planned").count()
    assert planned == page.locator("#curves figure svg .curve.sustained").count()
    assert (planned > 0) == (name != "refused")
    page.close()


def test_accessible(browser: Browser, written):
    name, _, path = written
    views = ((1440, "light"), (360, "dark"))
    # Looking at a large page takes long, and it is built of the same parts.
    for width, scheme in views[:1] if name == "large" else views:
        # axe is a script, which the page's own policy would refuse.
        page, _ = opened(browser, path, width, scheme, bypass_csp=True)
        if name != "large":
            page.evaluate(OPEN_ALL)
        results = Axe().run(page)
        assert results.violations_count == 0, results.generate_report()
        page.close()


def test_print_shows_what_is_folded(browser: Browser, written):
    name, _, path = written
    page, seen = opened(browser, path, 1440, "dark")
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = false)")
    page.emulate_media(media="print")
    heights = page.eval_on_selector_all(
        "details > *:last-child", "all => all.map(one => one.getBoundingClientRect().height)"
    )
    assert min(heights) > 0
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(255, 255, 255)"
    if name != "large":
        pdf = page.pdf(path=SHOTS / f"{name}.pdf")
        assert pdf.startswith(b"%PDF")
    assert seen == Seen()
    page.close()


def test_size(written):
    _, _, path = written
    assert path.stat().st_size < MOST_BYTES


def test_the_watch_sees_what_it_is_for(browser: Browser, tmp_path: Path):
    """What the page's policy refuses is a console message, what it allows a request: both would be seen above."""
    page_text = report_cases.refused().page
    bad = '<img src="http://127.0.0.1:9/x.png"><script>1</script><p style="width: 4000px">wide</p>'
    (tmp_path / "refused.html").write_text(page_text.replace("<main>", f"<main>{bad}"), encoding="utf-8")
    page, seen = opened(browser, tmp_path / "refused.html", 360, "light")
    assert len(seen.console) >= 3
    assert all("Content Security Policy" in message for message in seen.console)
    page.close()
    open_page = page_text.replace("Content-Security-Policy", "x").replace("<main>", f"<main>{bad}")
    (tmp_path / "open.html").write_text(open_page, encoding="utf-8")
    page, seen = opened(browser, tmp_path / "open.html", 360, "light")
    assert seen.requests == ["http://127.0.0.1:9/x.png"]
    assert page.evaluate(OVERFLOW) > 0
    page.close()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", SIZES)
def test_the_page_of_a_benchmark(browser: Browser, tmp_path: Path, width: int, scheme: str):
    path = tmp_path / "benchmark.html"
    path.write_text(report_cases.benchmark(), encoding="utf-8")
    page, seen = opened(browser, path, width, scheme)
    assert page.evaluate(OVERFLOW) == 0
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"benchmark-{width}-{scheme}.png", full_page=True)
    assert page.locator("polyline.curve.sustained").count() == 4
    assert "throughput peaks at 64 concurrent requests with 1,240.0 output tokens/s" in page.inner_text("#peak")
    found = Axe().run(page)
    assert found.response["violations"] == []
    assert (seen.console, seen.requests) == ([], [])
    page.close()
