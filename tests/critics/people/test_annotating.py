"""People as critics without a browser: what is asked, what the answers come to, what is refused."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from ipo_lightning.critics.people.annotations import Annotation, Choice, write_annotations
from ipo_lightning.critics.people.answers import Answers, latest, read_answers
from ipo_lightning.critics.people.human import NOT_ANSWERED, HumanCritic
from ipo_lightning.critics.people.page import plays, video_for_people, write_page
from ipo_lightning.critics.people.questions import APART, plan
from ipo_lightning.critics.protocols import AnswersPending, Question, RecordedCritic
from ipo_lightning.errors import InputError
from ipo_lightning.storage.store import Store
from ipo_lightning.video import Clip, encode_video, read_video, write_video

QUESTIONS = [Question(f"{n:064x}", f"{n + 100:064x}", f"prompt {n}") for n in range(40)]
A, B = QUESTIONS[0].first, QUESTIONS[0].second


def said(
    choice: Choice, *, by: str = "1", turned: bool = False, pair: str = "", at: str = "",
    question: Question = QUESTIONS[0], **dims: Choice,
) -> Annotation:  # fmt: skip
    """An answer; ``turned``: with the question's second video as A."""
    first, second = (question.second, question.first) if turned else question[:2]
    return Annotation(
        pair, question.prompt, "", "", {"Overall": choice, **dims}, video_A=first, video_B=second,
        annotator=by, timestamp=at, seconds=4.0,
    )  # fmt: skip


# ---------------------------------------------------------------- what is asked


def test_a_plan_is_a_function_of_its_seed_and_annotator() -> None:
    def planned(annotator: str = "1", seed: int = 0, order: Sequence[Question] = QUESTIONS):
        return plan(order, annotator=annotator, seed=seed, repeats=0.1)

    assert planned() == planned(order=QUESTIONS[::-1])
    assert planned() != planned("2") and planned() != planned(seed=1)
    lefts = Counter(one.left in {q.first for q in QUESTIONS} for one in planned())
    assert 10 < lefts[True] < 34  # of 44: both sides


def test_repeats_are_hidden_swapped_and_late() -> None:
    shown = plan(QUESTIONS, annotator="1", seed=3, repeats=0.1)
    assert len(shown) == 44 and len({one.id for one in shown}) == 44
    places: dict[str, list[int]] = {}
    for place, one in enumerate(shown):
        places.setdefault(one.prompt, []).append(place)
    again = [both for both in places.values() if len(both) > 1]
    assert len(again) == 4
    for first, second in again:
        assert (shown[first].left, shown[first].right) == (shown[second].right, shown[second].left)
        assert second - first > APART or second == len(shown) - 1


@pytest.mark.parametrize(
    ("count", "share", "asked"), [(3, 0.1, 4), (3, 0, 3), (1, 1, 2), (0, 1, 0)]
)
def test_few_questions_have_repeats_as_well(count: int, share: float, asked: int) -> None:
    shown = plan(QUESTIONS[:count], annotator="1", seed=0, repeats=share)
    assert len(shown) == asked
    firsts = [one.prompt for one in shown][:count]
    assert len(set(firsts)) == count  # no repeat before its own question


# ---------------------------------------------------------------- what the answers come to


def settled(*rows: Annotation):
    return Answers(rows).settle(QUESTIONS[0])


def test_one_answer_and_its_mirror() -> None:
    found = settled(said("A", VQ="same", MQ="B"))
    assert found is not None and tuple(found.preference) == (1, 0, 0)  # type: ignore[arg-type]
    assert found.dims == {"VQ": 0.5, "MQ": 0.0} and found.certainty == 1
    assert settled(said("B", turned=True, VQ="same", MQ="A")) == found
    back = Answers([said("A", VQ="same", MQ="B")]).settle(Question(B, A, "prompt 0"))
    assert back is not None and tuple(back.preference) == (0, 0, 1)  # type: ignore[arg-type]
    assert back.dims == {"VQ": 0.5, "MQ": 1.0} and back.raw == "1: B"


def test_the_majority_counts_and_its_share_is_the_certainty() -> None:
    found = settled(said("A"), said("A", by="2"), said("B", by="3"), said("same", by="4"))
    assert found is not None and tuple(found.preference) == (0.5, 0.25, 0.25)  # type: ignore[arg-type]
    assert found.preference.outcome == "first" and found.certainty == 0.5  # type: ignore[union-attr]


def test_two_who_contradict_each_other_tie() -> None:
    found = settled(said("A"), said("B", by="2"))
    assert found is not None and found.preference is not None
    assert found.preference.outcome == "tie" and found.certainty == 0.5


