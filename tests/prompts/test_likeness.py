"""Near-duplicates: by hand, and none that comparing all with all finds is missed."""

import pytest

from ipo_lightning.prompts.composing import CATEGORIES, Draws
from ipo_lightning.prompts.likeness import THRESHOLD, Known, alike, content_words


def test_words_that_say_something() -> None:
    assert content_words("A dog's ball, in the RAIN") == {"dog", "ball", "rain"}
    assert content_words("to be") == {"to", "be"}  # better than nothing


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a red fox runs through snow", "through snow, a red fox runs", True),
        ("a red fox runs through snow", "a grey fox runs through snow", True),  # 3 of 5
        ("a red fox runs", "a grey fox sleeps", False),  # 1 of 5
        ("a red fox runs", "a red fox runs past ten old oaks in autumn", True),  # holds it
        ("a fox", "a fox and seven hens cross the wide road", False),  # too short to say much
        ("a fox", "the fox", True),
        ("one", "another", False),
    ],
)
def test_near_duplicates_by_hand(one: str, other: str, same: bool) -> None:
    assert alike(content_words(one), content_words(other)) == same
    assert alike(content_words(other), content_words(one)) == same
    assert bool(Known([one]).like(other)) == same


@pytest.mark.parametrize("threshold", [0.3, THRESHOLD, 0.8, 1.0])
def test_none_is_missed(threshold: float) -> None:
    texts = [
        text
        for category, compose in CATEGORIES.items()
        for number in range(12)
        for text in compose(Draws(3, category, number))
    ]
    known = Known(texts, threshold)
    for text in texts:
        words = content_words(text)
        near = {other for other in texts if alike(words, content_words(other), threshold)}
        assert set(known.like(text)) == near
