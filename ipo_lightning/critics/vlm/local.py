"""VLMs in this process: any model of transformers that takes videos.

`LocalVLM.choose` makes one forward pass and reads the raw logits of the next token: an exact
probability for each option, without sampling. `LocalVLM.reply` generates text. Neither uses the
sampling settings of a checkpoint: a repetition penalty, as in Qwen2.5-VL's, would change the
probabilities.
"""

import hashlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby, islice, takewhile
from typing import Any, Literal, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)

from ipo_lightning.critics.pretrained.checkpoint import (
    SEQUENCES,
    Processor,
    check_source,
    check_weights,
    collate,
    free,
    named,
    origin,
)
from ipo_lightning.critics.pretrained.sizes import Network, cost, network_of, sight
from ipo_lightning.critics.pretrained.viewing import Viewing
from ipo_lightning.critics.stage.costs import Cost, Watched
from ipo_lightning.critics.vlm.client import SEVERAL, Fault, Reply, Token, Turn, parts
from ipo_lightning.errors import InputError
from ipo_lightning.seeds import derive_seed, generator
from ipo_lightning.settings import Count, NotNegative, Text, checked
from ipo_lightning.storage.store import canonical, fingerprint
from ipo_lightning.video import Clip

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Answer = TypeVar("Answer")
TOP = 20
"""How many likeliest tokens are returned for each token of a reply."""


