"""The critique stage of critics that compare: what is asked, what is kept, what comes of it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from omegaconf import DictConfig

from app.planning.plan import plan
from ipo_lightning.critics.protocols import AnswersPending, Comparison, CriticGone, Question
from ipo_lightning.critics.stage.comparing import (
    Couples,
    pair_verdict,
    strengths,
)
from ipo_lightning.critics.stage.critique import (
    PairCritique,
    PointCritique,
    critique_of,
)
from ipo_lightning.critics.stage.recorded import RecordedCritique
from ipo_lightning.errors import InputError
from ipo_lightning.labelling.tournaments import all_pairs, swiss
from ipo_lightning.metrics.preferences import Preference, rao_kupper
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.shapes.biased import ShapesPairs
from ipo_lightning.shapes.critic import ShapesCritic
from ipo_lightning.storage.layout import RunDir
from ipo_lightning.storage.records import Candidate, PairVerdict
from ipo_lightning.storage.store import Store
from ipo_lightning.video import Clip, encode_video
from train import train


class Brighter:
    """Prefers the brighter video, and by ``bias`` logits the first; it may die at its n-th call."""

    def __init__(self, bias: float = 0.0, dying: int = 0, faults: int = 0) -> None:
        self.bias, self.dying, self.faults = bias, dying, faults
        self.identity = f"brighter@{bias}"
        self.asked: list[tuple[int, int]] = []
        self.calls = 0

    def load(self, device: str) -> None:
        pass

    def release(self) -> None:
        pass

    def compare(
        self, first: Sequence[Clip], second: Sequence[Clip], prompts: Sequence[str]
    ) -> list[Comparison]:
        self.calls += 1
        if self.calls == self.dying:
            raise CriticGone("nobody answers")
        return [self._one(a, b) for a, b in zip(first, second, strict=True)]

    def _one(self, first: Clip, second: Clip) -> Comparison:
        shown = brightness(first), brightness(second)
        self.asked.append(shown)
        if self.faults:
            self.faults -= 1
            return Comparison(None, fault="timeout", transient=True)
        gap = (shown[0] - shown[1]) / 10
        return Comparison(
            rao_kupper(gap + self.bias, 1.5), {"light": 0.5 + gap / 100}, 0.9, f"{gap}"
        )


def brightness(clip: Clip) -> int:
    return round(float(clip.frames.float().mean()))


def candidates_of(store: Store, levels: dict[int, list[int]]) -> list[Candidate]:
    """Prompt -> grey levels of its candidates."""
    made = []
    for prompt, row in levels.items():
        for k, level in enumerate(row):
            clip = Clip(torch.full((3, 16, 16, 3), level, dtype=torch.uint8), 8.0)
            video = store.put_blob("videos", encode_video(clip, lossless=True), ".mp4")
            gauges = {"motion": 5.0, "blank": 0.0}
            made.append(Candidate(prompt, f"prompt {prompt}", k, 7, "l", video, gauges))
    return made


ROUND = {0: [10, 60, 30, 90, 50, 20], 3: [200, 100, 150, 120]}


def ask(critique: Any, candidates: Sequence[Candidate], workers: Workers | None = None) -> Any:
    return critique.ask(candidates, workers or Workers(), "cpu", "test")


def test_every_couple_is_shown_in_both_orders_and_once(tmp_path: Path) -> None:
    critic, store = Brighter(), Store(tmp_path)
    candidates = candidates_of(store, ROUND)
    verdicts = ask(PairCritique(critic, store, Couples(all_pairs)), candidates)
    assert len(verdicts) == 15 + 6 and len(critic.asked) == 2 * 21
    assert max(Counter(critic.asked).values()) == 1
    assert critic.calls == 2  # a call a round of a tournament
    for one in verdicts:
        levels = ROUND[one.prompt_index]
        assert one.first < one.second and one.consistent
        assert (one.outcome > 0.5) == (levels[one.first] > levels[one.second])


def test_an_interrupted_critique_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    store, critic = Store(tmp_path), Brighter(dying=4)
    candidates = candidates_of(store, ROUND)
    with pytest.raises(CriticGone):
        ask(PairCritique(critic, store), candidates)
    assert critic.asked
    verdicts = ask(PairCritique(critic, store), candidates)
    assert max(Counter(critic.asked).values()) == 1
    other = Store(tmp_path / "other")
    assert ask(PairCritique(Brighter(), other), candidates_of(other, ROUND)) == verdicts


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [swiss, all_pairs])
def test_the_number_of_ranks_changes_nothing(tmp_path: Path, schedule: Any) -> None:
    store = Store(tmp_path)
    candidates = candidates_of(store, ROUND)
    alone = ask(PairCritique(Brighter(0.7), store, Couples(schedule)), candidates)
    other = Store(tmp_path / "other")
    candidates_of(other, ROUND)
    parts = []
    for rank in (1, 0):  # one after the other; the second finds what the first has left
        critique = PairCritique(Brighter(0.7), other, Couples(schedule))
        cache, find = critique.comparisons, critique.unanswered
        todo = [one.candidates for one in find(candidates, cache.knows)] if rank else parts[0]
        parts.append(todo)
        for some in todo[rank::2]:
            cache._ask_all(some, find)
    assert ask(PairCritique(Brighter(0.7, dying=1), other, Couples(schedule)), candidates) == alone


def test_a_change_of_what_is_asked_asks_only_what_is_new(tmp_path: Path) -> None:
    store, critic = Store(tmp_path), Brighter(0.5)
    candidates = candidates_of(store, {0: [10, 60, 30, 90]})
    ask(PairCritique(critic, store, Couples(all_pairs, both_orders=False)), candidates)
    assert len(critic.asked) == 6
    ask(PairCritique(critic, store, Couples(all_pairs)), candidates)
    assert len(critic.asked) == 12 == len(set(critic.asked))  # the other order alone
    ask(PairCritique(critic, store, Couples(swiss)), candidates)
    assert len(critic.asked) == 12
    ask(PairCritique(Brighter(0.6, dying=0), store), candidates)  # another identity: anew
    assert len(critic.asked) == 12


def test_single_orders_do_not_go_by_the_number(tmp_path: Path) -> None:
    store, critic = Store(tmp_path), Brighter()
    candidates = candidates_of(store, {0: list(range(10, 250, 20))})
    ask(PairCritique(critic, store, Couples(all_pairs, both_orders=False)), candidates)
    lower_first = sum(a < b for a, b in critic.asked) / len(critic.asked)
    assert 0.3 < lower_first < 0.7
    turned = [replace(one, candidate=11 - one.candidate) for one in candidates]
    ask(PairCritique(critic, store, Couples(all_pairs, both_orders=False)), turned)
    assert len(critic.asked) == 66


def test_the_same_video_is_never_shown_beside_itself(tmp_path: Path) -> None:
    store, critic = Store(tmp_path), Brighter()
    candidates = candidates_of(store, {0: [50, 50, 90, 50]})
    verdicts = ask(PairCritique(critic, store, Couples(all_pairs)), candidates)
    assert sorted(critic.asked) == [(50, 90), (90, 50)]
    outcomes = {(one.first, one.second): one.outcome for one in verdicts}
    assert [outcomes[two] for two in ((0, 1), (0, 3), (1, 3))] == [0.5] * 3
    assert outcomes[0, 2] == outcomes[1, 2] == pytest.approx(1 - outcomes[2, 3])


def test_refused_candidates_are_not_asked_about(tmp_path: Path) -> None:
    store, critic = Store(tmp_path), Brighter()
    candidates = candidates_of(store, {0: [10, 60, 30], 1: [5, 7]})
    still = [replace(one, gauges={"motion": 0.0}) if one.candidate == 1 else one
             for one in candidates]  # fmt: skip
    asking = Couples(refuse=lambda gauges: "still" if gauges["motion"] < 1 else None)
    verdicts = ask(PairCritique(critic, store, asking), still)
    assert [(one.prompt_index, one.first, one.second) for one in verdicts] == [(0, 0, 2)]


def test_what_failed_in_passing_is_asked_again_by_the_next_stage(tmp_path: Path) -> None:
    store, critic = Store(tmp_path), Brighter(faults=3)
    candidates = candidates_of(store, {0: [10, 60, 30, 90]})
    critique = PairCritique(critic, store, Couples(all_pairs))
    missing = [one for one in ask(critique, candidates) if one.p_first is None]
    assert [one.fault for one in missing] == ["timeout"] * 2  # both orders of one, one of another
    assert all(one.outcome is None for one in missing)
    assert len(critic.asked) == 12 and critique.missing(candidates) == 4
    assert all(one.fault == "" for one in ask(critique, candidates))
    assert len(critic.asked) == 15


def test_a_verdict_that_lacks_a_part_in_passing_counts_until_it_is_asked_again(
    tmp_path: Path,
) -> None:
    """As of votes some of which timed out."""

    class Partly(Brighter):
        def _one(self, first: Clip, second: Clip) -> Comparison:
            return super()._one(first, second)._replace(transient=len(self.asked) == 3)

    store, critic = Store(tmp_path), Partly()
    candidates = candidates_of(store, {0: [10, 60, 30]})
    critique = PairCritique(critic, store, Couples(all_pairs))
    verdicts = ask(critique, candidates)
    assert len(critic.asked) == 6 and all(one.fault == "" for one in verdicts)
    assert critique.missing(candidates) == 3  # the couple's prompt
    assert ask(critique, candidates) == verdicts and len(critic.asked) == 7
    assert critique.missing(candidates) == 0


def test_a_fault_that_lasts_is_kept(tmp_path: Path) -> None:
    store, critic = Store(tmp_path), Brighter()
    critic._one = lambda a, b: Comparison(None, fault="unreadable")  # type: ignore[method-assign]
    candidates = candidates_of(store, {0: [10, 60]})
    for _ in range(2):
        (one,) = ask(PairCritique(critic, store), candidates)
        assert (one.fault, one.p_first, critic.calls) == ("unreadable", None, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("prompts_per_call", "calls"), [(1, 12), (3, 6), (64, 3)])
def test_prompts_may_be_put_to_a_critic_together(
    tmp_path: Path, prompts_per_call: int, calls: int
) -> None:
    """Which changes no answer; a tournament's next round still waits for its last."""
    levels = {prompt: [10, 60 + prompt, 30, 90] for prompt in range(4)}
    store, critic = Store(tmp_path), Brighter(0.7)
    critic.prompts_per_call = prompts_per_call  # type: ignore[attr-defined]
    candidates = candidates_of(store, levels)
    found = ask(PairCritique(critic, store), candidates)
    assert critic.calls == calls and max(Counter(critic.asked).values()) <= 4
    other = Store(tmp_path / "other")
    assert found == ask(PairCritique(Brighter(0.7), other), candidates_of(other, levels))


