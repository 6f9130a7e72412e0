"""What a chat completion says: OpenAI's format, as vLLM, SGLang, gateways and hosts fill it in."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ipo_lightning.critics.pretrained.http_errors import AskAgain
from ipo_lightning.critics.vlm.client import Fault, Reply, Token

LEAST_MASS = 0.5
"""Least probability of all options of a choice together: below it the model would mostly say
something else, and the choice means little."""
ROUNDING = 1e-3  # a log probability may be above 0 by this much
INTERRUPTED = {"error", "abort", "network_error", "insufficient_system_resource"}
"""Values of ``finish_reason`` where the server failed: OpenRouter, vLLM, Zhipu, DeepSeek."""
EMPTY = "empty answer"
ONLY_REASONING = "no answer within max_tokens: raise it, or switch the model's reasoning off"
WORDS = ("text", "output_text")
"""Types of a content's parts that are the answer; others are reasoning, tools, pictures."""


def first_choice(answer: Mapping[str, Any]) -> Mapping[str, Any] | Fault:
    """The first choice of a completion; a fault where it was filtered or refused.

    Raises:
        AskAgain: the server failed in the midst of it.
    """
    choice: Mapping[str, Any] = answer["choices"][0]
    message, finish = choice["message"], choice.get("finish_reason")
    if finish in INTERRUPTED:
        raise AskAgain(f"finish_reason {finish}")
    if finish == "content_filter":
        return Fault("filtered")
    refusals = (part for part in _parts(message.get("content")) if part.get("type") == "refusal")
    if message.get("refusal") or any(refusals):
        return Fault("refused")
    return choice


def read_reply(answer: Mapping[str, Any]) -> Reply | Fault:
    """The first choice of a completion, or the fault that it is.

    Raises:
        AskAgain: it is empty, though the model might have gone on, or the server failed.
    """
    choice = first_choice(answer)
    if isinstance(choice, Fault):
        return choice
    text = text_of(choice)
    if choice.get("finish_reason") == "length":
        return Fault("cut short" if text.strip() else ONLY_REASONING)
    if not text.strip():
        raise AskAgain(EMPTY)
    return Reply(text, tokens_of(text, choice.get("logprobs")))


def text_of(choice: Mapping[str, Any]) -> str:
    """The words of a choice, without reasoning; empty where it has none.

    Raises:
        TypeError: they are something else.
    """
    words = [part["text"] for part in _parts(choice["message"].get("content"))
             if part.get("type", WORDS[0]) in WORDS]  # fmt: skip
    return "".join(words)


def _parts(content: Any) -> Iterator[Mapping[str, Any]]:
    """The parts of a message: a text is one."""
    for part in content if isinstance(content, list) else [] if content is None else [content]:
        if not isinstance(part, str | Mapping):
            raise TypeError("the content of an answer must be text")
        yield {"text": part} if isinstance(part, str) else part


# -------------------------------------------------------------------- probabilities


def first_place(choice: Mapping[str, Any]) -> dict[str, float] | None:
    """As `likeliest`, at the first place of the answer; None: the server tells no probabilities.

    Raises:
        AskAgain: there is no answer either, though the model might have given one.
    """
    places = _places(choice.get("logprobs"))
    found = likeliest(places[0]) if places else {}
    if not found and choice.get("finish_reason") != "length" and not text_of(choice).strip():
        raise AskAgain(EMPTY)
    return found or None


def untold(choice: Mapping[str, Any]) -> str:
    """The message about a choice without probabilities."""
    words = "choose a critic that answers in words"
    if text_of(choice).strip():
        return f"returns no log probabilities (logprobs): {words}"
    return (
        "returns no log probabilities (logprobs) and nothing but reasoning within one token: "
        f"switch its reasoning off (vlm.extra), or {words}"
    )


def likeliest(place: Mapping[str, Any]) -> dict[str, float]:
    """Text -> log probability, of the likeliest tokens at a place of the answer.

    The probabilities of tokens with the same text (such as halves of characters) are added.
    Empty where the server tells none.

    Raises:
        ValueError: a number is not a log probability.
    """
    found: dict[str, float] = defaultdict(float)
    for token in place.get("top_logprobs") or []:
        if token["logprob"] is None:
            continue
        if not token["logprob"] <= ROUNDING:
            raise ValueError(f"{token['logprob']} is not a log probability")
        found[token["token"]] += math.exp(token["logprob"])
    return {text: math.log(p) if p > 0 else -math.inf for text, p in found.items()}


def shares(
    top: Mapping[str, float], options: Mapping[str, Sequence[str]]
) -> dict[str, float] | Fault:
    """Option -> probability, normalised over the options; a fault where they have too little.

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


def _places(told: Any) -> Sequence[Mapping[str, Any]]:
    """The places of an answer, as far as the server tells them."""
    return (told or {}).get("content") or []


def tokens_of(text: str, told: Mapping[str, Any] | None) -> tuple[Token, ...]:
    """The tokens of ``text``; none where the server sends none, or those of another text, or one
    without probabilities.

    Tokens before and after the text (reasoning that the server removed, an end mark) are left out.
    """
    places = _places(told)
    pieces = [bytes(p.get("bytes") or p["token"].encode()) for p in places]  # halves of characters
    first = b"".join(pieces).rfind(text.encode())
    if first < 0:
        return ()
    tokens, last, start = [], first + len(text.encode()), 0
    for place, piece in zip(places, pieces, strict=True):
        if start < last and start + len(piece) > first:
            tokens.append(Token(place["token"], likeliest(place)))
        start += len(piece)
    return tuple(tokens) if all(token.top for token in tokens) else ()
