"""The rule critic and the trained judge, both on renders whose truth is known."""

from collections.abc import Iterator
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from ipo_lightning.critics.protocols import PointCritic, Rating
from ipo_lightning.errors import InputError
from ipo_lightning.shapes import world
from ipo_lightning.shapes.critic import ALIGNMENT, QUALITY, ShapesCritic, travel
from ipo_lightning.shapes.judge import FAULTS, ShapesClassifier, ShapesJudge
from ipo_lightning.shapes.prompts import COLOURS, MOTIONS, SHAPES, parse, prompts
from ipo_lightning.video import Clip

ASKED = prompts("select") + prompts("final")
SEED = 4321


@pytest.fixture(params=[ShapesCritic, ShapesJudge])
def critic(request: pytest.FixtureRequest) -> Iterator[PointCritic]:
    made = request.param()
    made.load("cpu")
    yield made
    made.release()


@lru_cache
def clean() -> Tensor:
    return world.clean_clips(ASKED, SEED)


def rate(critic: PointCritic, frames: Tensor, asked: list[str] = ASKED) -> list[Rating]:
    return critic.rate([Clip(clip, world.FPS) for clip in frames], asked)


def scores(critic: PointCritic, frames: Tensor) -> Tensor:
    return torch.tensor([rating.score for rating in rate(critic, frames)])


def mean(critic: PointCritic, frames: Tensor, dim: str) -> float:
    ratings = rate(critic, frames)
    return sum(rating.dims[dim] for rating in ratings) / len(ratings)


def share_better(critic: PointCritic, worse: Tensor) -> float:
    return (scores(critic, clean()) > scores(critic, worse)).float().mean().item()


def test_it_is_a_point_critic_with_a_pinned_identity(critic: PointCritic) -> None:
    assert isinstance(critic, PointCritic)
    assert critic.identity in {"shapes-rules@1", "shapes-judge@1"}


def test_clean_clips_score_near_one_and_follow(critic: PointCritic) -> None:
    assert scores(critic, clean()).min() > 0.85
    assert scores(critic, clean()).mean() > 0.93
    assert mean(critic, clean(), "follow") > 0.98


def test_dims_are_named_and_within_bounds(critic: PointCritic) -> None:
    common = {"colour", "shape", "motion", "follow"}
    for rating in rate(critic, world.defective_clips(ASKED, "recolour", SEED)):
        assert rating.dims.keys() in (common | set(QUALITY), common | {"quality"})
        assert all(0 <= value <= 1 for value in rating.dims.values())
        assert rating.score is not None
        assert 0 <= rating.score <= 1


@pytest.mark.slow
@pytest.mark.parametrize("attribute", range(3))
def test_a_wrong_attribute_always_loses(critic: PointCritic, attribute: int) -> None:
    wrong = world.wrong_clips(ASKED, attribute, SEED)
    assert share_better(critic, wrong) > 0.98
    assert mean(critic, wrong, "follow") < 0.02
    assert mean(critic, wrong, ALIGNMENT[attribute]) < 0.1


@pytest.mark.parametrize(
    ("defect", "least"), [("jitter", 0.95), ("flicker", 0.98), ("recolour", 0.95)]
)
def test_a_defect_loses(critic: PointCritic, defect: str, least: float) -> None:
    assert share_better(critic, world.defective_clips(ASKED, defect, SEED)) >= least


def test_black_and_noise_score_low_and_follow_nothing(critic: PointCritic) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, clean().shape, generator=generator, dtype=torch.uint8)
    for frames in (torch.zeros_like(clean()), noise):
        assert scores(critic, frames).mean() < 0.3
        assert mean(critic, frames, "follow") < 0.2


def test_a_still_clip_shows_no_motion(critic: PointCritic) -> None:
    still = clean()[:, 4:5].expand_as(clean())
    assert mean(critic, still, "motion") < 0.1
    assert mean(critic, still, "follow") == 0
    assert share_better(critic, still) == 1


def test_a_score_does_not_depend_on_the_batch(critic: PointCritic) -> None:
    frames = world.defective_clips(ASKED, "jitter", SEED)
    together = scores(critic, frames)
    alone = [rate(critic, frames[i : i + 1], ASKED[i : i + 1])[0].score for i in range(12)]
    assert torch.allclose(together[:12], torch.tensor(alone), atol=1e-5)
    backwards = rate(critic, frames.flip(0), ASKED[::-1])
    assert torch.allclose(together, torch.tensor([r.score for r in backwards]).flip(0), atol=1e-5)