def test_every_rank_has_prompts_to_ask_about(tmp_path: Path) -> None:
    store, critic = Store(tmp_path), Brighter()
    critic.prompts_per_call = 64  # type: ignore[attr-defined]
    stage = PairCritique(critic, store)
    candidates = candidates_of(store, {prompt: [10, 60 + prompt] for prompt in range(4)})
    workers = Workers(rank=1, world=2)
    stage.comparisons.fill(candidates, stage.unanswered, workers, "cpu", "test")
    assert critic.calls == 1 and stage.missing(candidates) == 4  # the other rank's half


class Broken(Brighter):
    """Gives what no critic should, or fails; ``held`` tells whether it is in memory."""

    def __init__(self, said: Any = None, failure: Exception | None = None) -> None:
        super().__init__()
        self.said, self.failure, self.held = said, failure, False

    def load(self, device: str) -> None:
        self.held = True

    def release(self) -> None:
        self.held = False

    def compare(self, *shown: Any) -> list[Comparison]:
        if self.failure:
            raise self.failure
        return self.said or super().compare(*shown)[1:]


@pytest.mark.parametrize("world", [1, 2])
def test_a_critic_is_released_whatever_happens(tmp_path: Path, world: int) -> None:
    store = Store(tmp_path)
    critic = Broken(failure=CriticGone("nobody answers"))
    with pytest.raises(CriticGone):
        ask(PairCritique(critic, store), candidates_of(store, ROUND), Workers(world=world))
    assert not critic.held


