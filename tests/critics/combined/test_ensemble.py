"""Adapters and ensembles: arithmetic by hand, members in turn, faults, and mirrors."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import train
from ipo_lightning.critics.combined.adapters import ScoresToComparisons
from ipo_lightning.critics.combined.ensemble import Ensemble, OnMissing, PairEnsemble
from ipo_lightning.critics.combined.normalisation import fit_normalisation, main
from ipo_lightning.critics.protocols import Comparison, PairCritic, PointCritic, Rating
from ipo_lightning.critics.scorers.gauged import GaugeCritic
from ipo_lightning.critics.stage.critique import (
    CombinedCritique,
    PairCritique,
    PointCritique,
    critique_of,
)
from ipo_lightning.errors import InputError
from ipo_lightning.metrics.preferences import Preference, rao_kupper
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.storage.records import Candidate
from ipo_lightning.storage.store import Store, read_jsonl, write_jsonl
from ipo_lightning.video import Clip, encode_video
from tests.conftest import ComposeTrain
from tests.helpers import tiny_clip


def clip(level: int) -> Clip:
    return Clip(torch.full((2, 8, 8, 3), level, dtype=torch.uint8), 8.0)


LOADED: list[str] = []
"""Names of the critics that are in memory."""


class Level:
    """Rates by the grey level, in units of its own; a level above ``most`` gets no verdict."""

    def __init__(self, name: str, unit: float = 1.0, most: int = 255, transient: bool = False):
        self.name, self.unit, self.most, self.transient = name, unit, most, transient
        self.together: list[list[str]] = []
        self.asked = 0

    @property
    def identity(self) -> str:
        return f"{self.name}@{self.unit}"

    def load(self, device: str) -> None:
        LOADED.append(self.name)

    def release(self) -> None:
        LOADED.remove(self.name)

    def rate(self, clips: Sequence[Clip], prompts: Sequence[str]) -> list[Rating]:
        self.together.append(list(LOADED))
        self.asked += len(clips)
        return [self.rating(int(one.frames[0, 0, 0, 0])) for one in clips]

    def rating(self, level: int) -> Rating:
        if level > self.most:
            return Rating(None, fault="too bright", transient=self.transient)
        score = level * self.unit
        return Rating(score, {"dim": -score}, certainty=0.5 if level == 7 else 1.0, raw=str(level))


def file(tmp_path: Path, scales: dict[str, list[float]], **identities: str) -> str:
    members = {
        name: {"identity": identity,
               "parts": {part: s for part, s in scales.items() if part.split(".")[0] == name}}
        for name, identity in identities.items()
    }  # fmt: skip
    path = tmp_path / "scales.json"
    path.write_text(json.dumps({"members": members}))
    return str(path)


# --- Scores to comparisons -----------------------------------------------------------------------


def test_scores_become_chances_by_hand() -> None:
    critic = ScoresToComparisons(Level("a", unit=0.5), scale=2.0, ties=1.5)
    assert isinstance(critic, PairCritic)
    said = critic.compare([clip(3)], [clip(7)], ["p"])[0]
    first, second = (1 / (1 + 1.5 * math.exp(-d)) for d in (-4, 4))
    tie = (1.5**2 - 1) * first * second
    assert said.preference == pytest.approx((first, tie, second))
    assert sum(said.preference) == pytest.approx(1)
    assert said.dims == {"dim": pytest.approx(0.5 + (second - first) / 2)}
    assert said.certainty == 0.5  # of the less certain
    assert json.loads(said.raw) == ["3", "7"]


@pytest.mark.parametrize("ties", [1.0, 1.3, 5.0])
def test_swapped_scores_mirror_exactly(ties: float) -> None:
    critic = ScoresToComparisons(Level("a", unit=0.0371), scale=1.7, ties=ties)
    for one, other in ((3, 200), (90, 91), (0, 255), (5, 5)):
        there = critic.compare([clip(one)], [clip(other)], ["p"])[0].preference
        back = critic.compare([clip(other)], [clip(one)], ["p"])[0].preference
        assert there is not None and back is not None and there == back.mirrored()


def test_equal_clips_tie_and_identity_has_the_settings() -> None:
    said = ScoresToComparisons(Level("a")).compare([clip(9)], [clip(9)], ["p"])[0]
    assert said.preference is not None and said.preference.outcome == "tie"
    kinds = [(1.0, 1.0), (2.0, 1.0), (1.0, 2.0)]
    kinds += [(1.00000001, 1.0), (1.0, 1.00000001)]  # which answer otherwise
    assert len({ScoresToComparisons(Level("a"), *kind).identity for kind in kinds}) == 5
    assert ScoresToComparisons(Level("a"), 1, 1.5).identity == "a@1.0#pairs-1,1,1.5"


def test_a_video_of_several_couples_is_rated_once() -> None:
    a, b, c = clip(3), clip(7), clip(9)
    critic = Level("a")
    said = ScoresToComparisons(critic).compare([a, b, a, a], [b, a, c, b], ["p", "p", "p", "q"])
    assert critic.asked == 5  # a, b, c of one prompt, a and b of the other
    alone = ScoresToComparisons(Level("a"))
    couples = ((a, b, "p"), (b, a, "p"), (a, c, "p"), (a, b, "q"))
    assert said == [alone.compare([x], [y], [p])[0] for x, y, p in couples]


@pytest.mark.parametrize("transient", [True, False])
def test_a_missing_score_is_a_missing_comparison(transient: bool) -> None:
    critic = ScoresToComparisons(Level("a", most=100, transient=transient))
    good, bad = critic.compare([clip(1), clip(200)], [clip(2), clip(3)], ["p", "q"])
    assert good.preference is not None
    assert bad.preference is None and bad.fault == "too bright" and bad.transient == transient
    lost = critic.compared(Rating(math.nan), Rating(1.0))
    assert lost.preference is None and lost.fault == "unreadable"
    whole, part = Rating(1.0), Rating(2.0, transient=transient)
    assert critic.compared(whole, part).transient == critic.compared(part, whole).transient
    assert critic.compared(whole, part).transient == transient


def test_wrong_scales_are_refused() -> None:
    for scale, ties, match in ((0.0, 1.0, "scale=0.0"), (1.0, 0.5, "ties=0.5")):
        with pytest.raises(InputError, match=match):
            ScoresToComparisons(Level("a"), scale, ties)


# --- Ensembles of scores -------------------------------------------------------------------------


def test_an_ensemble_by_hand(tmp_path: Path) -> None:
    a, b = Level("a"), Level("b", unit=10.0)
    scales = {"a": [4.0, 2.0], "b": [50.0, 10.0], "b.dim": [-40.0, 5.0]}
    normalisation = file(tmp_path, scales, a=a.identity, b=b.identity)
    weights = {"a": 2.0, "b": 1.0, "b.dim": -1.0}
    critic = Ensemble({"a": a, "b": b}, weights, normalisation)
    assert isinstance(critic, PointCritic)
    rating = critic.rate([clip(7)], ["p"])[0]
    z = {"a": 1.5, "b": 2.0, "b.dim": -6.0}  # a.dim has no scale
    assert rating.dims == z
    score = (2 * 1.5 + 1 * 2.0 + 1 * 6.0) / 4
    assert rating.score == pytest.approx(score)
    spread = (2 * (1.5 - score) ** 2 + (2.0 - score) ** 2 + (6.0 - score) ** 2) / 4
    assert rating.certainty == pytest.approx(0.5 / (1 + spread))
    assert json.loads(rating.raw) == {"a": "7", "b": "7"}


def test_members_that_agree_are_certain_and_units_do_not_matter(tmp_path: Path) -> None:
    a, b = Level("a"), Level("b", unit=1000.0)
    scales = {"a": [4.0, 2.0], "b": [4000.0, 2000.0]}
    normalisation = file(tmp_path, scales, a=a.identity, b=b.identity)
    rating = Ensemble({"a": a, "b": b}, None, normalisation).rate([clip(9)], ["p"])[0]
    assert rating.score == 2.5 and rating.certainty == 1.0


def test_batch_and_order_do_not_change_a_bit() -> None:
    critic = Ensemble({"a": Level("a", unit=0.1), "b": Level("b", unit=0.7)})
    clips, prompts = [clip(k) for k in (3, 250, 77)], list("pqr")
    together = critic.rate(clips, prompts)
    assert together == critic.rate(clips[::-1], prompts[::-1])[::-1]
    assert together == [critic.rate([one], ["x"])[0] for one in clips]


def test_members_are_in_memory_one_after_the_other_unless_asked() -> None:
    a, b = Level("a"), Level("b")
    critic = Ensemble({"a": a, "b": b})
    critic.load("cpu")
    critic.rate([clip(1)], ["p"])
    critic.release()
    assert (a.together, b.together) == ([["a"]], [["b"]]) and not LOADED
    critic = Ensemble({"a": a, "b": b}, concurrent=True)
    critic.load("cpu")
    critic.rate([clip(1)], ["p"])
    critic.rate([clip(2)], ["p"])
    critic.release()
    assert a.together[1:] == b.together[1:] == [["a", "b"]] * 2 and not LOADED


@pytest.mark.parametrize("transient", [True, False])
def test_a_missing_member_is_a_fault_or_left_out(transient: bool) -> None:
    def members() -> dict[str, Level]:
        return {"a": Level("a"), "b": Level("b", most=100, transient=transient)}

    rating = Ensemble(members()).rate([clip(200)], ["p"])[0]
    assert rating.score is None and rating.fault == "b: too bright"
    assert rating.transient == transient
    rating = Ensemble(members(), on_missing="rest").rate([clip(200)], ["p"])[0]
    assert rating.score == 200 and rating.fault == "" and rating.transient == transient
    only = Ensemble({"b": members()["b"]}, on_missing="rest").rate([clip(200)], ["p"])[0]
    assert only.score is None and only.fault == "b: too bright"


@pytest.mark.parametrize(("on_missing", "transient"), [("fault", False), ("rest", True)])
def test_asking_again_helps_where_one_of_the_rest_will_do(
    on_missing: OnMissing, transient: bool
) -> None:
    members = {"a": Level("a", most=100), "b": Level("b", most=100, transient=True)}
    rating = Ensemble(members, on_missing=on_missing).rate([clip(200)], ["p"])[0]
    assert rating.score is None and rating.transient == transient


def test_a_member_that_cannot_be_loaded_gives_its_memory_back() -> None:
    class Half(Level):
        def load(self, device: str) -> None:
            super().load(device)
            raise InputError("no more memory")

    with pytest.raises(InputError, match="no more memory"):
        Ensemble({"a": Half("a")}).rate([clip(1)], ["p"])
    assert not LOADED


@pytest.mark.parametrize("score", [math.inf, -math.inf, math.nan])
def test_a_score_that_is_not_finite_is_kept_as_none(tmp_path: Path, score: float) -> None:
    class Endless(Level):
        def rating(self, level: int) -> Rating:
            return Rating(score, {"dim": -score, "level": level}, math.inf)

    store = Store(tmp_path)
    video = store.put_blob("videos", encode_video(clip(9), lossless=True), ".mp4")
    stage = PointCritique(Endless("a"), store)
    (verdict,) = stage.ask([Candidate(0, "p", 0, 0, "", video)], Workers(), "cpu", "critic")
    assert (verdict.score, verdict.fault) == (None, "not a number")
    assert verdict.dims == {"level": 9} and verdict.certainty == 0


def test_a_dimension_that_a_member_lacks_is_missing() -> None:
    rating = Ensemble({"a": Level("a")}, {"a.beauty": 1.0}).rate([clip(2)], ["p"])[0]
    assert rating.score is None and rating.fault == "a: no a.beauty"


def test_identity_follows_members_weights_and_scales(tmp_path: Path) -> None:
    a = Level("a")
    one = file(tmp_path, {"a": [4.0, 2.0]}, a=a.identity)
    identities = {Ensemble({"a": a}, None, one).identity}
    Path(one).write_text(Path(one).read_text().replace("4.0", "4.5"))
    identities.add(Ensemble({"a": a}, None, one).identity)
    identities |= {
        Ensemble({"a": a}).identity, Ensemble({"a": Level("a", unit=2.0)}).identity,
        Ensemble({"a": a}, {"a": 2.0}).identity, Ensemble({"a": a}, on_missing="rest").identity,
    }  # fmt: skip
    assert len(identities) == 6


def test_wrong_ensembles_are_refused_in_a_sentence(tmp_path: Path) -> None:
    a = Level("a")
    other = file(tmp_path, {"a": [4.0, 2.0]}, a="another@1")
    with pytest.raises(InputError, match=r"member a is a@1\.0, .* fitted to another@1"):
        _ = Ensemble({"a": a}, None, other).identity
    with pytest.raises(InputError, match=r"no scale for a\.dim"):
        Ensemble({"a": a}, {"a.dim": 1.0}, other)
    for settings, match in (
        ({"members": {}}, "one member or more"),
        ({"members": {"a.b": a}}, "must not have a full stop"),
        ({"members": {"a": a}, "weights": {"b": 1.0}}, "weights.b: the members are a"),
        ({"members": {"a": a}, "weights": {"a": 0.0}}, "other than 0"),
        ({"members": {"a": a}, "weights": {}}, "give at least one part"),
        ({"members": {"a": a}, "on_missing": "zero"}, "on_missing=zero"),
        ({"members": {"a": a}, "normalisation": "nowhere.json"}, "nowhere.json"),
    ):
        with pytest.raises(InputError, match=match):
            Ensemble(**settings)  # type: ignore[arg-type]
    flat = file(tmp_path, {"a": [4.0, 0.0]}, a=a.identity)
    with pytest.raises(InputError, match="no deviation above 0"):
        Ensemble({"a": a}, None, flat)


# --- In a run ------------------------------------------------------------------------------------


def test_a_run_asks_each_member_once_over_all_videos(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    candidates = []
    for prompt in range(3):
        for k in range(2):
            content = encode_video(clip(40 * prompt + 20 * k), lossless=True)
            video = store.put_blob("videos", content, ".mp4")
            candidates.append(Candidate(prompt, f"p{prompt}", k, 0, "", video))
    a, b = Level("a"), Level("b", unit=0.1, most=90)
    stage = critique_of(Ensemble({"a": a, "b": b}), store)
    assert isinstance(stage, CombinedCritique)
    assert stage.missing(candidates) == 12
    assert (stage.calls(2), stage.score_calls) == (4, 2)  # as the plan counts
    verdicts = stage.ask(candidates, Workers(), "cpu", "critic")
    assert a.together == [["a"]] * 3 and b.together == [["b"]] * 3 and not LOADED
    assert [v.score for v in verdicts[:-1]] == pytest.approx([20 * k * 1.1 / 2 for k in range(5)])
    assert verdicts[-1].score is None and verdicts[-1].fault == "b: too bright"
    assert {v.critic for v in verdicts} == {stage.identity}
    again = critique_of(Ensemble({"a": a, "b": b}, {"a": 1.0, "b": 3.0}), store)
    assert again.missing(candidates) == 0  # other weights ask nothing
    again.ask(candidates, Workers(), "cpu", "critic")
    assert a.asked == b.asked == 6


def test_each_kind_of_critic_has_its_stage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert type(critique_of(GaugeCritic({"flow": {"low": 1.0}}), store)) is PointCritique
    assert type(critique_of(ScoresToComparisons(Level("a")), store)) is PairCritique
    assert type(critique_of(pairs(), store)) is PairCritique


# --- Normalisation -------------------------------------------------------------------------------


def verdicts(
    tmp_path: Path, name: str, scores: Sequence[float | None], critic: str = "a@1.0"
) -> Path:
    rows = [
        {"critic": critic, "score": s, "dims": {} if s is None else {"dim": 3.0, "other": -s}}
        for s in scores
    ]
    write_jsonl(tmp_path / name, rows)
    return tmp_path / name


def test_a_normalisation_by_hand(tmp_path: Path) -> None:
    paths = [verdicts(tmp_path, "1.jsonl", [1.0, 3.0]), verdicts(tmp_path, "2.jsonl", [None, 5.0])]
    found = fit_normalisation({"a": paths})["members"]["a"]
    deviation = math.sqrt(8 / 3)
    assert found["parts"] == {"a": [3.0, pytest.approx(deviation)],
                              "a.other": [-3.0, pytest.approx(deviation)]}  # fmt: skip
    assert (found["identity"], found["videos"], found["without_verdict"]) == ("a@1.0", 4, 1)


@pytest.mark.slow
def test_the_command_writes_what_an_ensemble_reads(tmp_path: Path) -> None:
    path = verdicts(tmp_path, "v.jsonl", [1.0, 3.0])
    out = tmp_path / "scales.json"
    command = [
        sys.executable,
        "-m",
        "ipo_lightning.critics.combined.normalisation",
        str(out),
        f"a={path}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "a: 2 videos, a, a.other" in done.stdout
    rating = Ensemble({"a": Level("a")}, None, str(out)).rate([clip(4)], ["p"])[0]
    assert rating.score == 2.0
    assert json.loads(out.read_text())["made"]


def test_what_tells_no_scale_is_refused(tmp_path: Path) -> None:
    mixed = [verdicts(tmp_path, "1", [1.0]), verdicts(tmp_path, "2", [2.0], critic="b@1")]
    with pytest.raises(InputError, match="verdicts of 2 critics"):
        fit_normalisation({"a": mixed})
    for scores in ([2.0, 2.0], [None], []):
        with pytest.raises(InputError, match="a: "):
            fit_normalisation({"a": [verdicts(tmp_path, "v", scores)]})
    write_jsonl(tmp_path / "comparisons", [{"critic": "a", "p_first": 1.0}])
    with pytest.raises(InputError, match="has no scores"):
        fit_normalisation({"a": [tmp_path / "comparisons"]})
    for arguments in (["out.json"], ["out.json", "a"], ["out.json", f"a={tmp_path / 'nowhere'}"]):
        with pytest.raises(InputError):
            main(arguments)


# --- Ensembles of comparisons --------------------------------------------------------------------


def said(first: float, tie: float, **more: float) -> Comparison:
    return Comparison(Preference(first, tie, 1 - first - tie), **more)  # type: ignore[arg-type]


def pairs(**more: object) -> PairEnsemble:
    members = {name: ScoresToComparisons(Level(name)) for name in ("a", "b")}
    return PairEnsemble(members, {"a": 3.0, "b": 1.0}, **more)  # type: ignore[arg-type]


def test_a_pair_ensemble_by_hand() -> None:
    critic = pairs()
    assert isinstance(critic, PairCritic)
    found = critic.combine({"a": said(0.8, 0.1), "b": said(0.2, 0.2, certainty=0.5)})
    assert found.preference == pytest.approx((0.65, 0.125, 0.225))
    lean = 0.65 - 0.225
    apart = (3 * abs(0.7 - lean) + abs(-0.4 - lean)) / 4
    assert found.certainty == pytest.approx(0.5 * (1 - apart))
    assert found.dims == {"a": pytest.approx(0.85), "b": pytest.approx(0.3)}
    alike = critic.combine({"a": said(0.8, 0.1), "b": said(0.8, 0.1)})
    assert alike.certainty == pytest.approx(1)


def test_a_pair_ensemble_mirrors_exactly() -> None:
    members = {"a": ScoresToComparisons(Level("a", 0.013), ties=1.2),
               "b": ScoresToComparisons(Level("b", 0.0291), ties=2.0)}  # fmt: skip
    critic = PairEnsemble(members, {"a": 0.7, "b": 0.21})
    for one, other in ((3, 99), (50, 49), (200, 0), (8, 8)):
        there = critic.compare([clip(one)], [clip(other)], ["p"])[0]
        back = critic.compare([clip(other)], [clip(one)], ["p"])[0]
        assert there.preference is not None and back.preference is not None
        assert there.preference == back.preference.mirrored()
        assert there.certainty == back.certainty
        wanted = rao_kupper(0.013 * (one - other), 1.2).expected
        assert there.dims["a"] == pytest.approx(wanted)


def test_a_pair_member_without_a_verdict() -> None:
    gone = Comparison(None, fault="timeout", transient=True)
    found = pairs().combine({"a": said(0.8, 0.1), "b": gone})
    assert found.preference is None and found.fault == "b: timeout" and found.transient
    found = pairs(on_missing="rest").combine({"a": said(0.8, 0.1), "b": gone})
    assert found.preference == pytest.approx((0.8, 0.1, 0.1)) and found.transient
    assert not pairs().combine({"a": said(0.8, 0.1), "b": said(0.7, 0.1)}).transient
    both = pairs(on_missing="rest").combine({"a": gone, "b": gone._replace(transient=False)})
    assert both.fault == "a: timeout, b: timeout" and both.transient  # a's answer would do
    both = pairs().combine({"a": gone, "b": gone._replace(transient=False)})
    assert both.preference is None and not both.transient


def test_pair_weights_are_above_nought() -> None:
    member = ScoresToComparisons(Level("a"))
    for weights in ({"a": 0.0}, {"b": 1.0}):
        with pytest.raises(InputError, match="a weight above 0"):
            PairEnsemble({"a": member}, weights)


# --- All of it -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_frames_and_gauges_label_a_round_together(small: ComposeTrain, tmp_path: Path) -> None:
    """One run a critic, the normalisation of their verdicts, and a run of both: same videos."""
    folder = tiny_clip.save_model(tmp_path / "clip", context=77)
    path = f"critic.path={folder}"
    train.train(small("critic=clip", path, "name=clip", "until=critique", "round=1"))
    train.train(small("critic=gauges", "name=gauges", "until=critique", "round=1"))
    outputs = tmp_path / "outputs"
    scales = tmp_path / "scales.json"
    files = [f"{name}={outputs}/{name}/round_1/verdicts.jsonl" for name in ("clip", "gauges")]
    main([str(scales), *files])
    members = [f"critic.members.clip.path={folder}", f"critic.normalisation={scales}"]
    weights = "critic.weights={clip: 1.0, gauges: -0.5}"
    train.train(small("critic=ensemble", *members, weights, "name=both", "until=labelling",
                      "round=1"))  # fmt: skip
    rows = [read_jsonl(outputs / name / "round_1/verdicts.jsonl") for name in ("clip", "both")]
    videos = [[row["video"] for row in some] for some in rows]
    assert videos[0] == videos[1] and len(set(videos[0])) == 9
    known = json.loads(scales.read_text())["members"]
    mean, std = known["clip"]["parts"]["clip"]
    for alone, both in zip(*rows, strict=True):
        assert both["dims"]["clip"] == pytest.approx((alone["score"] - mean) / std)
        score = (both["dims"]["clip"] + 0.5 * -both["dims"]["gauges"]) / 1.5
        assert both["score"] == pytest.approx(score)