def test_more_clips_than_a_chunk(critic: PointCritic) -> None:
    assert len(rate(critic, clean().repeat(2, 1, 1, 1, 1), ASKED * 2)) == 2 * len(ASKED)


def test_no_clips_no_ratings(critic: PointCritic) -> None:
    assert critic.rate([], []) == []


def test_wrong_inputs_are_named(critic: PointCritic) -> None:
    frames = clean()[0]
    with pytest.raises(InputError, match="1 clips .* 2 prompts"):
        critic.rate([Clip(frames, 8.0)], ASKED[:2])
    with pytest.raises(InputError, match="32, 32, 3"):
        critic.rate([Clip(frames[:, ::2], 8.0)], ASKED[:1])
    with pytest.raises(InputError, match="uint8"):
        critic.rate([Clip(frames.float(), 8.0)], ASKED[:1])
    with pytest.raises(InputError, match="one shape"):
        critic.rate([Clip(frames, 8.0), Clip(frames[:5], 8.0)], ASKED[:2])
    with pytest.raises(InputError, match="red, green"):
        critic.rate([Clip(frames, 8.0)], ["a dog"])


# --- The rules alone -----------------------------------------------------------------------------


def slowed(speed: float, strength: float) -> Tensor:
    scenes = [world.Scene(parse(prompt), "jitter", speed, strength) for prompt in ASKED]
    return world.render(scenes, SEED)


def test_the_score_is_the_stated_mix() -> None:
    for rating in rate(ShapesCritic(), world.defective_clips(ASKED, "flicker", SEED)):
        alignment = sum(rating.dims[name] for name in ALIGNMENT) / 3
        quality = sum(rating.dims[name] for name in QUALITY) / 3
        assert rating.score == pytest.approx(0.6 * alignment + 0.4 * quality, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.0, 0.2, 1.0])
def test_slowing_down_never_pays(strength: float) -> None:
    rules = ShapesCritic()
    slower = [slowed(speed, strength) for speed in (1.0, 0.5, 0.2, 0.0)]
    overall = [scores(rules, frames).mean().item() for frames in slower]
    smooth = [mean(rules, frames, "smooth") for frames in slower]
    assert overall == sorted(overall, reverse=True)
    assert smooth == sorted(smooth, reverse=True)


def test_smooth_depends_on_jitter_relative_to_travel() -> None:
    rules = ShapesCritic()
    full = mean(rules, slowed(1.0, 0.3), "smooth")
    half = mean(rules, slowed(0.5, 0.15), "smooth")
    assert half == pytest.approx(full, abs=0.08)


@pytest.mark.parametrize("speed", [0.0, 0.5, 1.0])
def test_travel_is_the_speed(speed: float) -> None:
    assert travel(slowed(speed, 0.0)).mean() == pytest.approx(speed, abs=0.03)


def test_travel_keeps_its_dtype_and_shape() -> None:
    gone = travel(clean()[:5])
    assert gone.shape == (5,)
    assert gone.dtype == torch.float32


def test_stronger_jitter_scores_less() -> None:
    means = [scores(ShapesCritic(), slowed(1.0, s)).mean().item() for s in (0.0, 0.2, 0.5, 1.0)]
    assert means == sorted(means, reverse=True)


# --- The judge alone -----------------------------------------------------------------------------


def test_the_judge_grades_by_strength() -> None:
    judge = ShapesJudge()
    for defect in world.DEFECTS:
        by_strength = []
        for strength in (0.0, 0.5, 1.0):
            scenes = [world.Scene(parse(p), defect, strength=strength) for p in ASKED]
            by_strength.append(mean(judge, world.render(scenes, SEED), "quality"))
        assert by_strength == sorted(by_strength, reverse=True)
        assert by_strength[0] - by_strength[2] > 0.3


def test_the_judge_loads_on_first_use_and_can_be_released() -> None:
    judge = ShapesJudge()
    first = rate(judge, clean()[:1], ASKED[:1])
    judge.release()
    assert judge.classifier is None
    assert rate(judge, clean()[:1], ASKED[:1]) == first


def test_missing_weights_are_named() -> None:
    with pytest.raises(InputError, match="nowhere.safetensors"):
        ShapesJudge("nowhere.safetensors").load("cpu")


def test_the_classifier_has_one_logit_an_answer() -> None:
    logits = ShapesClassifier()(torch.zeros(2, 9, 32, 32, 3))
    sizes = {name: tuple(values.shape) for name, values in logits.items()}
    assert sizes == {
        "colour": (2, len(COLOURS)),
        "shape": (2, len(SHAPES)),
        "motion": (2, len(MOTIONS) + 1),
        "faults": (2, len(FAULTS)),
    }
