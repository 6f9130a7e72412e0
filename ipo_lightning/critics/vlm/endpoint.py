"""A chat model behind an OpenAI-compatible address: vLLM, SGLang, a hosted one."""

import base64
import io
import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from PIL import Image
from torch import Tensor

from ipo_lightning.critics.pretrained.viewing import Grid, Shown, Viewing
from ipo_lightning.critics.vlm.client import SEVERAL, Fault, Reply, Token, Turn, parts
from ipo_lightning.critics.vlm.server import Read, Server, Spent
from ipo_lightning.errors import InputError
from ipo_lightning.seeds import derive_seed
from ipo_lightning.settings import Count, NotNegative, Null, Text, checked
from ipo_lightning.storage.store import fingerprint
from ipo_lightning.video import Clip, encode_video

_log = logging.getLogger(__name__)

T = TypeVar("T")
Json = dict[str, Any]

PATH = "/chat/completions"
LEAST_MASS = 0.5
"""Share of the probability that the options of a choice must have together: where a model would
rather say something else, what is left tells little."""
ROUNDING = 1e-3  # by which a logarithm of a probability may be above 0
OWN_FIELDS = {"messages", "model", "n", "stream", "logprobs", "top_logprobs", "seed", "temperature"}


@checked
class EndpointVLM:
    """A `VLMClient` over HTTP.

    The address is no part of ``identity``: the same model answers the same wherever it runs, and a
    server that moves to another port must not cost all verdicts again. A name such as ``gpt-5`` or
    ``UnifiedReward`` says little of the weights behind it, though: ``revision`` is for what tells
    them apart (a dated name, a commit, "fp8"), and to be changed when they do.

    Args:
        server: how it is reached.
        model: its name there.
        revision: see above; part of the identity and nothing else.
        viewing: which frames are shown, and how large.
        video: ``frames`` sends a picture a frame, which every server with vision takes; ``mp4``
            sends a file (``video_url``), from which the server takes frames as *it* is set to.
        picture: ``jpeg`` (quality 95, full colour) or ``png`` (exact, about four times as large).
        samples: replies to a turn, each in a request of its own: one that fails costs no other.
        temperature: of replies; 0 takes the likeliest token each time.
        max_tokens: a reply is cut off after so many, and a fault.
        seed: replies differ with it, with the turn and with their place among the samples; None:
            none is sent, for hosts that take none.
        top_logprobs: likeliest tokens that are told of each token; None: not asked for, where a
            host refuses. Hosts have their own limits, often 20.
        limit_field: the host's own name of ``max_tokens``; newer models of OpenAI's want
            ``max_completion_tokens``.
        extra: further fields of a request, such as ``{"chat_template_kwargs": {"enable_thinking":
            false}}``. Part of the identity.
    """

    beside = True
    """It leaves the device alone: critics over it may be asked while videos are made."""

    def __init__(
        self,
        server: Server,
        model: Text,
        *,
        revision: Text | None = None,
        viewing: Viewing = Viewing(),  # noqa: B008 - frozen
        video: Literal["frames", "mp4"] = "frames",
        picture: Literal["jpeg", "png"] = "jpeg",
        samples: Count = 1,
        temperature: NotNegative = 0.0,
        max_tokens: Count = 1024,
        seed: Annotated[int | None, Null("none is sent")] = 0,
        top_logprobs: Annotated[Count | None, Null("not asked for")] = 20,
        limit_field: Text = "max_tokens",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.server, self.model, self.revision = server, model, revision
        self.viewing, self.video, self.picture = viewing, video, picture
        self.samples, self.temperature = samples, temperature
        self.max_tokens, self.seed = max_tokens, seed
        self.top_logprobs, self.limit_field = top_logprobs, limit_field
        self.extra = dict(extra or {})
        self._check()
        self._logged = ""

    def _check(self) -> None:
        if self.samples > 1 and self.temperature == 0:
            raise InputError(setting="samples", value=self.samples, expected=SEVERAL)
        if taken := sorted(self.extra.keys() & (OWN_FIELDS | {self.limit_field})):
            own = f"{', '.join(taken)} has a setting of its own"
            raise InputError(setting="extra", expected=own)

    @property
    def identity(self) -> str:
        """Model, revision, how videos are shown, sampling; see the class."""
        shown = f"{self.viewing.identity}-{'mp4' if self.video == 'mp4' else self.picture}"
        sampling: Json = {"tokens": self.max_tokens, "top": self.top_logprobs}
        if self.temperature:
            sampling |= {"n": self.samples, "t": self.temperature, "seed": self.seed}
        if self.extra:
            sampling["extra"] = self.extra
        name = f"{self.model}@{self.revision or 'served'}"
        return f"{name}#{shown}#{fingerprint(sampling)[:8]}"

    @property
    def spent(self) -> Spent:
        """What this process has asked so far: requests, tokens, seconds, retries, faults."""
        return self.server.spent

    @property
    def prompts_per_call(self) -> int:
        """Prompts a call, see `Critic`: each has some four questions or more, and so all of the
        server's places are taken."""
        return max(1, self.server.concurrency // 4)

    def ready(self) -> None:
        """The key may be missing."""
        self.server.check_key()

    def load(self, device: str) -> None:
        """Nothing is loaded here; a missing key is refused before the first video is read."""
        self.server.check_key()

    def release(self) -> None:
        """Say what was spent, where that is news."""
        if self.spent.requests and str(self.spent) != self._logged:
            self._logged = str(self.spent)
            _log.info("%s: %s", self.model, self._logged)

    def choose(
        self, turns: Sequence[Turn], options: Mapping[str, Sequence[str]]
    ) -> list[dict[str, float] | Fault]:
        """See `VLMClient.choose`; read off the likeliest tokens at the answer's first place.

        A spelling that is not among them counts as 0, which it nearly is. Options that have less
        than half of the probability together are a fault, "no such token". Asked at temperature 1,
        where all servers mean the same by a probability.

        Raises:
            InputError: the server does not tell probabilities; also as `Server.ask`.
            CriticGone: as `Server.ask`.
        """
        if self.top_logprobs is None:
            raise InputError(f"{self.model}: a choice by probabilities needs vlm.top_logprobs")
        fields = {self.limit_field: 1, "temperature": 1.0} | self._told()

        def read(answer: Mapping[str, Any]) -> dict[str, float] | Fault:
            choice = answer["choices"][0]
            if fault := withheld(choice):
                return fault
            told = choice.get("logprobs")
            if not told or not told["content"][0]["top_logprobs"]:
                raise InputError(
                    f"{self.model} at {self.server.base_url} tells no probabilities of tokens "
                    "(logprobs): choose a form that is answered in words"
                )
            return shares(likeliest(told["content"][0]), options)

        return self._ask(self._questions(turns, fields), read)

    def reply(self, turns: Sequence[Turn]) -> list[list[Reply | Fault]]:
        """See `VLMClient.reply`.

        A temperature other than 0 or 1 changes the probabilities in ``tokens`` at some servers.

        Raises:
            InputError, CriticGone: as `Server.ask`.
        """
        fields = {self.limit_field: self.max_tokens, "temperature": self.temperature}
        if self.top_logprobs is not None:
            fields |= self._told()
        questions = self._questions(turns, fields)
        numbers = range(self.samples)
        replies = self._ask([self._seeded(q, k) for q in questions for k in numbers], read_reply)
        return [replies[at : at + self.samples] for at in range(0, len(replies), self.samples)]

    # ---------------------------------------------------------------- requests

    def _ask(self, questions: Sequence[Json | Fault], read: Read[T]) -> list[T | Fault]:
        """Answers to those that could be put into words and pictures."""
        asked = [one for one in questions if not isinstance(one, Fault)]
        answers = iter(self.server.ask(PATH, asked, read) if asked else ())
        return [one if isinstance(one, Fault) else next(answers) for one in questions]

    def _questions(self, turns: Sequence[Turn], fields: Json) -> list[Json | Fault]:
        """A request a turn, with these fields besides; a video shown often is encoded once."""
        encoded: dict[int, list[Json]] = {}
        questions: list[Json | Fault] = []
        for turn in turns:
            try:
                for video in turn.videos:
                    if id(video) not in encoded:
                        encoded[id(video)] = self._encoded(video)
            except InputError as error:  # of this video alone: it cannot be shown
                questions.append(Fault(str(error)))
                continue
            questions.append(self._question(turn, encoded) | fields)
        return questions

    def _question(self, turn: Turn, encoded: Mapping[int, list[Json]]) -> Json:
        content: list[Json] = []
        for part in parts(turn):
            words = isinstance(part, str)
            content += [{"type": "text", "text": part}] if words else encoded[id(part)]
        messages: list[Json] = [{"role": "user", "content": content}]
        question = self.extra | {"model": self.model, "messages": messages}
        if turn.opening:  # as vLLM and SGLang take it; others refuse the fields
            messages.append({"role": "assistant", "content": turn.opening})
            question |= {"add_generation_prompt": False, "continue_final_message": True}
        return question

    def _encoded(self, video: Clip) -> list[Json]:
        """A video as parts of a message."""
        if self.video == "mp4":  # H.264 for all players has even sides
            shown = self.viewing.show(video, Grid(side=2))
            data = encode_video(Clip(shown.frames.permute(0, 2, 3, 1), shown_rate(shown)))
            return [{"type": "video_url", "video_url": {"url": data_url("video/mp4", data)}}]
        shown = self.viewing.show(video, Grid())
        kind = f"image/{self.picture}"
        pictures = [encode_picture(frame, self.picture) for frame in shown.frames]
        return [
            {"type": "image_url", "image_url": {"url": data_url(kind, one)}} for one in pictures
        ]

    def _told(self) -> Json:
        return {"logprobs": True, "top_logprobs": self.top_logprobs}

    def _seeded(self, question: Json | Fault, sample: int) -> Json | Fault:
        """With a seed made of the question: the company in which it is asked does not count."""
        if isinstance(question, Fault) or self.temperature == 0 or self.seed is None:
            return question
        return question | {"seed": derive_seed(self.seed, fingerprint(question), sample) % 2**31}


def shown_rate(shown: Shown) -> float:
    """Frames a second of what is shown, so that it lasts as long as the whole video."""
    return shown.fps * max(len(shown.indices) - 1, 1) / max(shown.total - 1, 1)


def encode_picture(frame: Tensor, kind: str) -> bytes:
    """A frame, uint8 (3, H, W), as the bytes of a JPEG or PNG file."""
    buffer = io.BytesIO()
    # Quality and subsampling are JPEG's: no colour is shared between neighbouring pixels.
    options = {"quality": 95, "subsampling": 0} if kind == "jpeg" else {}
    Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()).save(buffer, kind, **options)
    return buffer.getvalue()


def data_url(kind: str, content: bytes) -> str:
    """Bytes within an address (RFC 2397)."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


# -------------------------------------------------------------------- responses


def likeliest(place: Mapping[str, Any]) -> dict[str, float]:
    """Text -> natural logarithm of its probability, of the tokens told at a place of the answer.

    Tokens of the same text, such as two halves of a character, count together.

    Raises:
        ValueError: a number is no logarithm of a probability.
    """
    found: dict[str, float] = defaultdict(float)
    for token in place["top_logprobs"]:
        if not token["logprob"] <= ROUNDING:
            raise ValueError(f"{token['logprob']} is no logarithm of a probability")
        found[token["token"]] += math.exp(token["logprob"])
    return {text: math.log(p) if p > 0 else -math.inf for text, p in found.items()}


def shares(
    top: Mapping[str, float], options: Mapping[str, Sequence[str]]
) -> dict[str, float] | Fault:
    """The probabilities of options among themselves, see `EndpointVLM.choose`.

    Args:
        top: text -> log probability. options: name -> spellings.
    """
    masses = {
        name: math.fsum(math.exp(top.get(spelling, -math.inf)) for spelling in set(spellings))
        for name, spellings in options.items()
    }
    total = math.fsum(masses.values())
    if total < LEAST_MASS:
        return Fault("no such token")
    return {name: mass / total for name, mass in masses.items()}


def withheld(choice: Mapping[str, Any]) -> Fault | None:
    """Why the server or the model would not answer, where it says so."""
    if choice.get("finish_reason") == "content_filter":
        return Fault("filtered")
    return Fault("refused") if choice["message"].get("refusal") else None


def read_reply(answer: Mapping[str, Any]) -> Reply | Fault:
    """The first choice of a chat completion, or why it is no answer."""
    choice = answer["choices"][0]
    if choice.get("finish_reason") == "length":
        return Fault("cut short")
    if fault := withheld(choice):
        return fault
    text = choice["message"]["content"]
    if text is None:  # all its words were thoughts
        return Fault("empty answer")
    if not isinstance(text, str):
        raise TypeError("an answer's content is text")
    return Reply(text, tokens_of(text, choice.get("logprobs")))


def tokens_of(text: str, told: Mapping[str, Any] | None) -> tuple[Token, ...]:
    """The tokens that ``text`` consists of; none where they are not told, or are of another text.

    More may be told: thoughts that the server has cut out, a mark of the end. They are left out.
    """
    places = (told or {}).get("content") or []
    pieces = [bytes(p.get("bytes") or p["token"].encode()) for p in places]  # halves of characters
    first = b"".join(pieces).rfind(text.encode())
    if first < 0:
        return ()
    tokens, last, start = [], first + len(text.encode()), 0
    for place, piece in zip(places, pieces, strict=True):
        if start < last and start + len(piece) > first:
            tokens.append(Token(place["token"], likeliest(place)))
        start += len(piece)
    return tuple(tokens)
