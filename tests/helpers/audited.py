"""Critics of the world of shapes with known habits, for audits to find."""

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import ClassVar, NoReturn

from ipo_lightning.critics.people.annotations import read_annotations
from ipo_lightning.critics.protocols import AnswersPending, Comparison, CriticGone, Question, Rating
from ipo_lightning.metrics.preferences import Preference
from ipo_lightning.shapes.critic import ShapesCritic
from ipo_lightning.video import Clip

FIRST, SECOND = Preference(0.9, 0.0, 0.1), Preference(0.1, 0.0, 0.9)


def dice(*clips: Clip) -> float:
    """A number in [0, 1) that the pixels and their order determine."""
    digest = sha256(b"".join(clip.frames.numpy().tobytes() for clip in clips)).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


class Comparer:
    """Compares by the rules that the embedded world's labels are made of."""

    asked: ClassVar[int] = 0
    """Comparisons that any of these has made."""

    @property
    def identity(self) -> str:
        return f"{type(self).__name__}@1"

    def load(self, device: str) -> None:
        pass

    def release(self) -> None:
        pass

    def compare(
        self, first: Sequence[Clip], second: Sequence[Clip], prompts: Sequence[str]
    ) -> list[Comparison]:
        Comparer.asked += len(prompts)
        return [self.one(*question) for question in zip(first, second, prompts, strict=True)]

    def one(self, first: Clip, second: Clip, prompt: str) -> Comparison:
        a, b = (one.score for one in ShapesCritic().rate([first, second], [prompt] * 2))
        assert a is not None and b is not None
        raw = f"the first has {a:.3f}, the second {b:.3f} <b>of</b> 1"
        return Comparison(FIRST if a > b else SECOND, {"looks": 0.9 if a > b else 0.1}, 0.8, raw)


class Guessing(Comparer):
    """Throws a coin, another one for each order."""

    def one(self, first: Clip, second: Clip, prompt: str) -> Comparison:
        return Comparison(FIRST if 8 * dice(first, second) % 1 < 0.5 else SECOND)


class Biased(Comparer):
    """Takes the first without looking on half of the questions."""

    def one(self, first: Clip, second: Clip, prompt: str) -> Comparison:
        return (
            Comparison(FIRST) if dice(first, second) < 0.5 else super().one(first, second, prompt)
        )


class Faulty(Comparer):
    """Gives no answer to a fifth of the questions, for two reasons."""

    def one(self, first: Clip, second: Clip, prompt: str) -> Comparison:
        draw = dice(first, second)
        if draw < 0.2:
            return Comparison(None, fault="timeout" if draw < 0.1 else "")
        return super().one(first, second, prompt)


class Moody(Comparer):
    """Says something else whenever it is asked."""

    def one(self, first: Clip, second: Clip, prompt: str) -> Comparison:
        return Comparison(
            FIRST if (dice(first, second) + Comparer.asked * 0.618) % 1 < 0.5 else SECOND
        )


class Blind(ShapesCritic):
    """Rates, but has no score for a video in three."""

    identity = "blind@1"

    def rate(self, clips: Sequence[Clip], prompts: Sequence[str]) -> list[Rating]:
        return [
            Rating(None, fault="no score") if dice(clip) < 1 / 3 else rating
            for clip, rating in zip(clips, super().rate(clips, prompts), strict=True)
        ]


class Gone(Comparer):
    """Cannot be reached."""

    def one(self, first: Clip, second: Clip, prompt: str) -> Comparison:
        raise CriticGone("the line is dead")


class Remembered:
    """Knows every second row of a file of annotations, by the hashes of the videos."""

    identity = "remembered@1"

    def __init__(self, file: str) -> None:
        self.rows = read_annotations(Path(file))[::2]

    def recall(self, question: Question) -> Comparison | None:
        for row in self.rows:
            for videos, won in (
                ((row.video_A, row.video_B), "A"),
                ((row.video_B, row.video_A), "B"),
            ):
                if (question.first, question.second, question.prompt) == (*videos, row.prompt):
                    return Comparison(FIRST if row.labels["Overall"] == won else SECOND)
        return None

    def request(self, unanswered: Sequence[Question], find: Callable[[str], Path]) -> NoReturn:
        raise AnswersPending("an audit asks nobody")


class Mute:
    """No critic."""

    identity = "mute@1"
