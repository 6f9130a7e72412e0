"""Composed prompts made long by a language model, as in the paper: one dense caption of each."""

from collections import Counter
from collections.abc import Sequence

from ipo_lightning.critics.protocols import CriticGone
from ipo_lightning.critics.vlm.client import Fault, Reply, Turn, VLMClient, quoted
from ipo_lightning.errors import InputError
from ipo_lightning.prompts.likeness import content_words
from ipo_lightning.storage.texts import one_line

TURN = """Write the caption of a video of a few seconds that a film crew could shoot.
It shows this: {outline}
Keep who does what, where, and in which style. Add what can be seen: looks, clothes, light,
background, how things move, how the camera moves. Use one to three sentences in the present tense,
30 to 60 words. Name no real person or brand, no sound and no text on screen.
Answer with the caption alone."""
SHORTEST, LONGEST = 12, 120
"""Words of a caption that is taken."""
KEPT = 0.5
"""Share of the outline's content words that a caption must have: less is about something else."""


class Expander:
    """Asks a model for captions; an answer that is none is left out and counted.

    Args:
        model: it is shown no videos.
    """

    def __init__(self, model: VLMClient) -> None:
        self.model = model
        self.faults: Counter[str] = Counter()
        """Why there is no caption -> how often."""

    def __call__(self, outlines: Sequence[str]) -> list[str | None]:
        """A caption of each outline, or None.

        Raises:
            InputError: the model cannot be asked.
        """
        turns = [Turn((), TURN.format(outline=quoted(outline))) for outline in outlines]
        try:
            answers = [replies[0] for replies in self.model.reply(turns)]
        except CriticGone as gone:
            raise InputError(
                f"{gone}; the prompts so far are kept, the same command goes on"
            ) from (gone)
        return [self._caption(*both) for both in zip(answers, outlines, strict=True)]

    def _caption(self, answer: Reply | Fault, outline: str) -> str | None:
        found = answer if isinstance(answer, Fault) else caption_of(answer.text, outline)
        if isinstance(found, Fault):
            self.faults[found.reason] += 1
            return None
        return found


def caption_of(answer: str, outline: str) -> str | Fault:
    """The caption that a model answered with, on one line and without quotes around it."""
    caption = one_line(answer).strip("\"'*` ")
    if not SHORTEST <= len(caption.split()) <= LONGEST:
        return Fault(f"not {SHORTEST} to {LONGEST} words")
    wanted = content_words(outline)
    if len(wanted & content_words(caption)) < KEPT * len(wanted):
        return Fault("about something else")
    return caption
