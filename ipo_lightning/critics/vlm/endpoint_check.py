"""Check whether a model on a server can be a critic.

python -m ipo_lightning.critics.vlm.endpoint_check

About twelve requests show it simple drawn videos and ask questions with known answers: whether it
sees colours, the order of frames, and the difference of two videos. The tokens are counted.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from ipo_lightning.critics.protocols import CriticGone
from ipo_lightning.critics.vlm.client import VIDEO, Fault, Turn
from ipo_lightning.critics.vlm.critics import YES_NO
from ipo_lightning.critics.vlm.endpoint import EndpointVLM
from ipo_lightning.critics.vlm.server import Server
from ipo_lightning.errors import InputError, pipe_may_close
from ipo_lightning.video import Clip

COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 220)}
SIZE, NUM_FRAMES, SQUARE = 224, 8, 56  # pixels, frames, pixels
ONE_WORD = "Answer with one word."


class Check(NamedTuple):
    """A question whose answer is known."""

    what: str
    turn: Turn
    answer: str


def drawn(colour: str, step: int = 0) -> Clip:
    """A square on grey that moves ``step`` pixels to the right each frame, from the left edge; to
    the left, from the right edge, where ``step`` is negative."""
    frames = torch.full((NUM_FRAMES, SIZE, SIZE, 3), 200, dtype=torch.uint8)
    start = SIZE - SQUARE if step < 0 else 0 if step else (SIZE - SQUARE) // 2
    for number, frame in enumerate(frames):
        left = start + step * number
        frame[SQUARE : 2 * SQUARE, left : left + SQUARE] = torch.tensor(COLOURS[colour])
    return Clip(frames, 4.0)


def checks() -> list[Check]:
    """Questions that a critic must answer rightly."""
    red, blue, step = drawn("red"), drawn("blue"), (SIZE - SQUARE) // (NUM_FRAMES - 1)
    colour = f"{VIDEO}\nWhich colour has the square, red or blue? {ONE_WORD}"
    motion = f"{VIDEO}\nDoes the square move left or right? {ONE_WORD}"
    which = f"Video A:\n{VIDEO}\nVideo B:\n{VIDEO}\nIn which video is the square red, A or B? "
    return [
        Check("a red square", Turn((red,), colour), "red"),
        Check("a blue square", Turn((blue,), colour), "blue"),
        Check("motion to the right", Turn((drawn("red", step),), motion), "right"),
        Check("motion to the left", Turn((drawn("red", -step),), motion), "left"),
        Check("the first of two", Turn((red, blue), which + "Answer with one letter."), "A"),
        Check("the second of two", Turn((blue, red), which + "Answer with one letter."), "B"),
    ]


def in_words(vlm: EndpointVLM) -> Iterator[tuple[bool, str]]:
    """(passed, line) of each check that is answered in words."""
    asked = checks()
    for check, (reply, *_) in zip(asked, vlm.reply([one.turn for one in asked]), strict=True):
        if isinstance(reply, Fault):
            yield False, f"{check.what}: no answer ({reply.reason})"
            continue
        said = reply.text.strip()
        passed = said.rstrip(".").lower() == check.answer.lower()
        yield passed, f"{check.what}: {said[:60]!r}" + ("" if passed else f", not {check.answer!r}")


def by_probability(vlm: EndpointVLM) -> Iterator[tuple[bool, str]]:
    """(passed, line) of two choices by probabilities, one with yes and one with no."""
    for colour, right in (("red", "yes"), ("blue", "no")):
        text = f"{VIDEO}\nIs the square {colour}? Answer with yes or no."
        (chances,) = vlm.choose([Turn((drawn("red"),), text)], YES_NO)
        name = f"probability that a red square is {colour}"
        if isinstance(chances, Fault):
            yield False, f"{name}: none ({chances.reason}); does the model reason first?"
        else:
            yield chances[right] > 0.5, f"{name}: {chances['yes']:.3f}"


def settings(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="endpoint_check", description=__doc__)
    parser.add_argument("base_url", help="http://localhost:8000/v1")
    parser.add_argument("model", help="its name on the server")
    parser.add_argument("--key-variable", default="OPENAI_API_KEY", help="NAME of the variable")
    parser.add_argument("--video", choices=("frames", "mp4"), default="frames")
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--limit-field", default="max_tokens")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Print the results; 0 where critics that answer in words can work."""
    given = settings(arguments)
    try:
        vlm = EndpointVLM(
            Server(given.base_url, given.key_variable, patience=5),
            given.model,
            video=given.video,
            max_tokens=given.max_tokens,
            limit_field=given.limit_field,
            top_logprobs=None,
        )
        vlm.load("cpu")
        words = list(in_words(vlm))
        show("in words (any template)", words)
        vlm.top_logprobs = 20
        show("by probabilities (vlm_pairwise, vlm_pointwise, videoscore2)", chances(vlm))
    except (InputError, CriticGone) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - what a person asked for
        return 1
    print(f"spent: {vlm.spent}")  # noqa: T201
    return 0 if all(passed for passed, _ in words) else 1


def chances(vlm: EndpointVLM) -> list[tuple[bool, str]]:
    """As `by_probability`; a refusal of the server is a failed check."""
    try:
        return list(by_probability(vlm))
    except InputError as error:
        return [(False, str(error))]


def show(title: str, lines: Sequence[tuple[bool, str]]) -> None:
    """Print a section."""
    print(title)  # noqa: T201
    for passed, line in lines:
        print(f"  {'ok   ' if passed else 'WRONG'} {line}")  # noqa: T201


if __name__ == "__main__":
    with pipe_may_close():
        sys.exit(main(sys.argv[1:]))
