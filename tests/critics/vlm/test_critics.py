"""Critics made of a chat model and a form: readouts by hand, votes, faults.

`Scripted` answers from a table; the end of the file asks tiny models of the real classes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ipo_lightning.critics.pretrained.viewing import Viewing
from ipo_lightning.critics.protocols import Comparison, PairCritic, PointCritic, Rating
from ipo_lightning.critics.vlm.client import VIDEO, Fault, Reply, Turn, VLMClient
from ipo_lightning.critics.vlm.critics import Checklist, Letters, PairVLMCritic, PointVLMCritic
from ipo_lightning.critics.vlm.local import LocalVLM
from ipo_lightning.critics.vlm.templates.base import PairVote, PointVote
from ipo_lightning.critics.vlm.templates.ipo import IpoPairs, IpoPoints
from ipo_lightning.critics.vlm.templates.unified import UnifiedPoints, UnifiedRank, UnifiedScores
from ipo_lightning.critics.vlm.votes import compared, rated
from ipo_lightning.errors import InputError
from ipo_lightning.metrics.preferences import Preference, both_orders
from ipo_lightning.video import Clip
from tests.helpers import tiny_vlm

Told = str | Fault | Mapping[str, float]


class Scripted:
    """A `VLMClient` that answers what a function of the turn says; it remembers what happened."""

    identity = "scripted@1#all-frames#greedy"

    def __init__(self, tell: Callable[[Turn], Any]) -> None:
        self.tell = tell
        self.turns: list[Turn] = []
        self.calls: list[str] = []

    def load(self, device: str) -> None:
        self.calls.append(f"load {device}")

    def release(self) -> None:
        self.calls.append("release")

    def choose(
        self, turns: Sequence[Turn], options: Mapping[str, Sequence[str]]
    ) -> list[dict[str, float] | Fault]:
        self.turns += turns
        self.options = options
        return [self.tell(turn) for turn in turns]

    def reply(self, turns: Sequence[Turn]) -> list[list[Reply | Fault]]:
        self.turns += turns
        told = [self.tell(turn) for turn in turns]
        return [[Reply(one) if isinstance(one, str) else one for one in some] for some in told]


def clip(shade: int) -> Clip:
    """Four grey frames."""
    return Clip(torch.full((4, 8, 8, 3), shade, dtype=torch.uint8), 8.0)


def shades(turn: Turn) -> tuple[int, ...]:
    """The greys of a turn's videos."""
    return tuple(int(video.frames[0, 0, 0, 0]) for video in turn.videos)


DARK, LIGHT = clip(10), clip(200)
FIRST, TIE, SECOND = "Video 1 is better", "Both videos are equally good", "Video 2 is better"


def asked(prompt_template: Any, *told: str | Fault) -> Comparison:
    """What a pair critic makes of the samples of one turn."""
    critic = PairVLMCritic(Scripted(lambda turn: told), prompt_template)
    return critic.compare([DARK], [LIGHT], ["a cat"])[0]