def test_whoever_contradicts_themselves_is_half_for_each() -> None:
    """Both times the left one: the first sides A, then B."""
    found = settled(said("A", pair="x"), said("A", pair="y", turned=True))
    assert found is not None and tuple(found.preference) == (0.5, 0, 0.5)  # type: ignore[arg-type]
    both = settled(said("A", pair="x"), said("A", pair="y", turned=True), said("B", by="2"))
    assert both is not None and tuple(both.preference) == (0.25, 0, 0.75)  # type: ignore[arg-type]


def test_who_cannot_say_gives_no_verdict() -> None:
    alone = settled(said("invalid"))
    assert alone is not None and alone.preference is None and alone.fault == "cannot say"
    most = settled(said("invalid"), said("invalid", by="2"), said("A", by="3"))
    assert most is not None and most.preference is None
    half = settled(said("invalid"), said("A", by="2", VQ="invalid"))
    assert half is not None and tuple(half.preference) == (1, 0, 0)  # type: ignore[arg-type]
    assert half.dims == {}


def test_a_page_downloaded_twice_counts_once_by_its_last_word() -> None:
    early = said("A", pair="x", at="2026-01-01T10:00:00Z")
    late = said("B", pair="x", at="2026-01-01T10:05:00Z")
    for rows in ((early, late), (late, early), (late, early, late)):
        found = settled(*rows)
        assert found is not None and tuple(found.preference) == (0, 0, 1)  # type: ignore[arg-type]


def nameless(*choices: Choice) -> list[Annotation]:
    return [said(one, by="", pair="x", at=f"2026-01-01T10:0{k}:00Z")
            for k, one in enumerate(choices)]  # fmt: skip


def test_people_without_a_name_are_somebody_else_each() -> None:
    """As of a Label Studio export that says nothing of who answered: the last is not the only."""
    found = settled(*nameless("A", "A", "B"))
    assert found is not None and found.preference == pytest.approx((2 / 3, 0, 1 / 3))
    alike = [said("A", by=""), said("A", by=""), said("B", by="")]  # equal in every field
    found = settled(*alike)
    assert found is not None and found.preference == pytest.approx((2 / 3, 0, 1 / 3))
    assert Answers(alike).people(QUESTIONS[0]) == 3
    (account,) = Answers(alike).accounts()
    assert (account.answers, account.repeats) == (3, 0), "nobody repeats an answer without a name"


def test_each_person_without_a_name_has_a_vote_beside_those_with_one() -> None:
    """Taken for one person, three would weigh as much as one, or be unable to say as one."""
    unable = settled(said("A"), *nameless("invalid", "invalid", "invalid"))
    assert unable is not None and unable.preference is None and unable.fault == "cannot say"
    most = settled(said("A"), *nameless("B", "B", "B"))
    assert most is not None and most.preference == pytest.approx((1 / 4, 0, 3 / 4))


def test_a_file_without_names_that_is_given_twice_counts_once(tmp_path: Path) -> None:
    rows = [said("A", by=""), said("A", by=""), said("B", by="")]
    more = [*rows, said("A", by="")]  # the same file, grown by one row
    assert latest(rows) == rows and latest(rows, rows) == rows
    assert sorted(one.labels["Overall"] for one in latest(more, rows)) == ["A", "A", "A", "B"]
    for name in ("answers", "answers (1)"):
        write_annotations(tmp_path / f"{name}.jsonl", rows)
    found = read_answers(tmp_path)
    assert len(found.rows) == 3 and found.content == Answers(rows).content
    pair = [said("A"), said("A"), said("B")]  # a name, but none of the pair
    assert latest(pair) == pair == latest(pair, pair)


def test_consistency_is_measured_by_repeats() -> None:
    other = QUESTIONS[1]
    answers = Answers([
        said("A", pair="1"), said("B", pair="2", turned=True),  # the same video twice
        said("A", pair="3", question=other), said("A", pair="4", question=other, turned=True),
        said("same", pair="5", question=QUESTIONS[2]), said("invalid", by="2"),
    ])  # fmt: skip
    first, second = answers.accounts()
    assert (first.repeats, first.agreed, first.answers, first.ties) == (2, 1, 5, 1)
    said_of_first = "annotator 1: 5 answers (1 ties, 0 cannot say), 4 s each; "
    assert first.line() == said_of_first + "1 of 2 repeats answered alike"
    assert second.line().endswith(": 1 answers (0 ties, 1 cannot say), 4 s each; no repeats")


# ---------------------------------------------------------------- files


