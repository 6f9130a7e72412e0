"""A VLM on an OpenAI-compatible server: vLLM, SGLang, or a hosted one."""

import base64
import io
import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from PIL import Image
from torch import Tensor

from ipo_lightning.critics.pretrained.viewing import Grid, Shown, Viewing
from ipo_lightning.critics.stage.costs import Cost, Watched
from ipo_lightning.critics.vlm.calls import Read, ask
from ipo_lightning.critics.vlm.client import SEVERAL, Fault, Reply, Turn, parts
from ipo_lightning.critics.vlm.completions import (
    first_choice,
    first_place,
    read_reply,
    shares,
    untold,
)
from ipo_lightning.critics.vlm.server import Server, Spent
from ipo_lightning.errors import InputError
from ipo_lightning.seeds import derive_seed
from ipo_lightning.settings import Count, NotNegative, Null, Text, checked
from ipo_lightning.storage.store import fingerprint
from ipo_lightning.video import Clip, encode_video

_log = logging.getLogger(__name__)

T = TypeVar("T")
Json = dict[str, Any]

PATH = "/chat/completions"
OWN_FIELDS = {"messages", "model", "n", "stream", "logprobs", "top_logprobs", "seed", "temperature"}


@checked
class EndpointVLM:
    """A `VLMClient` over HTTP.

    The address is not part of ``identity``: the same model gives the same answers at any address,
    and a server that moves to another port is not asked again. But a name such as ``gpt-5`` may
    stand for different weights over time: put what distinguishes them (a dated name, a commit,
    "fp8") into ``revision``, and change it when they change.

    Args:
        server: how it is reached.
        model: its name on the server.
        revision: see above; only a part of the identity.
        viewing: which frames are shown, and their size.
        video: ``frames`` sends one picture a frame, which every server with vision accepts; ``mp4``
            sends a file (``video_url``), from which the server samples frames by its own settings.
        picture: ``jpeg`` (quality 95, full colour) or ``png`` (exact, about four times as large).
        samples: replies to a turn, each by a request of its own, so that they fail independently.
        temperature: of replies; 0: greedy.
        max_tokens: of a reply; a longer one is cut off, and a fault.
        seed: a request's seed is made of it, the turn and the number of the sample; None: no seed
            is sent, for servers that refuse one.
        top_logprobs: how many likeliest tokens the server returns for each token; None: not
            requested, for servers that refuse it. Servers have limits, often 20.
        limit_field: the server's name of ``max_tokens``; newer models of OpenAI need
            ``max_completion_tokens``.
        extra: further fields of a request, such as ``{"chat_template_kwargs": {"enable_thinking":
            false}}``. Part of the identity.
    """

    during_rollout = True
    """It does not use the device, so its critics may be asked during the rollout."""

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
        """Model, revision, how videos are shown, and sampling."""
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
        """Requests, tokens, seconds, retries and faults of this process so far."""
        return self.server.spent

    @property
    def prompts_per_call(self) -> int:
        """Prompts in a call, see `Critic`: with about four questions each they use the server's
        whole concurrency."""
        return max(1, self.server.concurrency // 4)

    def cost(self, video: Watched, videos: int = 1, *, spoken: bool = True) -> Cost:
        """Nothing of this machine's devices, see `cost_of`."""
        return Cost(self.model, "server", address=self.server.base_url)

    def ready(self) -> None:
        """Check the key.

        Raises:
            InputError: it is missing or malformed.
        """
        self.server.check_key()

    def load(self, device: str) -> None:
        """Check the key; nothing is loaded."""
        self.server.check_key()

    def release(self) -> None:
        """Log what was spent, if it has changed."""
        if self.spent.requests and str(self.spent) != self._logged:
            self._logged = str(self.spent)
            _log.info("%s: %s", self.model, self._logged)

    def choose(
        self, turns: Sequence[Turn], options: Mapping[str, Sequence[str]]
    ) -> list[dict[str, float] | Fault]:
        """As `VLMClient.choose`, from the likeliest tokens at the first place of the answer.

        A spelling that is not among them counts as 0. Options with less than half of the
        probability together are a fault, "no such token". The temperature is 1, at which all
        servers return the same probabilities.

        Raises:
            InputError: the server returns no log probabilities; also as `calls.ask`.
            CriticGone: as `calls.ask`.
        """
        if self.top_logprobs is None:
            raise InputError(f"{self.model}: a choice by probabilities needs vlm.top_logprobs")
        fields = {self.limit_field: 1, "temperature": 1.0} | self._told()

        def read(answer: Mapping[str, Any]) -> dict[str, float] | Fault:
            choice = first_choice(answer)
            if isinstance(choice, Fault):
                return choice
            top = first_place(choice)
            if top is None:
                raise InputError(f"{self.model} at {self.server.base_url} {untold(choice)}")
            return shares(top, options)

        return self._ask(self._questions(turns, fields), read)

    def reply(self, turns: Sequence[Turn]) -> list[list[Reply | Fault]]:
        """As `VLMClient.reply`.

        With some servers a temperature other than 0 or 1 changes the probabilities in ``tokens``.

        Raises:
            InputError, CriticGone: as `calls.ask`.
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
        """The answers to all questions; a question that is a fault keeps it."""
        asked = [one for one in questions if not isinstance(one, Fault)]
        answers = iter(ask(self.server, PATH, asked, read) if asked else ())
        return [one if isinstance(one, Fault) else next(answers) for one in questions]

    def _questions(self, turns: Sequence[Turn], fields: Json) -> list[Json | Fault]:
        """The request of each turn, with further fields; a video is encoded once."""
        encoded: dict[int, list[Json]] = {}
        questions: list[Json | Fault] = []
        for turn in turns:
            try:
                for video in turn.videos:
                    if id(video) not in encoded:
                        encoded[id(video)] = self._encoded(video)
            except InputError as error:  # this video cannot be shown; others can
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
        """The parts of a message that show a video."""
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
        """The question with its seed, which does not depend on the other questions."""
        if isinstance(question, Fault) or self.temperature == 0 or self.seed is None:
            return question
        return question | {"seed": derive_seed(self.seed, fingerprint(question), sample) % 2**31}


def shown_rate(shown: Shown) -> float:
    """Frame rate at which the shown frames last as long as the whole video."""
    return shown.fps * max(len(shown.indices) - 1, 1) / max(shown.total - 1, 1)


def encode_picture(frame: Tensor, kind: str) -> bytes:
    """A frame, uint8 (3, H, W), as the bytes of a JPEG or PNG file."""
    buffer = io.BytesIO()
    # Quality and subsampling are JPEG's: no colour is shared between neighbouring pixels.
    options = {"quality": 95, "subsampling": 0} if kind == "jpeg" else {}
    Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()).save(buffer, kind, **options)
    return buffer.getvalue()


def data_url(kind: str, content: bytes) -> str:
    """A data URL (RFC 2397)."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