@pytest.mark.parametrize(
    ("kind", "prompt_template"), [(PairVLMCritic, UnifiedRank), (PointVLMCritic, UnifiedPoints)]
)
def test_words_that_are_missing_are_missed_before_a_model_is_loaded(
    kind: Any, prompt_template: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPO_LIGHTNING_CACHE", str(tmp_path))
    vlm = Scripted(lambda turn: [FIRST])
    with pytest.raises(InputError, match="curl -LO"):
        kind(vlm, prompt_template("original")).load("cpu")
    assert vlm.calls == []
    kind(vlm, prompt_template("own")).load("cpu")
    assert vlm.calls == ["load cpu"]


def test_the_scripted_model_and_the_critics_keep_their_protocols() -> None:
    vlm = Scripted(lambda turn: [FIRST])
    assert isinstance(vlm, VLMClient)
    for pair in (PairVLMCritic(vlm, UnifiedRank()), Letters(vlm)):
        assert isinstance(pair, PairCritic) and not isinstance(pair, PointCritic)
    for point in (PointVLMCritic(vlm, IpoPoints()), Checklist(vlm, QUESTIONS)):
        assert isinstance(point, PointCritic) and not isinstance(point, PairCritic)


QUESTIONS = [
    {"ask": "Is it sharp?", "dim": "quality", "weight": 2.0},
    {"ask": "Does it flicker?", "dim": "quality", "good": "no"},
    {"ask": "Does it move?", "dim": "motion"},
]


def all_critics(vlm: Any) -> list[Any]:
    """One of each kind."""
    return [PairVLMCritic(vlm, UnifiedRank()), PointVLMCritic(vlm, UnifiedPoints()), Letters(vlm),
            Checklist(vlm, QUESTIONS)]  # fmt: skip


def test_critics_pass_on_what_is_the_models() -> None:
    vlm = Scripted(lambda turn: [FIRST])
    for critic in all_critics(vlm):
        assert not critic.during_rollout
        assert critic.identity.startswith(f"{vlm.identity}#")
        critic.load("cpu")
        critic.release()
    assert vlm.calls == ["load cpu", "release"] * 4
    vlm.during_rollout = True  # type: ignore[attr-defined]
    assert all(critic.during_rollout for critic in all_critics(vlm))
    assert len({critic.identity for critic in all_critics(vlm)}) == 4


def test_identities_tell_what_is_asked() -> None:
    vlm = Scripted(lambda turn: [])
    heavier = [{**one, "weight": 3.0} for one in QUESTIONS]
    turned = [{**one, "good": "yes"} for one in QUESTIONS]
    made = [Letters(vlm), Letters(vlm, "Which is sharper?"), Letters(vlm, letters=SHORT),
            Letters(vlm, aspects={"motion": "Which moves more?"}),
            Checklist(vlm, QUESTIONS), Checklist(vlm, QUESTIONS[:2]), Checklist(vlm, heavier),
            Checklist(vlm, turned), PairVLMCritic(vlm, IpoPairs()),
            PairVLMCritic(vlm, IpoPairs({"motion": "?"}))]  # fmt: skip
    assert len({critic.identity for critic in made}) == len(made)
    assert Letters(vlm).identity == Letters(vlm).identity


SHORT = {"A": ["A"], "T": ["T"], "B": ["B"]}


# ---------------------------------------------------------------------------- words


def test_one_order_is_shown_as_asked() -> None:
    vlm = Scripted(lambda turn: [FIRST if shades(turn) == (200, 10) else SECOND])
    critic = PairVLMCritic(vlm, UnifiedRank())
    found = critic.compare([DARK, LIGHT], [LIGHT, DARK], ["a cat", "a dog"])
    assert [one.preference for one in found] == [Preference(0, 0, 1), Preference(1, 0, 0)]
    assert [shades(turn) for turn in vlm.turns] == [(10, 200), (200, 10)]
    assert '"a cat"' in vlm.turns[0].text and '"a dog"' in vlm.turns[1].text
    assert critic.compare([], [], []) == []


def test_votes_are_shares() -> None:
    found = asked(UnifiedRank(), FIRST, FIRST, TIE, SECOND, FIRST)
    assert found.preference == pytest.approx((0.6, 0.2, 0.2))
    assert found.certainty == pytest.approx(0.6)
    assert found.raw.count("\n---\n") == 4


def test_unreadable_votes_are_missing_ones() -> None:
    """3 of 5 can be read: 2/3 of them for the first, but 2/5 of those asked for."""
    found = asked(UnifiedRank(), FIRST, "hm", FIRST, SECOND, "Video 1 is worse")
    assert found.preference == pytest.approx((2 / 3, 0, 1 / 3))
    assert found.certainty == pytest.approx(0.4)
    assert "hm\n[unreadable: does not end with a verdict]" in found.raw
    half = asked(UnifiedRank(), FIRST, "hm")
    assert half.preference == Preference(1, 0, 0) and half.certainty == 0.5


LATE = Fault("timeout", transient=True)


@pytest.mark.parametrize(
    ("told", "fault", "transient"),
    [
        (["hm"], "unreadable", False),
        ([], "no answer", False),
        ([FIRST, "hm", "hm"], "unreadable", False),
        ([LATE], "timeout", True),
        ([LATE, LATE, FIRST], "timeout", True),
        ([LATE, "hm", "hm"], "unreadable", False),  # asking again brings one of three
        ([LATE, LATE, "hm"], "timeout", True),
        ([FIRST, LATE, "hm", "hm"], "unreadable", True),
        ([Fault("cut short")], "cut short", False),
    ],
)
def test_too_few_votes_are_a_fault(told: list[Any], fault: str, transient: bool) -> None:
    found = asked(UnifiedRank(), *told)
    assert found.preference is None and found.dims == {}
    assert (found.fault, found.transient) == (fault, transient)
    for one in told:
        assert (one.reason if isinstance(one, Fault) else one) in found.raw


def test_votes_that_are_missing_in_passing_may_come_yet() -> None:
    """The verdict counts for now; what cannot be read stays so."""
    found = asked(UnifiedRank(), FIRST, LATE)
    assert found.preference == Preference(1, 0, 0) and not found.fault and found.transient
    assert not asked(UnifiedRank(), FIRST, "hm").transient
    rating = points(scored(1, 2, 3), LATE)
    assert rating.score == pytest.approx(2) and not rating.fault and rating.transient
    assert not points(scored(1, 2, 3), "hm").transient


def test_dimensions_of_votes_are_means() -> None:
    text = "They differ.\nANSWER\nconsistency: {}\nfidelity: A\nmotion: tie\noverall: {}"
    found = asked(IpoPairs(), text.format("A", "A"), text.format("B", "tie"))
    assert found.preference == pytest.approx((0.5, 0.5, 0))
    assert found.dims == {"consistency": 0.5, "fidelity": 1.0, "motion": 0.5}
    assert found.preference is not None and found.preference.outcome == "tie"


def test_shared_points_are_a_preference() -> None:
    text = "{} Score:\nVideo 1: {}\nVideo 2: {}"
    rows = [("Alignment", 0.9, 0.1), ("Coherence", 0.6, 0.4), ("Style", 0.3, 0.7)]
    found = asked(UnifiedScores(), "\n".join(text.format(*row) for row in rows))
    assert found.preference == pytest.approx((0.6, 0.0, 0.4))
    assert found.certainty == pytest.approx(0.6)


def points(*told: str | Fault) -> Rating:
    """What a point critic makes of the samples of one turn."""
    return PointVLMCritic(Scripted(lambda turn: told), UnifiedPoints()).rate([DARK], ["a cat"])[0]


def scored(*values: float) -> str:
    """An answer of UnifiedReward's pointwise form."""
    names = ("Alignment", "Physics", "Style")
    return "\n".join(f"{n} Score (1-5): {v}" for n, v in zip(names, values, strict=True))


def test_points_are_means_and_agreement_is_certainty() -> None:
    """Scores 2 and 4 of 1..5: mean 3, deviation 1 of at most 2."""
    one = points(scored(1, 2, 3))
    assert one.score == pytest.approx(2) and one.certainty == 1
    assert one.dims == {"alignment": 1, "physics": 2, "style": 3}
    two = points(scored(1, 2, 3), scored(3, 4, 5))
    assert two.score == pytest.approx(3) and two.certainty == pytest.approx(0.5)
    assert two.dims == {"alignment": 2, "physics": 3, "style": 4}
    ends = points(scored(1, 1, 1), scored(5, 5, 5))
    assert ends.score == 3 and ends.certainty == 0
    three = points(scored(1, 2, 3), scored(1, 2, 3), "hm")
    assert three.score == pytest.approx(2) and three.certainty == pytest.approx(2 / 3)


def test_points_that_nobody_can_read_are_a_fault() -> None:
    none = points("hm", scored(1, 2, 6))
    assert none.score is None and none.fault == "unreadable" and not none.transient
    assert "6 is not within 1 to 5" in none.raw
    late = points(LATE)
    assert late.score is None and late.fault == "timeout" and late.transient


def test_a_votes_own_certainty_counts() -> None:
    votes = [PointVote(3.0, {}, 0.5), PointVote(3.0, {}, 0.7)]
    assert rated(votes, [], (1, 5), "").certainty == pytest.approx(0.6)
    pair = [PairVote(Preference(0.5, 0.2, 0.3))]
    assert compared(pair, [], "").certainty == 0.5


@pytest.mark.parametrize("kind", ["reply", "choose"])
def test_a_model_that_loses_answers_is_refused(kind: str) -> None:
    """Answers must not slip from one video to another."""
    vlm = Scripted(lambda turn: [FIRST])
    vlm.reply = vlm.choose = lambda *_: []  # type: ignore[method-assign, assignment]
    for critic in all_critics(vlm):
        with pytest.raises(ValueError, match="0 answers"):
            if isinstance(critic, PairVLMCritic | Letters):
                critic.compare([DARK], [LIGHT], ["p"])
            else:
                critic.rate([DARK], ["p"])


# ---------------------------------------------------------------------------- letters


def letters(answers: Mapping[str, Any], **settings: Any) -> tuple[Comparison, Scripted]:
    """What the letters' probabilities become; ``answers``: words of the question -> answer."""

    def tell(turn: Turn) -> Any:
        return next(answer for words, answer in answers.items() if words in turn.text)

    vlm = Scripted(tell)
    return Letters(vlm, **settings).compare([DARK], [LIGHT], ["a cat"])[0], vlm


def test_letters_are_a_preference() -> None:
    found, vlm = letters({"as a whole": {"A": 0.5, "T": 0.2, "B": 0.3}})
    assert found.preference == Preference(first=0.5, tie=0.2, second=0.3)
    assert found.certainty == 0.5 and found.dims == {}
    assert json.loads(found.raw) == {"overall": {"A": 0.5, "T": 0.2, "B": 0.3}}
    assert set(vlm.options) == {"A", "T", "B"} and shades(vlm.turns[0]) == (10, 200)


def test_letters_by_dimension() -> None:
    aspects = {"motion": "Which moves more?", "quality": "Which is sharper?"}
    told = {"as a whole": {"A": 0.5, "T": 0.2, "B": 0.3}, "moves": {"A": 0.1, "T": 0.1, "B": 0.8},
            "sharper": {"A": 0.0, "T": 1.0, "B": 0.0}}  # fmt: skip
    found, vlm = letters(told, aspects=aspects)
    assert found.dims == pytest.approx({"motion": 0.15, "quality": 0.5})
    assert len(vlm.turns) == 3


def test_a_letter_that_is_missing_is_a_fault() -> None:
    told = {"as a whole": {"A": 0.5, "T": 0.2, "B": 0.3}, "moves": Fault("no such token")}
    found, _ = letters(told, aspects={"motion": "Which moves more?"})
    assert found.preference is None and found.fault == "no such token" and not found.transient
    assert json.loads(found.raw)["motion"] == "no such token"
    late, _ = letters({"as a whole": LATE})
    assert late.transient


def test_letters_of_several_prompts_stay_apart() -> None:
    def tell(turn: Turn) -> dict[str, float]:
        first = 0.9 if '"dog"' in turn.text else 0.3
        return {"A": first, "T": 0.0, "B": 1 - first}

    critic = Letters(Scripted(tell), aspects={"motion": "Which moves more?"})
    cat, dog = critic.compare([DARK, LIGHT], [LIGHT, DARK], ["cat", "dog"])
    assert cat.preference is not None and cat.preference.first == 0.3
    assert dog.preference is not None and dog.preference.first == 0.9
    assert [one.dims["motion"] for one in (cat, dog)] == pytest.approx([0.3, 0.9])
    assert critic.compare([], [], []) == []


@pytest.mark.parametrize(
    "settings",
    [{"aspects": {"overall": "?"}}, {"aspects": {"Motion!": "?"}}, {"letters": {"A": ["A"]}}],
)
def test_letters_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Letters(Scripted(lambda turn: {}), **settings)


@pytest.mark.parametrize("lean", [0.0, 0.3, 0.45])
def test_a_leaning_critic_is_set_right_by_both_orders(lean: float) -> None:
    """It prefers the lighter video by 0.1, and whatever stands first by far more."""

    def tell(turn: Turn) -> dict[str, float]:
        first = 0.5 + lean + (0.05 if shades(turn) == (200, 10) else -0.05)
        return {"A": first, "T": 0.0, "B": 1 - first}

    critic = Letters(Scripted(tell))
    ways = critic.compare([DARK, LIGHT], [LIGHT, DARK], ["p", "p"])
    shown, swapped = (one.preference for one in ways)
    assert shown is not None and swapped is not None
    fair, _ = both_orders(shown, swapped)
    back, _ = both_orders(swapped, shown)
    assert fair == back.mirrored()
    assert fair.expected == pytest.approx(0.45) and fair.outcome == "second"


# ---------------------------------------------------------------------------- checklist


def checklist(answers: Mapping[str, Any]) -> tuple[Rating, Scripted]:
    """What a checklist's probabilities become; ``answers``: words of the question -> answer."""

    def tell(turn: Turn) -> Any:
        return next(answer for words, answer in answers.items() if words in turn.text)

    vlm = Scripted(tell)
    return Checklist(vlm, QUESTIONS).rate([DARK], ["a cat"])[0], vlm


def yes(chance: float) -> dict[str, float]:
    """An answer that is yes with a probability."""
    return {"yes": chance, "no": 1 - chance}


def test_a_checklist_is_a_weighted_mean_of_good_answers() -> None:
    """(2 x .8 + .9 + .4) / 4 = .725; quality (2 x .8 + .9) / 3; sure (2 x .6 + .8 + .2) / 4."""
    found, vlm = checklist({"sharp": yes(0.8), "flicker": yes(0.1), "move": yes(0.4)})
    assert found.score == pytest.approx(0.725)
    assert found.dims == pytest.approx({"quality": 2.5 / 3, "motion": 0.4})
    assert found.certainty == pytest.approx(0.55)
    assert json.loads(found.raw)["Does it flicker?"]["yes"] == 0.1
    assert "YES" in vlm.options["yes"] and all(turn.text.count(VIDEO) == 1 for turn in vlm.turns)


@pytest.mark.parametrize("missing", ["sharp", "flicker", "move"])
def test_a_missing_answer_is_a_missing_rating(missing: str) -> None:
    told: dict[str, Any] = {"sharp": yes(0.8), "flicker": yes(0.1), "move": yes(0.4)}
    lost, _ = checklist({**told, missing: Fault("no such token")})
    assert lost.score is None and lost.fault == "no such token" and not lost.transient
    late, _ = checklist({**told, missing: LATE})
    assert late.score is None and late.fault == "timeout" and late.transient


@pytest.mark.parametrize(
    "questions",
    [
        [],
        [{"ask": "Is it?", "dim": "Quality"}],
        [{"ask": "Is it?", "dim": "quality", "weight": 0}],
        [{"ask": "Is it?", "dim": "quality", "weight": float("nan")}],
        [{"ask": "Is it?", "dim": "quality", "good": True}],  # an unquoted yes in YAML
        [{"ask": "Is it?", "dim": "quality", "wait": 1}],
        [{"ask": "Is it?"}],
        [{"ask": "Is it?", "dim": "a"}, {"ask": "Is it?", "dim": "b"}],
    ],
)
def test_checklists_that_cannot_work_are_refused(questions: list[dict[str, Any]]) -> None:
    with pytest.raises(InputError, match="questions"):
        Checklist(Scripted(lambda turn: {}), questions)


def test_a_question_may_hold_the_prompt() -> None:
    vlm = Scripted(lambda turn: yes(0.5))
    Checklist(vlm, [{"ask": "Does it show {prompt}?", "dim": "alignment"}]).rate([DARK], ["a cat"])
    assert "Does it show a cat?" in vlm.turns[0].text


# ---------------------------------------------------------------------------- real models


class Initials:
    """A form for models of random weights, whose words say nothing: their letters are votes."""

    version = "initials-1"
    dims: tuple[str, ...] = ()
    span = (0.0, 1.0)

    def load(self) -> None:
        pass

    def ask(self, *shown: Any) -> Turn:
        *clips, prompt = shown
        return Turn(tuple(clips), f"{VIDEO * len(clips)}\nWhich? {prompt}")


class PairInitials(Initials):
    def read(self, reply: Reply) -> PairVote:
        first = (sum(map(ord, reply.text)) % 97) / 96
        return PairVote(Preference(first, 0.0, 1 - first))


class PointInitials(Initials):
    def read(self, reply: Reply) -> PointVote:
        return PointVote((sum(map(ord, reply.text)) % 97) / 96)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LocalVLM]:
    """A loaded Qwen2-VL of random weights; a third of its tokens end an answer."""
    folder = tiny_vlm.save_model(tmp_path_factory.mktemp("vlm") / "qwen2_vl", "qwen2_vl")

    def loaded(**settings: Any) -> LocalVLM:
        settings = {"dtype": "float32", "max_tokens": 24} | settings
        vlm = LocalVLM(str(folder), viewing=Viewing(**tiny_vlm.SMALL), **settings)
        vlm.load("cpu")
        vlm._weights.generation_config.eos_token_id = list(range(0, 240, 3))
        return vlm

    return loaded


