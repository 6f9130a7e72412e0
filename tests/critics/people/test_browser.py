"""The page that asks people, in a real Chromium, by keys and by clicks."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ipo_lightning.critics.people.answers import read_answers
from ipo_lightning.critics.people.human import HumanCritic
from ipo_lightning.critics.protocols import AnswersPending, Question
from ipo_lightning.storage.store import Store
from ipo_lightning.video import Clip, encode_video
from tests.helpers.browser import CHROMIUM, DRIVER, MISSING, Browser, chromium

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=MISSING)

PROMPTS = ("a red square", "</script><script>window.hurt = 1</script>",
           '<img src=x onerror="window.hurt = 1">', "a ring & a \u2028 cross")  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def questions(store: Store) -> list[Question]:
    """Four questions about lossless videos of 32 px."""
    names = []
    for number in range(8):
        frames = torch.full((8, 32, 32, 3), 20, dtype=torch.uint8)
        for t in range(8):
            frames[t, 3 * number : 3 * number + 6, 3 * t : 3 * t + 8, number % 3] = 220
        content = encode_video(Clip(frames, 8.0), lossless=True)
        names.append(store.put_blob("videos", content, ".mp4"))
    return [Question(*names[2 * k : 2 * k + 2], prompt) for k, prompt in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("browser")) as window:
        yield window


SIDES = "[document.getElementById('left'), document.getElementById('right')]"


def page_of(folder: Path, store: Store, questions: list[Question], **settings: object) -> Path:
    """The page that a critic writes."""
    critic = HumanCritic(str(folder), **settings)  # type: ignore[arg-type]
    with pytest.raises(AnswersPending):
        critic.request(questions, lambda name: store.path("videos", name, ".mp4"))
    (page,) = folder.glob("questions-*/page-1.html")
    return page


def downloaded(browser: Browser, folder: Path) -> Path:
    """The file that was downloaded last, moved to where answers are put."""
    for _ in range(400):
        found = list(browser.downloads.glob("*.jsonl"))
        if found and not list(browser.downloads.glob("*.crdownload")):
            return Path(found[0].rename(folder / found[0].name))
        time.sleep(0.05)
    raise AssertionError("nothing was downloaded")


def seen(browser: Browser) -> tuple[str, str, str]:
    """What is asked, and the addresses of the two videos."""
    return browser.text("#prompt"), *browser.run(f"return {SIDES}.map((video) => video.src)")


@pytest.mark.slow
def test_answered_by_keys_alone(
    browser: Browser, tmp_path: Path, store: Store, questions: list[Question]
) -> None:
    """Including an undo, and a reload in the midst; the reader takes the download."""
    page = page_of(tmp_path, store, questions)
    browser.requests()
    browser.complaints()
    browser.open(page)
    assert browser.text("#count") == "0 of 5 answered, 5 left"
    shown = [seen(browser)]
    browser.press("right")
    shown.append(seen(browser))
    browser.press("1")
    shown.append(seen(browser))
    browser.press("u")
    assert seen(browser) == shown[1] and browser.text("#count") == "1 of 5 answered, 4 left"
    browser.press("3", "down")
    assert browser.text("#count") == "3 of 5 answered, 2 left"
    browser.reload()
    assert browser.text("#count") == "3 of 5 answered, 2 left"
    browser.press("4", "left")
    assert browser.text("#count") == "5 of 5 answered, 0 left"
    assert browser.text("#thanks") == "All answered, thank you"
    browser.press("d")
    downloaded(browser, tmp_path)
    rows = read_answers(tmp_path).rows
    assert [row.labels["Overall"] for row in rows] == ["B", "B", "same", "invalid", "A"]
    assert {row.prompt for row in rows} == set(PROMPTS)
    assert [row.prompt for row in rows[:2]] == [prompt for prompt, *_ in shown[:2]]
    critic = HumanCritic(str(tmp_path))
    assert all(critic.recall(question) is not None for question in questions)
    (account,) = critic.answers.accounts()
    assert (account.answers, account.repeats) == (5, 1)
    assert not [url for url in browser.requests() if url.startswith("http")]
    assert browser.complaints() == []


@pytest.mark.slow
def test_answered_by_clicks(
    browser: Browser, tmp_path: Path, store: Store, questions: list[Question]
) -> None:
    browser.open(page_of(tmp_path, store, questions, repeats=0))
    assert browser.run("return document.getElementById('download').disabled")
    browser.click('[data-choice="same"]')
    browser.click('[data-choice="A"]')
    browser.click("#undo")
    for choice in ("B", "invalid", "A"):
        browser.click(f'[data-choice="{choice}"]')
    browser.click("#finish")
    downloaded(browser, tmp_path)
    rows = read_answers(tmp_path).rows
    assert [row.labels["Overall"] for row in rows] == ["same", "B", "invalid", "A"]


def test_some_answers_can_be_downloaded_at_any_time(
    browser: Browser, tmp_path: Path, store: Store, questions: list[Question]
) -> None:
    browser.open(page_of(tmp_path, store, questions, repeats=0, seed=1))
    browser.press("1", "2")
    browser.click("#download")
    downloaded(browser, tmp_path)
    assert len(read_answers(tmp_path).rows) == 2
    assert "Downloaded 2 answers" in browser.text("#status")
    with pytest.raises(AnswersPending, match="2 questions"):
        critic = HumanCritic(str(tmp_path))
        critic.request([q for q in questions if critic.recall(q) is None],
                       lambda name: store.path("videos", name, ".mp4"))  # fmt: skip


def test_a_hidden_repeat_shows_the_same_videos_on_other_sides(
    browser: Browser, tmp_path: Path, store: Store, questions: list[Question]
) -> None:
    browser.open(page_of(tmp_path, store, questions, repeats=1))
    sides: dict[str, list[tuple[str, str]]] = {}
    for _ in range(8):
        prompt, left, right = seen(browser)
        sides.setdefault(prompt, []).append((left, right))
        browser.press("2")
    assert len(sides) == 4
    for first, second in sides.values():
        assert first == second[::-1]


def test_dimensions_are_asked_one_after_the_other(
    browser: Browser, tmp_path: Path, store: Store, questions: list[Question]
) -> None:
    page = page_of(tmp_path, store, questions[:1], repeats=0, dims=["VQ", "grip"])
    browser.open(page)
    assert browser.text("#asked").startswith("Visual quality")
    browser.press("1")
    assert browser.text("#asked") == "grip: which is better?"
    assert browser.text("#count") == "0 of 1 answered, 1 left"
    browser.press("2", "3", "d")
    downloaded(browser, tmp_path)
    (row,) = read_answers(tmp_path).rows
    assert row.labels == {"VQ": "A", "grip": "same", "Overall": "B"}


@pytest.mark.slow
@pytest.mark.parametrize("embed_mib", [32, 0], ids=["within the page", "beside it"])
def test_both_videos_play_and_play_again(
    browser: Browser, tmp_path: Path, store: Store, questions: list[Question], embed_mib: int
) -> None:
    """From disk, under the page's own policy, without a complaint of the browser."""
    browser.complaints()
    page = page_of(tmp_path, store, questions, embed_mib=embed_mib, seed=2)
    browser.open(page)
    browser.until(f"{SIDES}.every((video) => video.currentTime > 0.2)")
    sizes = browser.run(f"return {SIDES}.map((video) => [video.videoWidth, video.duration])")
    assert sizes == [[256, 1], [256, 1]]
    browser.run(
        f"window.sought = 0; for (const video of {SIDES})"
        "  video.addEventListener('seeked', () => { window.sought += 1; })"
    )
    browser.press("space")
    browser.until("window.sought >= 2")
    assert seen(browser)[1].startswith("data:video/mp4" if embed_mib else "file:")
    assert browser.complaints() == []