def test_answers_are_read_strictly(tmp_path: Path) -> None:
    write_annotations(tmp_path / "1.jsonl", [said("A")])
    write_annotations(tmp_path / "2.jsonl", [said("B", by="2")])
    assert len(read_answers(tmp_path).rows) == 2
    assert read_answers(tmp_path / "none").rows == []
    torn = tmp_path / "2.jsonl"
    torn.write_text(torn.read_text()[:40])
    with pytest.raises(InputError, match=r"2\.jsonl:1: not JSON"):
        read_answers(tmp_path)
    torn.write_text('{"prompt": "x", "Overall": "left", "video_A": "1", "video_B": "2"}\n')
    with pytest.raises(InputError, match=r"2\.jsonl:1: Overall='left': give one of A, B"):
        read_answers(tmp_path)
    torn.write_text('{"prompt": "x", "Overall": "A", "path_A": "1.mp4", "path_B": "2.mp4"}\n')
    with pytest.raises(InputError, match="does not name its videos"):
        read_answers(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"annotators": 0}, "annotators=0"),
        ({"repeats": 2}, "repeats=2"),
        ({"min_answered": 0}, "min_answered=0"),
        ({"answers": "file.csv"}, "answers=file.csv"),
        ({"dims": ["VQ", "prompt"]}, "dims: prompt is the name of a field"),
        ({"dims": ["extra"]}, "dims: extra is the name of a field"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        HumanCritic(**({"answers": "folder"} | settings))  # type: ignore[arg-type]


# ---------------------------------------------------------------- the critic


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[Question]]:
    """A store with six small lossless videos, and three questions about them."""
    store = Store(tmp_path_factory.mktemp("store"))
    names = []
    for number in range(6):
        frames = torch.full((5, 32, 32, 3), 20, dtype=torch.uint8)
        for t in range(5):
            frames[t, 4 * number : 4 * number + 6, 2 + 4 * t : 8 + 4 * t, number % 3] = 220
        content = encode_video(Clip(frames, 8.0), lossless=True)
        names.append(store.put_blob("videos", content, ".mp4"))
    prompts = ("a red square", "a <b>blue</b> ring", "</script><script>alert(1)</script>")
    pairs = zip(names[::2], names[1::2], prompts, strict=True)
    return store, [Question(*sorted(two), prompt) for *two, prompt in pairs]  # type: ignore[arg-type]


def find_in(store: Store):
    return lambda name: store.path("videos", name, ".mp4")


def content_of(page: Path) -> dict:
    found = re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.S)
    assert found is not None
    return json.loads(found[1])


def test_a_run_stops_for_answers_and_goes_on(
    tmp_path: Path, shelf: tuple[Store, list[Question]]
) -> None:
    store, questions = shelf
    critic = HumanCritic(str(tmp_path))
    assert isinstance(critic, RecordedCritic)
    assert [critic.recall(q) for q in questions] == [None] * 3
    with pytest.raises(
        AnswersPending, match="3 questions wait for people, about 1 minute:"
    ) as pending:
        critic.request(questions, find_in(store))
    (page,) = tmp_path.glob("questions-*/page-1.html")
    assert f"open   {page} (4 to answer)" in str(pending.value)
    written = page.read_bytes()
    with pytest.raises(AnswersPending):
        HumanCritic(str(tmp_path)).request(questions, find_in(store))
    assert page.read_bytes() == written and len(list(tmp_path.iterdir())) == 1

    write_annotations(tmp_path / "mine.jsonl", [said("A", question=questions[0])])
    again = HumanCritic(str(tmp_path))
    found = again.recall(questions[0])
    assert found is not None and tuple(found.preference) == (1, 0, 0)  # type: ignore[arg-type]
    assert again.recall(questions[1]) is None
    assert again.identity != critic.identity
    with pytest.raises(AnswersPending, match="2 questions"):
        again.request(questions[1:], find_in(store))
    assert again.notes() == ["annotator 1: 1 answers (0 ties, 0 cannot say), 4 s each; no repeats"]


def test_an_answer_about_other_videos_is_counted(
    tmp_path: Path, shelf: tuple[Store, list[Question]]
) -> None:
    store, questions = shelf
    write_annotations(tmp_path / "mine.jsonl", [said("A"), said("A", question=questions[0])])
    critic = HumanCritic(str(tmp_path))
    with pytest.raises(AnswersPending):
        critic.request(questions, find_in(store))
    assert critic.notes()[-1] == "1 answered pairs match no question of these pages"