PAIRS: dict[str, Callable[[VLMClient], PairCritic]] = {
    "letters": lambda vlm: Letters(vlm, aspects={"motion": "Which moves more?"}),
    "words": lambda vlm: PairVLMCritic(vlm, PairInitials()),
}
POINTS: dict[str, Callable[[VLMClient], PointCritic]] = {
    "checklist": lambda vlm: Checklist(vlm, QUESTIONS),
    "words": lambda vlm: PointVLMCritic(vlm, PointInitials()),
}
CLIPS = [tiny_vlm.clip(seed, frames) for seed, frames in enumerate((8, 8, 12, 4))]
PROMPTS = ["a cat", "a dog runs fast", "a red ring", "a cat"]
SAMPLED = {"words": {"samples": 3, "temperature": 1.5}}


@pytest.mark.slow
@pytest.mark.parametrize("kind", PAIRS)
def test_a_real_pair_critic_minds_neither_company_nor_order(
    kind: str, tiny: Callable[..., LocalVLM]
) -> None:
    critic = PAIRS[kind](tiny(**SAMPLED.get(kind, {})))
    others = CLIPS[1:] + CLIPS[:1]
    whole = critic.compare(CLIPS, others, PROMPTS)
    assert whole == critic.compare(CLIPS[::-1], others[::-1], PROMPTS[::-1])[::-1]
    one_by_one = zip(CLIPS, others, PROMPTS, strict=True)
    assert whole == [critic.compare([a], [b], [prompt])[0] for a, b, prompt in one_by_one]
    assert all(one.preference is not None for one in whole)
    assert len({one.preference for one in whole}) == len(whole)


