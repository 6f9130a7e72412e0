"""The report in a real Chromium: videos play in step, filters and the slider choose."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ipo_lightning.report import write_report
from tests.helpers.browser import CHROMIUM, DRIVER, MISSING, Browser, chromium
from tests.report.runs import HOSTILE, write_run

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=MISSING)

CLOSING = "</script><script>window.hurt = 1</script>"
TILES = "[...document.querySelectorAll('.draw:first-child video')]"
TIMES = f"{TILES}.map((video) => video.currentTime)"
PROMPTS = "[...document.querySelectorAll('.draw h3')].map((one) => one.firstChild.data)"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rounds on 13 prompts with two videos each, whose texts are hostile."""
    run = write_run(tmp_path_factory.mktemp("report"), prompts=13)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("squares", f"'{CLOSING}'"))
    for file in run.glob("round_*/evaluation.jsonl"):
        file.write_text(file.read_text().replace("number 4", CLOSING))
    return write_report(run)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("browser")) as window:
        yield window


def chosen(browser: Browser, name: str, value: str) -> None:
    """Give a control a value as a person's hand does."""
    browser.run(
        "const one = document.getElementById(arguments[0]); one.value = arguments[1];"
        "one.dispatchEvent(new Event('input', {bubbles: true}))", name, value,
    )  # fmt: skip


@pytest.mark.slow
def test_videos_play_in_step_and_stop(browser: Browser, page: Path) -> None:
    browser.open(page, width=1600)
    browser.run("document.getElementById('videos').scrollIntoView()")
    browser.until(f"{TILES}.length === 3 && Math.max(...{TIMES}) > 0.2")
    assert browser.run(f"return {TILES}.every((video) => video.videoWidth === 64)")
    browser.until(f"Math.max(...{TIMES}) - Math.min(...{TIMES}) < 0.13")
    browser.click("#play")
    browser.until(f"{TILES}.every((video) => video.paused)")
    chosen(browser, "scrub", "500")
    browser.until(f"{TIMES}.every((time) => Math.abs(time - 0.5625) < 0.03)")
    assert browser.complaints() == []


@pytest.mark.slow
def test_filters_and_the_slider_choose(browser: Browser, page: Path) -> None:
    browser.open(page, width=1600)
    assert browser.text("#count") == "26 of 26 videos, by the judge: 10 won, 8 tied, 8 lost"
    assert browser.run(f"return {PROMPTS}.length") == 12
    assert "won +0.10" in browser.text(".draw:nth-child(1)")
    assert "lost \u22120.10" in browser.text(".draw:nth-child(2)")
    browser.click("#more")
    browser.click("#more")
    assert browser.run(f"return {PROMPTS}.length") == 26
    assert browser.run("return document.getElementById('more').hidden")
    chosen(browser, "outcome", "lost")
    assert browser.text("#count").startswith("8 of 26")
    chosen(browser, "round", "0")
    assert browser.text("#which") == "1" and "lost \u22120.05" in browser.text(".draw")
    chosen(browser, "outcome", "")
    chosen(browser, "category", "<b>shape")
    assert browser.text("#count").startswith("14 of 26")
    chosen(browser, "category", "")
    chosen(browser, "search", "SQUARE red")
    assert browser.run(f"return {PROMPTS}") == [HOSTILE] * 2
    browser.click("#all")
    assert browser.run(f"return {TILES}.length") == 2  # the base and the chosen round
    browser.run("document.querySelectorAll('[data-find]')[2].click()")
    (prompt,) = set(browser.run(f"return {PROMPTS}"))
    assert prompt == browser.run("return document.querySelectorAll('[data-find]')[2].textContent")
    assert browser.complaints() == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1600])
def test_hostile_texts_stay_texts_and_nothing_is_cut(
    browser: Browser, page: Path, width: int
) -> None:
    browser.requests()
    browser.open(page, width=width)
    assert browser.text("h1") == CLOSING
    chosen(browser, "search", "script")
    assert CLOSING in " ".join(browser.run(f"return {PROMPTS}"))
    assert browser.run("return window.hurt === undefined && !document.querySelector('h3 script')")
    assert browser.run("return document.documentElement.scrollWidth") <= width
    hidden = browser.run(
        "return [...document.querySelectorAll('table')].filter((one) => one.offsetWidth > "
        "innerWidth && !one.closest('.scroll, pre')).length"
    )
    assert hidden == 0
    assert {one.partition(":")[0] for one in browser.requests()} <= {"file", "data"}
    assert browser.complaints() == []