@checked
class LocalVLM:
    """A `VLMClient` with its weights in this process.

    Args:
        model: a folder as `save_pretrained` writes it, or a hub id. Weights are read from
            safetensors only.
        revision: of a hub id: branch, tag or commit; None: its main branch.
        dtype: of the weights: bfloat16, float16, or float32 (twice the memory).
        samples: replies to a turn; more than one needs a temperature.
        temperature: of replies; 0: greedy.
        max_tokens: of a reply; a longer one is cut off, and a fault.
        attention: transformers' name of the kernels (sdpa, eager, flash_attention_2); None:
            transformers' default.
        batch_size: turns in a forward pass. With 1 an answer does not depend on other turns. With
            more, shorter turns are padded and kernels round differently: probabilities change by
            about 1e-6 in float32 and 1e-2 in bfloat16.
        viewing: how videos are shown.
        seed: of sampled replies.
        template: further arguments of the chat template, such as ``{enable_thinking: false}``.
        remote_code: run code of the checkpoint; leave it false unless you have read that code.

    Raises:
        InputError: a setting is wrong.
    """

    def __init__(
        self,
        model: Text,
        revision: Text | None = None,
        dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
        samples: Count = 1,
        temperature: NotNegative = 0.0,
        max_tokens: Count = 1024,
        attention: Text | None = None,
        batch_size: Count = 1,
        viewing: Viewing | None = None,
        seed: int = 0,
        template: Mapping[str, Any] | None = None,
        remote_code: bool = False,
    ) -> None:
        self.model, self.revision, self.dtype = model, revision, dtype
        self.samples, self.temperature, self.max_tokens = samples, temperature, max_tokens
        self.attention, self.batch_size, self.seed = attention, batch_size, seed
        self.viewing = Viewing() if viewing is None else viewing
        self.template, self.remote_code = dict(template or {}), remote_code
        self._weights: Any = None
        self._check()

    def _check(self) -> None:
        check_source("model", self.model)
        if self.samples > 1 and self.temperature == 0:
            raise InputError(setting="samples", value=self.samples, expected=SEVERAL)

    @cached_property
    def identity(self) -> str:
        """Of the model (a folder by its content, a hub id by its commit), how videos are shown, and
        sampling."""
        sampling: dict[str, Any] = {"dtype": self.dtype, "tokens": self.max_tokens}
        if self.temperature:
            sampling |= {"n": self.samples, "t": self.temperature, "seed": self.seed}
        for name, plain in (("attention", None), ("batch_size", 1), ("template", {})):
            if getattr(self, name) != plain:
                sampling[name] = getattr(self, name)
        name = origin("model", self.model, self.revision)
        return f"{name}#{self.viewing.identity}#{fingerprint(sampling)[:8]}"

    def ready(self) -> None:
        """Check torchvision and the checkpoint's files; its processor is loaded.

        Raises:
            InputError: one of them is missing.
        """
        _ = self.processor
        check_weights("model", self.model, self.revision)

    def cost(self, video: Watched, videos: int = 1, *, spoken: bool = True) -> Cost:
        """What a question costs, see `cost_of`.

        Args:
            videos: in a question. spoken: whether it is answered in words.
        """
        network = network_of(self.model, self.revision, speaks=True)
        if not isinstance(network, Network):
            return network
        seen, written = sight(network, self.viewing, video), self.max_tokens if spoken else 0
        how: dict[str, Any] = {"batch": self.batch_size, "eager": self.attention == "eager"}
        whole = cost(network, seen, self.dtype, videos=videos, written=written, **how)
        return whole.several(self.samples if spoken else 1)

    def load(self, device: str) -> None:
        """Load the weights onto a device."""
        _ = self.processor  # fails at once where something is missing
        with named("model", self.model):
            self._weights = AutoModelForImageTextToText.from_pretrained(
                self.model,
                revision=self.revision,
                dtype=DTYPES[self.dtype],
                attn_implementation=self.attention,
                use_safetensors=True,
                trust_remote_code=self.remote_code,
            )
        own = self._weights.generation_config
        self._weights.generation_config = GenerationConfig(
            eos_token_id=own.eos_token_id, pad_token_id=self.processor.padding
        )
        self._weights.get_output_embeddings().register_forward_hook(_in_float32)
        self._weights.eval().to(device)

    def release(self) -> None:
        """Free the memory of the weights."""
        self._weights = None
        free()

    @cached_property
    def processor(self) -> Processor:
        """The checkpoint's processor.

        Raises:
            InputError: its files cannot be read, or the model takes no videos.
        """
        return Processor(self.model, self.revision, self.template, self.remote_code)

    def choose(
        self, turns: Sequence[Turn], options: Mapping[str, Sequence[str]]
    ) -> list[dict[str, float] | Fault]:
        """As `VLMClient.choose`, from the logits of one forward pass."""
        ids = option_tokens(self.processor.tokenizer, options)
        rows = ((turn, 0) for turn in turns)
        return list(self._answers(rows, 1, lambda some: self._choices(some, ids)))

    def reply(self, turns: Sequence[Turn]) -> list[list[Reply | Fault]]:
        """As `VLMClient.reply`."""
        rows = ((turn, self._seed(turn, one)) for turn in turns for one in range(self.samples))
        flat = list(self._answers(rows, self.max_tokens, self._replies))
        return [flat[at : at + self.samples] for at in range(0, len(flat), self.samples)]

    # ---------------------------------------------------------------- a batch

    def _answers(
        self,
        asked: Iterable[tuple[Turn, int]],
        room: int,
        answer: Callable[[list["_Row"]], list[Answer]],
    ) -> Iterator[Answer | Fault]:
        """Answers in order; the pixels of one batch at a time are in memory.

        Args:
            asked: turns, each with the seed of its answer.
            room: tokens that the answer may take.
        """
        waiting = iter(asked)
        while batch := list(islice(waiting, self.batch_size)):
            rows = (self._row(turn, seed, room) for turn, seed in batch)
            for company, some in groupby(rows, _company):
                together = list(some)
                yield from cast(Any, together if company is None else answer(cast(Any, together)))

    def _row(self, turn: Turn, seed: int, room: int) -> "_Row | Fault":
        """The model's inputs for a turn, or the fault that it is."""
        shown, words = [], []
        try:
            for part in parts(turn):
                if isinstance(part, Clip):
                    shown.append(self.viewing.show(part, self.processor.grid))
                words.append(None if isinstance(part, Clip) else self.processor.harmless(part))
        except InputError as error:
            return Fault(str(error))
        if self.processor.grid.exact and len({len(one.frames) for one in shown}) > 1:
            return Fault("this model is shown videos of one length only")
        inputs = self.processor.encode(self.processor.rendered(words, turn.opening), shown)
        length = inputs["input_ids"].shape[1]
        if length + room > self._context:
            return Fault("longer than the model's context")
        return _Row(inputs, seed)

    def _batch(self, rows: Sequence["_Row"]) -> dict[str, Tensor]:
        """Inputs on the model's device, padded at the left."""
        batch = collate([row.inputs for row in rows], self.processor.padding, left=True)
        return {name: value.to(self._loaded.device) for name, value in batch.items()}

    @torch.inference_mode()
    def _choices(
        self, rows: list["_Row"], ids: Mapping[str, Sequence[int]]
    ) -> list[dict[str, float] | Fault]:
        inputs = self._batch(rows)
        if "mm_token_type_ids" not in inputs:  # those place the tokens themselves
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
        logits = self._loaded(**inputs, logits_to_keep=1).logits[:, -1].float()
        sums = torch.stack([logits[:, list(some)].logsumexp(1) for some in ids.values()], 1)
        chances = sums.double().softmax(1).tolist()
        return [
            dict(zip(ids, row, strict=True)) if sum(row) == sum(row) else Fault("not a number")
            for row in chances
        ]

    @torch.inference_mode()
    def _replies(self, rows: list["_Row"]) -> list[Reply | Fault]:
        inputs = self._batch(rows)
        voice = _Voice(self.temperature, [row.seed for row in rows])
        written = self._loaded.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=self.max_tokens,
            logits_processor=LogitsProcessorList([voice]),
        )
        answers = written[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._reply(answer, voice, row) for row, answer in enumerate(answers)]

    def _reply(self, answer: Sequence[int], voice: "_Voice", row: int) -> Reply | Fault:
        """A row's answer, up to the end token."""
        ends = self._loaded.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        own = list(takewhile(lambda token: token not in ends, answer))
        if any(bool(values[row].isnan().any()) for values, _ in voice.told[: len(own) + 1]):
            return Fault("not a number")
        if len(own) == self.max_tokens:
            return Fault("cut short")
        decode = self.processor.tokenizer.decode
        tokens = []
        for token, (values, ids) in zip(own, voice.told, strict=False):
            top: dict[str, float] = {}
            for one, value in zip(ids[row].tolist(), values[row].tolist(), strict=True):
                text = decode(
                    [one]
                )  # parts of a character decode to the same text: their probabilities are added
                top[text] = float(np.logaddexp(top.get(text, -math.inf), value))
            tokens.append(Token(decode([token]), top))
        return Reply(decode(own, skip_special_tokens=True), tuple(tokens))

    # ---------------------------------------------------------------- parts

    @property
    def _loaded(self) -> Any:
        if self._weights is None:
            raise RuntimeError(f"{self.model} is not loaded")
        return self._weights

    @property
    def _context(self) -> int:
        """The model's context length in tokens, answer included."""
        config = self._loaded.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or sys.maxsize)

    def _seed(self, turn: Turn, sample: int) -> int:
        """The seed of an answer, made of the turn and the number of the sample."""
        digest = hashlib.sha256(canonical([turn.text, turn.opening, sample]))
        for clip in turn.videos:
            digest.update(canonical([list(clip.frames.shape), clip.fps]))
            digest.update(clip.frames.contiguous().numpy().tobytes())
        return derive_seed(self.seed, "reply", digest.hexdigest())