def test_memory_that_is_too_small_is_said_in_a_sentence(tmp_path: Path) -> None:
    store = Store(tmp_path)
    critic = Broken(failure=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    with pytest.raises(
        InputError, match=r"brighter@0\.0 needs more memory than cpu has.*batch_size"
    ):
        ask(PairCritique(critic, store), candidates_of(store, ROUND))
    assert not critic.held


def test_answers_that_fit_no_question_are_not_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stage = PairCritique(Broken(), store)
    candidates = candidates_of(store, {0: [10, 60]})
    with pytest.raises(InputError, match="gave 1 answers to 2 questions"):
        ask(stage, candidates)
    assert stage.missing(candidates) == 2


@pytest.mark.parametrize(
    ("chances", "fault"),
    [((float("inf"), 0.0, 0.0), "no probabilities"), ((float("nan"), 0.5, 0.5), "no probabilities"),
     ((0.9, 0.9, 0.9), "no probabilities"), ((1.5, -0.5, 0.0), "no probabilities"),
     ((0.7, 0.2, 0.1), "")],
)  # fmt: skip
def test_what_is_no_distribution_is_no_verdict(
    tmp_path: Path, chances: tuple[float, float, float], fault: str
) -> None:
    store, said = Store(tmp_path), Comparison(Preference(*chances), {"light": float("inf")}, 1.0)
    (found,) = ask(
        PairCritique(Broken([said, said._replace(certainty=float("nan"))]), store),
        candidates_of(store, {0: [10, 60]}),
    )
    assert found.fault == fault and (found.outcome is None) == bool(fault)
    if not fault:
        assert found.dims == {} and found.certainty == 0.5  # of one answer nothing is known


def test_beside_the_rollout(tmp_path: Path) -> None:
    store, critic = Store(tmp_path), Brighter()
    critic.during_rollout = True  # type: ignore[attr-defined]
    candidates = candidates_of(store, ROUND)
    critique = PairCritique(critic, store)
    with critique.during_rollout("cpu") as on_candidates:
        assert on_candidates is not None
        on_candidates([one for one in candidates if one.prompt_index == 0]).result()
    assert critique.missing(candidates) == 4
    calls = critic.calls
    ask(critique, candidates)
    assert critic.calls > calls and max(Counter(critic.asked).values()) == 1


# -------------------------------------------------------------------- verdicts on two videos


def place(k: int) -> Candidate:
    return Candidate(0, "a", k, 7, "l", f"v{k}")


def test_a_verdict_by_hand() -> None:
    shown = Comparison(Preference(0.7, 0.2, 0.1), {"a": 0.8, "b": 0.9, "c": 0.5}, 0.9, "one")
    swapped = Comparison(Preference(0.3, 0.1, 0.6), {"a": 0.4, "b": 0.6}, 0.7, "two")
    found = pair_verdict(place(0), place(1), "critic", shown, swapped)
    assert (found.p_first, found.p_tie, found.p_second) == pytest.approx((0.65, 0.15, 0.2))
    assert found.consistent and found.certainty == pytest.approx(0.8)
    assert found.outcome == pytest.approx(0.725)
    assert found.dims == pytest.approx({"a": 0.7, "b": 0.5})  # b: both prefer the first place
    assert found.raw == ("one", "two") and found.shown == (shown.preference, swapped.preference)


def test_disagreement_is_a_tie_whatever_the_mean() -> None:
    first = Comparison(Preference(0.9, 0.0, 0.1))
    again = Comparison(Preference(0.6, 0.0, 0.4))
    found = pair_verdict(place(0), place(1), "critic", first, again)
    assert not found.consistent and found.outcome == 0.5 and found.p_first == pytest.approx(0.65)


def test_exchanging_the_two_mirrors_exactly() -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(50):
        numbers = torch.rand(2, 3, generator=draw, dtype=torch.float64)
        one, two = (Comparison(Preference(*(row / row.sum()).tolist()), {"a": float(row[0])})
                    for row in numbers)  # fmt: skip
        there = pair_verdict(place(0), place(1), "c", one, two)
        back = pair_verdict(place(0), place(1), "c", two, one)
        assert (there.p_first, there.p_tie) == (back.p_second, back.p_tie)
        assert there.consistent == back.consistent
        assert there.dims["a"] + back.dims["a"] == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("said", [None, Comparison(Preference(1.0, 0.0, 0.0))])
def test_one_missing_order_is_no_verdict(said: Comparison | None) -> None:
    """Half an answer cannot be freed of the place's influence."""
    lost = Comparison(None, fault="timeout")
    found = pair_verdict(place(0), place(1), "c", said, lost)
    assert (found.fault, found.p_first, found.outcome) == ("timeout", None, None)


# -------------------------------------------------------------------- answers of people


class Book:
    """A critic whose answers are written down beforehand; what is not there it asks for."""

    identity = "book@1"

    def __init__(self, answers: dict[tuple[str, str], float]) -> None:
        self.answers = answers
        self.requests: list[list[Question]] = []
        self.files: list[Path] = []

    def recall(self, question: Question) -> Comparison | None:
        chance = self.answers.get((question.first, question.second))
        return None if chance is None else Comparison(Preference(chance, 0.0, 1 - chance))

    def request(self, unanswered: Sequence[Question], find: Callable[[str], Path]) -> NoReturn:
        self.requests.append(list(unanswered))
        self.files += [find(one.first) for one in unanswered]
        raise AnswersPending("open the page")


def test_people_are_asked_for_all_that_is_open_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    some = candidates_of(store, {0: [10, 60, 60], 1: [5, 7]})
    book = Book({})
    critique = critique_of(book, store, Couples(all_pairs))
    assert isinstance(critique, RecordedCritique)
    with pytest.raises(AnswersPending, match="open the page"):
        ask(critique, some)
    (asked,) = book.requests
    assert len(asked) == 2  # both 60s are one video: asked about once, and never beside itself
    assert all(file.exists() for file in book.files)
    book.answers = {(one.first, one.second): 0.0 for one in asked}
    verdicts = ask(critique, some)
    assert [(one.prompt_index, one.first, one.second, one.outcome) for one in verdicts] == [
        (0, 0, 1, 0.0), (0, 0, 2, 0.0), (0, 1, 2, 0.5), (1, 0, 1, 0.0)
    ]  # fmt: skip


def test_only_the_leading_rank_asks(tmp_path: Path) -> None:
    store, book = Store(tmp_path), Book({})
    some = candidates_of(store, {0: [10, 60]})
    with pytest.raises(AnswersPending, match="1 comparisons wait"):
        ask(RecordedCritique(book, store), some, Workers(rank=1, world=2))
    assert book.requests == []


# -------------------------------------------------------------------- evaluations


def against_base(critique: Any, levels: list[int], base: list[int]) -> list[float | None]:
    some = candidates_of(critique.store, {4: levels})
    videos = {(4, k): one.video for k, one in enumerate(candidates_of(critique.store, {4: base}))}
    rows = critique.score(some, videos, Workers(), "cpu", "test")
    assert [row.candidate for row in rows] == list(range(len(levels)))
    return [row.score for row in rows]


def test_a_score_is_the_chance_to_beat_the_base(tmp_path: Path) -> None:
    critic = Brighter(bias=1.0)
    critique = PairCritique(critic, Store(tmp_path), Couples(both_orders=False))
    scores = against_base(critique, [10, 90, 50], [60, 60, 50])
    assert scores[0] is not None and scores[0] < 0.1 and scores[1] > 0.9 and scores[2] == 0.5
    assert sorted(critic.asked) == [(10, 60), (60, 10), (60, 90), (90, 60)]  # in both orders
    itself = critique.score(candidates_of(critique.store, {4: [10]}), None, Workers(), "cpu", "t")
    assert [row.score for row in itself] == [0.5] and len(critic.asked) == 4


def test_a_base_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    critique = PairCritique(Brighter(), Store(tmp_path))
    some = candidates_of(critique.store, {4: [10]})
    with pytest.raises(InputError, match="base model's evaluation videos are gone"):
        critique.score(some, {(4, 0): "0" * 64}, Workers(), "cpu", "test")


def test_people_are_asked_about_scores_only_as_judges(tmp_path: Path) -> None:
    book = Book({})
    assert against_base(critique_of(book, Store(tmp_path)), [10], [60]) == [None]
    with pytest.raises(AnswersPending):
        against_base(critique_of(book, Store(tmp_path), held_out=True), [10], [60])


def test_a_critic_is_told_by_its_methods(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert isinstance(critique_of(ShapesCritic(), store), PointCritique)
    assert isinstance(critique_of(Brighter(), store), PairCritique)
    with pytest.raises(InputError, match="dict is not a critic"):
        critique_of({}, store)


# -------------------------------------------------------------------- runs

Compose = Callable[..., DictConfig]
LABELS = ("round=1", "until=labelling", "critic=shapes_biased", "labelling=pairwise")


@pytest.mark.slow
def test_a_run_with_a_critic_that_compares(small: Compose) -> None:
    judge = ("eval_critic=compared", "eval_critic.critic={_target_: "
             "ipo_lightning.shapes.judge.ShapesJudge}", "~eval_critic.critic.bands",
             "~eval_critic.critic.combine")  # fmt: skip
    cfg = small("round=1", "critic=shapes_pairwise", "labelling=pairwise", *judge)
    line = train(cfg)
    run = RunDir(Path(cfg.paths.outputs) / "run")
    assert run.line(0)["score"] == run.line(0)["eval_score"] == 0.5  # type: ignore[index]
    assert line is not None and 0 < line["score"] < 1 and line["labelling"]["figures"]
    verdicts = run.round(1).verdicts()
    assert verdicts and all(isinstance(one, PairVerdict) for one in verdicts)
    page = (run.path / "report.html").read_text()
    assert "couples compared" in page and "winner shown first" in page


@pytest.mark.slow
def test_points_of_a_critic_that_compares(small: Compose) -> None:
    cfg = small(*LABELS, "loss=kto", "critic=shapes_pairwise")
    train(cfg)
    points = RunDir(Path(cfg.paths.outputs) / "run").round(1).points()
    assert {one.desirable for one in points} == {True, False}


@pytest.mark.slow
def test_a_critic_that_is_gone_stops_the_run_and_what_it_said_stays(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = ShapesPairs.compare, []

    def failing(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise CriticGone("no server at this address")
        return original(self, *args)

    monkeypatch.setattr(ShapesPairs, "compare", failing)
    with pytest.raises(InputError, match="no server at this address; what was answered is kept"):
        train(small(*LABELS))
    train(small(*LABELS))
    before = len(calls)
    train(small(*LABELS, outputs="again"))  # a store of its own: as many calls, but the lost one
    assert before - 1 == len(calls) - before


@pytest.mark.slow
def test_a_round_of_failures_is_not_trained_on(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        lost = [Comparison(None, fault="timeout", transient=True)]
        patch.setattr(ShapesPairs, "compare", lambda self, first, *rest: lost * len(first))
        with pytest.raises(InputError, match="timeout.*max_missing"):
            train(small(*LABELS))
    train(small(*LABELS))  # asked again, and answered
    run = RunDir(Path(small().paths.outputs) / "run")
    assert all(one.fault == "" for one in run.round(1).verdicts())


@pytest.mark.slow
def test_a_run_waits_politely(
    small: Compose, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pending(self: Any, *args: Any) -> NoReturn:
        raise AnswersPending("3 questions to people")

    monkeypatch.setattr(RecordedCritique, "ask", pending)
    monkeypatch.setattr("app.assembly.critique_of", waiting)
    train(small(*LABELS))  # no exception: exit status 0
    said = capsys.readouterr().out
    assert "3 questions to people\nthen go on with: python" in said


def waiting(critic: Any, store: Store, *asking: Any, held_out: bool = False) -> Any:
    """People in the place of the training critic."""
    return critique_of(critic, store) if held_out else RecordedCritique(Book({}), store)


def test_samples_of_a_prompt_are_compared(tmp_path: Path) -> None:
    critic = Brighter(bias=1.0)
    clips = [Clip(torch.full((3, 16, 16, 3), level, dtype=torch.uint8), 8.0)
             for level in (60, 10, 90)]  # fmt: skip
    values = strengths(critic, clips, "a")
    assert values[2] > values[0] > values[1] and len(critic.asked) == 6


def test_a_plan_counts_calls_of_both_orders(compose_train: Compose) -> None:
    """60 prompts x 6: nine couples each, and the evaluations' 96 + 48 videos beside the base's."""
    said = plan(compose_train("critic=shapes_pairwise", "plan.tflops=1", "round=2"))
    assert "360 videos and about 1080 critic calls" in said
    assert "144, 288 calls of the critic and 144 of the held-out judge" in said
    calls = 2 * 1080 + 2 * 288 + 3 * 144  # the base's own videos are compared with nothing
    assert f"critic calls of all rounds: {calls}" in said
    once = plan(compose_train("critic=shapes_pairwise", "labelling=trusting", "plan.tflops=1"))
    assert "about 180 critic calls" in once