def test_a_prompt_is_text(
    browser: Browser, tmp_path: Path, store: Store, questions: list[Question]
) -> None:
    browser.open(page_of(tmp_path, store, questions, repeats=0, seed=4))
    prompts = set()
    for _ in questions:
        prompts.add(browser.run("return document.getElementById('prompt').textContent"))
        browser.press("1")
    assert prompts == set(PROMPTS)
    assert browser.run("return window.hurt === undefined && document.images.length === 0")


def test_a_broken_video_is_said(
    browser: Browser, tmp_path: Path, store: Store, questions: list[Question]
) -> None:
    page = page_of(tmp_path, store, questions, embed_mib=0, repeats=0, seed=5)
    for video in (page.parent / "videos").iterdir():
        video.write_bytes(b"no video")
    browser.open(page)
    browser.until("document.getElementById('broken').innerText.includes('cannot be played')")


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_and_can_be_read(
    browser: Browser,
    tmp_path: Path,
    store: Store,
    questions: list[Question],
    width: int,
    dark: bool,
) -> None:
    """No sideways scrolling, the choices in sight, text at a contrast of 4.5 at least."""
    browser.open(
        page_of(tmp_path, store, questions, dims=["MQ"]), width=width, height=844, dark=dark
    )
    fits = (
        "return [document.documentElement.scrollWidth <= innerWidth, "
        "document.querySelector('[data-choice=invalid]').getBoundingClientRect().bottom"
        " < innerHeight]"
    )
    assert browser.run(fits) == [True, True]
    contrasts = browser.run(CONTRASTS)
    assert len(contrasts) > 8
    assert min(contrasts.values()) >= 4.5, contrasts


CONTRASTS = """
const channel = (value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const luminance = (colour) => {
  const [r, g, b] = colour.match(/[\\d.]+/g).map((number) => channel(number / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
  for (let one = element; one; one = one.parentElement) {
    const colour = getComputedStyle(one).backgroundColor;
    if (!/, 0\\)$/.test(colour)) return colour;
  }
  return "rgb(255, 255, 255)";
};
const found = {};
const worded = "main *:enabled, main p, main h1, kbd, figcaption";
for (const element of document.querySelectorAll(worded)) {
  if (!element.innerText || element.closest(":disabled")) continue;
  const both = [getComputedStyle(element).color, ground(element)].map(luminance);
  found[element.innerText] = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
}
return found;
"""


def test_every_control_has_a_name_and_can_be_reached(
    browser: Browser, tmp_path: Path, store: Store, questions: list[Question]
) -> None:
    browser.open(page_of(tmp_path, store, questions, seed=6))
    browser.press("1")  # then all controls are enabled
    names = set()
    for _ in range(9):
        browser.press("tab")
        names.add(browser.run("return document.activeElement.innerText.trim()"))
    wanted = ("Download answers", "Left is better", "Equally good", "Right is better", "Cannot say",
              "Play again", "Undo", "How to answer")  # fmt: skip
    for name in wanted:
        assert any(one.startswith(name) for one in names), (name, names)
    tree = browser.command("Accessibility.getFullAXTree")["nodes"]
    roles = {(n["role"]["value"], n.get("name", {}).get("value")) for n in tree if "role" in n}
    assert ("progressbar", "1 of 5 answered, 4 left") in roles
    assert {("Video", "Left video"), ("Video", "Right video")} <= roles