@pytest.mark.parametrize("kind", PAIRS)
def test_swapping_the_videos_mirrors_a_real_verdict(
    kind: str, tiny: Callable[..., LocalVLM]
) -> None:
    critic = PAIRS[kind](tiny(**SAMPLED.get(kind, {})))
    ways = [(CLIPS[0], CLIPS[1]), (CLIPS[1], CLIPS[0])]
    fair = []
    for order in (ways, ways[::-1]):
        asked = critic.compare(*zip(*order, strict=True), ["a cat", "a cat"])
        shown, swapped = (one.preference for one in asked)
        assert shown is not None and swapped is not None and shown != swapped.mirrored()
        fair.append(both_orders(shown, swapped))
    assert fair[0][0] == fair[1][0].mirrored() and fair[0][1] == fair[1][1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", POINTS)
def test_a_real_point_critic_minds_neither_company_nor_order(
    kind: str, tiny: Callable[..., LocalVLM]
) -> None:
    critic = POINTS[kind](tiny(**SAMPLED.get(kind, {})))
    whole = critic.rate(CLIPS, PROMPTS)
    assert whole == critic.rate(CLIPS[::-1], PROMPTS[::-1])[::-1]
    assert whole == [
        critic.rate([clip], [prompt])[0] for clip, prompt in zip(CLIPS, PROMPTS, strict=True)
    ]
    scores = [one.score for one in whole]
    assert None not in scores and len(set(scores)) == len(scores)


@pytest.mark.parametrize("kind", ["letters", "checklist"])
def test_batches_of_a_real_model_change_rounding_alone(
    kind: str, tiny: Callable[..., LocalVLM]
) -> None:
    found = []
    for size in (1, 3):
        critic = (PAIRS | POINTS)[kind](tiny(batch_size=size))
        if isinstance(critic, PairCritic):
            asked = critic.compare(CLIPS, CLIPS[::-1], PROMPTS)
            found.append([one.preference.first for one in asked if one.preference])
        else:
            found.append([one.score for one in critic.rate(CLIPS, PROMPTS)])  # type: ignore[misc]
    assert len(found[0]) == len(CLIPS)
    assert found[0] == pytest.approx(found[1], abs=2e-5)


def test_a_real_model_that_rambles_gives_no_verdict(tiny: Callable[..., LocalVLM]) -> None:
    """Its words are kept, or that it was cut short."""
    critic = PairVLMCritic(tiny(samples=4, temperature=1.5), IpoPairs())
    (found,) = critic.compare(CLIPS[:1], CLIPS[1:2], ["a cat"])
    assert found.preference is None and found.fault in ("unreadable", "cut short")
    assert found.raw.count("---") == 3 and not found.transient


def test_letters_of_a_real_model_are_its_next_token(tiny: Callable[..., LocalVLM]) -> None:
    """From the raw logits of one forward, without the critic's or the client's help."""
    vlm = tiny()
    critic = Letters(vlm)
    (found,) = critic.compare(CLIPS[:1], CLIPS[1:2], ["a cat"])
    turn = critic._words[0].turn("a cat", *CLIPS[:2])
    row = vlm._row(turn, 0, 1)
    with torch.inference_mode():
        logits = vlm._weights(**row.inputs).logits[0, -1]
    ids = [vlm.processor.tokenizer.convert_tokens_to_ids(letter) for letter in "ATB"]
    assert found.preference == pytest.approx(logits[ids].double().softmax(0).tolist(), abs=1e-6)
