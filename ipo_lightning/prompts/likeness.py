"""Prompts that say nearly the same: told by the words that they share.

Two prompts are near-duplicates where the Jaccard index of their sets of content words, the number
of words in both over the number in either, reaches a threshold, or where one of at least
`ENOUGH` words has no word that the other lacks. A set of words, because paraphrases of a caption
move its parts about, which shingles of several words would count as differences; all words of the
one in the other, because an expanded prompt holds what it was expanded from.
"""

import re
from collections.abc import Iterable

THRESHOLD = 0.5
"""Of the Jaccard index: the same subject doing the same thing elsewhere reaches it."""
ENOUGH = 3
"""Content words of a prompt that says something of its own."""
EMPTY = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be being by for from has have her his in into is it its of on one onto "
        "or out over s some that the their them then there they this through to toward towards up "
        "video was while who with",
    )
)
"""Words that say little."""

Words = frozenset[str]


def content_words(prompt: str) -> Words:
    """The words of a prompt that say something, in small letters; all, where none does."""
    words = re.findall(r"[^\W_]+", prompt.casefold())
    return frozenset(words) - EMPTY or frozenset(words)


def alike(one: Words, other: Words, threshold: float = THRESHOLD) -> bool:
    """Whether two prompts with these content words are near-duplicates."""
    shared = len(one & other)
    if min(len(one), len(other)) == shared >= ENOUGH:
        return True
    return shared > 0 and shared >= threshold * len(one | other)


class Known:
    """Prompts, to be asked for near-duplicates of others.

    Each is filed under its words. A prompt is compared with those that it shares one of its own
    rarer words with, or that have their rarest word in it: no near-duplicate is missed.

    Args:
        prompts: to begin with.
        threshold: of the Jaccard index, in (0, 1].
    """

    def __init__(self, prompts: Iterable[str] = (), threshold: float = THRESHOLD) -> None:
        self.threshold = threshold
        self._words: dict[str, Words] = {}
        self._under: dict[str, list[str]] = {}
        self._under_first: dict[str, list[str]] = {}
        for prompt in prompts:
            self.add(prompt)

    def add(self, prompt: str) -> None:
        """Know one more."""
        words = content_words(prompt)
        self._words[prompt] = words
        for word in words:
            self._under.setdefault(word, []).append(prompt)
        for word in _by_rarity(words)[:1]:
            self._under_first.setdefault(word, []).append(prompt)

    def like(self, prompt: str) -> list[str]:
        """The known prompts that are near-duplicates of this one, itself included."""
        words = content_words(prompt)
        ordered = _by_rarity(words)
        rare = ordered[: len(ordered) - max(int(self.threshold * len(ordered)), 1) + 1]
        near = dict.fromkeys(one for word in rare for one in self._under.get(word, ()))
        near |= dict.fromkeys(one for word in words for one in self._under_first.get(word, ()))
        return [one for one in near if alike(words, self._words[one], self.threshold)]


def _by_rarity(words: Words) -> list[str]:
    """Words in an order that is the same for all prompts: long ones, which are rarer, first."""
    return sorted(words, key=lambda word: (-len(word), word))
