"""The world of shapes: sentences, their splits, and clips that show what they say."""

import random
from collections import Counter

import pytest
import torch

from ipo_lightning.errors import InputError
from ipo_lightning.shapes import world
from ipo_lightning.shapes.critic import measure
from ipo_lightning.shapes.prompts import (
    COLOURS,
    MOTIONS,
    SHAPES,
    TEMPLATES,
    Combination,
    caption,
    combinations,
    parse,
    prompts,
    split_of,
)

SPLITS = ("train", "select", "final")
COMBINATION = Combination("green", "ring", "moving up")


def test_splits_share_no_combination_and_cover_all() -> None:
    sizes = {split: len(prompts(split)) for split in SPLITS}
    assert sizes == {"train": 60, "select": 24, "final": 24}
    asked = [parse(prompt) for split in SPLITS for prompt in prompts(split)]
    assert len(set(asked)) == len(asked) == len(COLOURS) * len(SHAPES) * len(MOTIONS)


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_is_balanced(split: str) -> None:
    for words in zip(*combinations(split), strict=True):
        assert len(set(Counter(words).values())) == 1


@pytest.mark.parametrize("split", SPLITS)
def test_prompts_are_deterministic_and_use_every_template(split: str) -> None:
    assert prompts(split) == prompts(split)
    used = Counter(
        template
        for prompt in prompts(split)
        for template in range(len(TEMPLATES))
        if caption(parse(prompt), template) == prompt
    )
    assert len(used) == len(TEMPLATES)
    assert max(used.values()) - min(used.values()) <= 1


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(InputError, match="train, select, final"):
        prompts("test")


@pytest.mark.parametrize("template", range(len(TEMPLATES)))
def test_parse_undoes_caption(template: int) -> None:
    for split in SPLITS:
        for combination in combinations(split):
            assert parse(caption(combination, template)) == combination


def test_parse_ignores_case_spaces_and_the_full_stop() -> None:
    assert parse("  A Green  ring MOVING up. ") == COMBINATION
    assert parse("please: a green, glowing ring (moving up), now!") == COMBINATION


@pytest.mark.parametrize(
    ("prompt", "known"),
    [
        ("a pink ring moving up", "red, green, blue"),
        ("a green circle moving up", "square, ring, cross"),
        ("a green ring resting", "moving left, moving right"),
        ("a green or red ring moving up", "red, green, blue"),
        ("", "red, green, blue"),
    ],
)
def test_parse_names_the_words_it_knows(prompt: str, known: str) -> None:
    with pytest.raises(InputError, match=known):
        parse(prompt)


def test_clean_clips_have_the_documented_shape_and_are_deterministic() -> None:
    clips = world.clean_clips(prompts("select"), seed=3)
    assert clips.shape == (24, world.NUM_FRAMES, world.SIZE, world.SIZE, 3)
    assert clips.dtype == torch.uint8
    assert torch.equal(clips, world.clean_clips(prompts("select"), seed=3))
    assert not torch.equal(clips, world.clean_clips(prompts("select"), seed=4))


def test_a_clip_does_not_depend_on_how_many_are_rendered() -> None:
    asked = prompts("train")
    assert torch.equal(world.clean_clips(asked, 5)[:7], world.clean_clips(asked[:7], 5))


def test_no_prompts_give_no_clips() -> None:
    assert world.clean_clips([], seed=0).shape == (0, 9, 32, 32, 3)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_one_radius_have_one_area(shape: str) -> None:
    middle, radius = torch.tensor(16.0), torch.tensor(6.0)
    area = world.coverage(shape, middle, middle, radius).sum()
    assert area == pytest.approx(torch.pi * 6.0**2, rel=0.03)


@pytest.mark.parametrize(
    ("motion", "moves"),
    [
        ("moving left", (-9, 0, 0)),
        ("moving right", (9, 0, 0)),
        ("moving up", (0, -9, 0)),
        ("moving down", (0, 9, 0)),
        ("growing", (0, 0, 0.8)),
        ("shrinking", (0, 0, -0.8)),
    ],
)
def test_motions_go_where_they_say(motion: str, moves: tuple[float, float, float]) -> None:
    scenes = [world.Scene(Combination("white", shape, motion)) for shape in SHAPES]
    seen = measure(world.render(scenes, seed=1))
    for track, expected, tolerance in zip(
        (seen.x, seen.y, seen.radius.log()), moves, (1.2, 1.2, 0.15), strict=True
    ):
        assert (track[:, -1] - track[:, 0] - expected).abs().max() < tolerance


def test_shapes_stay_on_the_canvas() -> None:
    clips = world.clean_clips(prompts("train") * 4, seed=0).float()
    edges = torch.cat([clips[:, :, 0], clips[:, :, -1], clips[:, :, :, 0], clips[:, :, :, -1]], 2)
    assert edges.max() < 0.35 * 255


def test_a_still_scene_does_not_move() -> None:
    frames = world.render([world.Scene(COMBINATION, speed=0.0)], seed=0)
    assert torch.equal(frames[:, :1].expand_as(frames), frames)


def test_defects_change_what_they_name_and_share_the_rest() -> None:
    asked = prompts("final")
    clean = measure(world.clean_clips(asked, 2))
    jitter = measure(world.defective_clips(asked, "jitter", 2))
    flicker = measure(world.defective_clips(asked, "flicker", 2))
    recolour = measure(world.defective_clips(asked, "recolour", 2))
    assert torch.allclose(clean.x, flicker.x, atol=0.2)
    assert (clean.x - jitter.x).abs().mean() > 0.5
    assert (clean.colour - flicker.colour).abs().mean() > 0.1
    assert (clean.colour[:, -1] - recolour.colour[:, -1]).abs().amax(-1).min() > 0.2
    assert torch.allclose(clean.colour[:, 0], recolour.colour[:, 0], atol=0.02)


def test_zero_strength_is_no_defect() -> None:
    for defect in world.DEFECTS:
        weak = world.render([world.Scene(COMBINATION, defect, strength=0.0)], seed=0)
        assert torch.equal(weak, world.render([world.Scene(COMBINATION)], seed=0))


def test_an_unknown_defect_is_refused() -> None:
    with pytest.raises(InputError, match="jitter, flicker, recolour"):
        world.render([world.Scene(COMBINATION, "smear")], seed=0)


@pytest.mark.parametrize("attribute", range(3))
def test_a_wrong_attribute_is_the_only_difference(attribute: int) -> None:
    wrong = world.with_wrong(COMBINATION, attribute, random.Random(0))
    differs = [one != other for one, other in zip(COMBINATION, wrong, strict=True)]
    assert differs == [index == attribute for index in range(3)]


def test_noisy_scenes_stay_within_the_split_at_the_stated_rates() -> None:
    scenes, captions = world.noisy_scenes(combinations("train"), 2000, 0, 0.2, 0.5)
    assert {split_of(scene.combination) for scene in scenes} == {"train"}
    assert {split_of(parse(text)) for text in captions} == {"train"}
    pairs = zip(scenes, captions, strict=True)
    wrong = sum(scene.combination != parse(text) for scene, text in pairs)
    assert wrong / 2000 == pytest.approx(0.2, abs=0.03)
    assert sum(scene.defect is not None for scene in scenes) / 2000 == pytest.approx(0.5, abs=0.04)