def test_each_annotator_has_a_page_and_all_are_waited_for(
    tmp_path: Path, shelf: tuple[Store, list[Question]]
) -> None:
    store, questions = shelf
    critic = HumanCritic(str(tmp_path), annotators=2, dims=["VQ"])
    with pytest.raises(AnswersPending, match="for each person"):
        critic.request(questions, find_in(store))
    pages = [content_of(page) for page in sorted(tmp_path.glob("questions-*/page-*.html"))]
    assert [page["annotator"] for page in pages] == ["1", "2"]
    assert [one["name"] for one in pages[0]["dims"]] == ["VQ", "Overall"]
    write_annotations(tmp_path / "1.jsonl", [said("A", question=q) for q in questions])
    half = HumanCritic(str(tmp_path), annotators=2)
    assert [half.recall(q) for q in questions] == [None] * 3
    with pytest.raises(AnswersPending) as pending:
        half.request(questions, find_in(store))
    assert "page-2.html" in str(pending.value) and "page-1.html" not in str(pending.value)
    write_annotations(tmp_path / "2.jsonl", [said("B", by="2", question=q) for q in questions])
    done = HumanCritic(str(tmp_path), annotators=2).recall(questions[0])
    assert done is not None and done.certainty == 0.5
    rows = [said(one, by="", question=questions[0]) for one in ("A", "B")]
    (tmp_path / "nameless").mkdir()
    write_annotations(tmp_path / "nameless/rows.jsonl", rows)
    two = HumanCritic(str(tmp_path / "nameless"), annotators=2).recall(questions[0])
    assert two is not None, "two without a name are two people"
    assert two.certainty == 0.5


def test_enough_answers_let_a_run_go_on(
    tmp_path: Path, shelf: tuple[Store, list[Question]]
) -> None:
    store, questions = shelf
    with pytest.raises(AnswersPending):
        HumanCritic(str(tmp_path)).request(questions, find_in(store))
    write_annotations(tmp_path / "mine.jsonl", [said("A", question=q) for q in questions[:2]])
    assert HumanCritic(str(tmp_path), min_answered=0.7).recall(questions[2]) is None
    spared = HumanCritic(str(tmp_path), min_answered=0.6).recall(questions[2])
    assert spared is not None and spared.preference is None and spared.fault == NOT_ANSWERED
    other = Question(questions[0].first, questions[2].first, "never asked")
    assert HumanCritic(str(tmp_path), min_answered=0.6).recall(other) is None


# ---------------------------------------------------------------- the page


def test_a_page_is_blind_and_harmless(tmp_path: Path, shelf: tuple[Store, list[Question]]) -> None:
    store, questions = shelf
    shown = plan(questions, annotator="1", seed=0, repeats=0.5)
    page = write_page(tmp_path / "page.html", shown, "1", (), find_in(store))
    text = page.read_text(encoding="utf-8")
    assert text.count("</script>") == 2 and "<script>alert" not in text
    written = re.sub("<style>.*?</style>", "", text, flags=re.S)
    assert not re.search(r"polic(?!y\")|candidate|winner|loser|round_|https?:", written, re.I)
    content = content_of(page)
    assert content["names"] == sorted({name for q in questions for name in q[:2]})
    assert len(content["videos"]) == 6 and content["small"] is True
    assert {one["prompt"] for one in content["questions"]} == {q.prompt for q in questions}


def test_many_videos_lie_beside_the_page(
    tmp_path: Path, shelf: tuple[Store, list[Question]]
) -> None:
    store, questions = shelf
    shown = plan(questions, annotator="1", seed=0, repeats=0)
    size = len(video_for_people(find_in(store)(questions[0].first))[0])
    for number, embed_mib in enumerate((0.0, 2.5 * size / 2**20)):  # none, or one or two at first
        page = write_page(tmp_path / f"{number}/p.html", shown, "1", (), find_in(store), embed_mib)
        addresses = content_of(page)["videos"]
        assert addresses == [f"videos/{name}.mp4" for name in content_of(page)["names"]]
        assert all(plays(page.parent / address) for address in addresses)


def test_videos_are_made_to_play(tmp_path: Path, shelf: tuple[Store, list[Question]]) -> None:
    store, questions = shelf
    small = find_in(store)(questions[0].first)
    assert not plays(small)
    content, enlarged = video_for_people(small)
    (tmp_path / "seen.mp4").write_bytes(content)
    assert enlarged and plays(tmp_path / "seen.mp4")
    assert read_video(tmp_path / "seen.mp4").frames.shape == (5, 256, 256, 3)
    frames = torch.randint(0, 255, (3, 256, 320, 3), dtype=torch.uint8)
    write_video(tmp_path / "large.mp4", Clip(frames, 8.0))
    assert video_for_people(tmp_path / "large.mp4") == (
        (tmp_path / "large.mp4").read_bytes(), False
    )  # fmt: skip
