"""Simulated annotators: as noisy as they say, never systematically wrong, the same again."""

import hashlib
import random
from collections import Counter
from pathlib import Path

import pytest

from ipo_lightning.critics.people.annotations import OVERALL, read_annotations
from ipo_lightning.errors import InputError
from ipo_lightning.seeds import derive_seed
from ipo_lightning.shapes.annotators import (
    DIMENSIONS,
    PAIRS_FILE,
    WEIGHTS,
    SimulatedAnnotator,
    annotate,
    base_model,
    crowd,
    plan,
    qualities,
    rendered_clips,
    ring,
)
from ipo_lightning.shapes.critic import ShapesCritic
from ipo_lightning.shapes.prompts import prompts
from ipo_lightning.video import read_video

GOOD, BAD = dict.fromkeys(DIMENSIONS, 0.9), dict.fromkeys(DIMENSIONS, 0.6)


def counts(person: SimulatedAnnotator, dim: str, draws: int = 2000) -> Counter[str]:
    chance = random.Random(7)
    labels = [person.label(GOOD, BAD, chance.choice("AB"), chance)[dim] for _ in range(draws)]
    return Counter(labels)


@pytest.mark.parametrize("dim", [*DIMENSIONS, OVERALL])
def test_labels_are_as_likely_as_rao_and_kupper_say(dim: str) -> None:
    """sharpness 5 x gap 0.3 = 1.5; k = e^0.5: P(A) = sigma(1), P(B) = sigma(-2), the rest ties."""
    person = SimulatedAnnotator("one", sharpness=5, ties=1.6487212707)
    found = counts(person, dim)
    assert found["A"] / 2000 == pytest.approx(0.7311, abs=0.03)
    assert found["B"] / 2000 == pytest.approx(0.1192, abs=0.03)
    assert found["same"] / 2000 == pytest.approx(0.1497, abs=0.03)


def test_the_careless_take_the_left_one() -> None:
    person = SimulatedAnnotator("asleep", careless=1.0)
    for left in "AB":
        assert set(person.label(GOOD, BAD, left, random.Random(1)).values()) == {left}


def test_the_truth_is_the_rule_critics() -> None:
    """The weighted sum of the dimensions is its score: nothing else is labelled by."""
    prompt = prompts("train")[0]
    clips = rendered_clips(prompt, range(5))
    scores = [rating.score for rating in ShapesCritic().rate(clips, [prompt] * 5)]
    sums = [sum(WEIGHTS[k] * one[k] for k in DIMENSIONS) for one in qualities(clips, prompt)]
    assert sums == pytest.approx(scores, abs=1e-6)


def test_a_crowd_is_of_many_minds_and_the_same_again() -> None:
    people = crowd(3)
    assert people == crowd(3) != crowd(4)
    assert len({person.name for person in people}) == 8
    assert all(sum(person.weights.values()) == pytest.approx(1) for person in people)
    assert sum(person.careless > 0.1 for person in people) == 2


@pytest.mark.parametrize("candidates", [2, 3, 5, 8])
def test_a_ring_has_every_pair_once_and_no_favourite(candidates: int) -> None:
    pairs = ring(candidates)
    every = candidates * (candidates - 1) // 2
    assert len(pairs) == every == len({frozenset(pair) for pair in pairs})
    seen = Counter(one for pair in pairs[:candidates] for one in pair)
    assert max(seen.values()) - min(seen.values()) <= 1


def test_more_pairs_than_there_are_are_refused() -> None:
    with pytest.raises(InputError, match="--pairs 7: 2 prompts with 3 candidates make 1 to 6"):
        plan(["a", "b"], 7, 3)


def test_files_are_canonical_and_the_same_again(tmp_path: Path) -> None:
    settings = {"pairs": 8, "source": "renderer", "candidates": 2, "labels": 2, "seed": 5}
    rows = annotate(tmp_path / "one", **settings)
    annotate(tmp_path / "two", **settings)
    files = [(tmp_path / name / PAIRS_FILE).read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
    assert read_annotations(tmp_path / "one" / PAIRS_FILE) == rows and len(rows) == 16
    for row in rows:
        assert row.source == "simulated" and row.annotator.startswith("simulated-")
        assert row.labels.keys() == {*DIMENSIONS, OVERALL}
        video = tmp_path / "one" / row.path_A
        assert hashlib.sha256(video.read_bytes()).hexdigest() == row.video_A
    assert len({(row.pair_id, row.annotator) for row in rows}) == 16
    sides = Counter(row.video_A < row.video_B for row in rows)
    assert min(sides.values()) > 0, "A is no better a place than B"


def test_files_hold_the_pixels_that_were_judged(tmp_path: Path) -> None:
    (row,) = annotate(tmp_path, pairs=1, source="renderer", candidates=2, seed=1)
    seeds = [derive_seed(1, "annotators", row.prompt, number) for number in range(2)]
    made = [clip.frames.tolist() for clip in rendered_clips(row.prompt, seeds)]
    kept = [read_video(tmp_path / path).frames.tolist() for path in (row.path_A, row.path_B)]
    assert kept in (made, made[::-1])


def test_the_base_models_videos_do_not_depend_on_their_company() -> None:
    make, prompt = base_model(), prompts("train")[0]
    alone, both = make(prompt, [11]), make(prompt, [11, 12])
    difference = alone[0].frames.float() - both[0].frames.float()
    assert difference.abs().max() <= 1, "rounding of another batch"
    assert (both[0].frames != both[1].frames).any()