def option_tokens(tokenizer: Any, options: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    """Option -> the tokens with which an answer may begin.

    Raises:
        InputError: an option has no spelling that is a single token, or shares one with another.
    """
    found: dict[str, list[int]] = {}
    for name, spellings in options.items():
        split = [tokenizer.encode(one, add_special_tokens=False) for one in spellings]
        single = {one[0] for one in split if len(one) == 1} - {tokenizer.unk_token_id}
        if not single:
            raise InputError(
                f"option {name}: none of its spellings ({', '.join(map(repr, spellings))}) is a "
                "single token of this model; give others, such as single letters"
            )
        for other, tokens in found.items():
            if single & set(tokens):
                raise InputError(f"options {other} and {name} share a token of this model")
        found[name] = sorted(single)
    return found


class _Row(NamedTuple):
    """The model's inputs for a turn, with the seed of its answer."""

    inputs: dict[str, Tensor]
    seed: int


def _company(row: "_Row | Fault") -> Any:
    """Equal for rows that can be one batch: the inputs that are not padded have equal shapes."""
    if isinstance(row, Fault):
        return None
    rest = {name: value.shape[1:] for name, value in row.inputs.items() if name not in SEQUENCES}
    return sorted(rest.items())


class _Voice(LogitsProcessor):
    """Samples the next token of each row, and records the likeliest tokens.

    transformers samples a whole batch from one random generator. Here each row has its own: the
    largest of the logits plus Gumbel noise is a sample from their softmax. As the only logits
    processor it sees the raw logits.

    Args:
        temperature: 0: greedy. seeds: one a row.
    """

    def __init__(self, temperature: float, seeds: Sequence[int]) -> None:
        self.temperature = temperature
        self.streams = [generator(seed) for seed in seeds]
        self.told: list[tuple[Tensor, Tensor]] = []
        """For each step the likeliest tokens' log probabilities and ids, (B, 20) each."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores whose largest is the sampled token."""
        chances = scores.float().log_softmax(-1)
        values, ids = chances.topk(min(TOP, chances.shape[-1]))
        self.told.append((values.cpu(), ids.cpu()))
        if self.temperature == 0:
            return scores
        noise = [torch.empty(chances.shape[-1]).exponential_(generator=one) for one in self.streams]
        least = torch.finfo(torch.float32).tiny
        gumbel = -torch.stack(noise).clamp_min(least).log().to(chances.device)
        return chances / self.temperature + gumbel


def _in_float32(head: nn.Linear, inputs: tuple[Tensor], logits: Tensor) -> Tensor:
    """The head's logits in float32: between 16 and 32, bfloat16 has steps of 1/8.

    A forward hook. It works on a part of the vocabulary at a time: a float32 copy of the whole head
    would take gigabytes.
    """
    if logits.dtype == torch.float32:
        return logits
    hidden = inputs[0].float()
    fine = [F.linear(hidden, some.float()) for some in head.weight.split(16384)]
    whole = torch.cat(fine, -1)
    return whole if head.bias is None else whole + head.bias.float()
