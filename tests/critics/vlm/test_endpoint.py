"""A chat model over HTTP, against a real server that misbehaves in every way there is."""

import gzip
import json
import logging
import math
import shutil
import socket
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from threading import Barrier, Lock, Thread
from typing import Any

import pytest
import torch

from app import checks
from app.entry import build, refuse_missing
from ipo_lightning.critics.pretrained.http_errors import (
    MOST_BYTES,
    AskAgain,
    complaint,
    retry_after,
    status_of,
)
from ipo_lightning.critics.pretrained.viewing import Grid, Viewing
from ipo_lightning.critics.protocols import CriticGone
from ipo_lightning.critics.vlm import endpoint_check
from ipo_lightning.critics.vlm.calls import pause_before
from ipo_lightning.critics.vlm.client import VIDEO, Fault, Reply, Turn, VLMClient
from ipo_lightning.critics.vlm.completions import ONLY_REASONING, shares, tokens_of
from ipo_lightning.critics.vlm.endpoint import EndpointVLM, shown_rate
from ipo_lightning.critics.vlm.server import Server
from ipo_lightning.errors import InputError
from ipo_lightning.shapes import world
from ipo_lightning.shapes.critic import ShapesCritic
from ipo_lightning.video import Clip
from tests.conftest import ComposeTrain
from tests.helpers.vlm_server import (
    MODEL,
    Answer,
    Behaviour,
    Request,
    VLMServer,
    completion,
    error,
    served,
    token,
    truthful,
    videos,
)

KEY = "sk-test-0123456789abcdef"
PROMPT = "a red square moving left"
WHOLE = Viewing(fps=1000, least_frames=1, min_pixels=1)
"""All frames as they are."""
YES_NO = {"yes": ("yes", "Yes", " yes"), "no": ("no", "No")}


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def vlm(server: VLMServer | str, *, model: str = MODEL, **settings: Any) -> EndpointVLM:
    """A chat over a server, with the patience of tests."""
    names = Server.__dataclass_fields__
    url = server if isinstance(server, str) else server.url
    quick = {"timeout": 20.0, "backoff": 0.01, "patience": 0.3, "retries": 2}
    how = quick | {name: settings.pop(name) for name in list(settings) if name in names}
    own = {"viewing": WHOLE, "picture": "png"} | settings
    return EndpointVLM(Server(base_url=url, **how), model, **own)


def clip(seed: int = 0, num_frames: int = 9) -> Clip:
    """Noise of the shapes world's size."""
    drawn = torch.Generator().manual_seed(seed)
    size = (num_frames, world.SIZE, world.SIZE, 3)
    return Clip(torch.randint(0, 256, size, generator=drawn, dtype=torch.uint8), 8.0)


def turn(seed: int = 0, text: str = f"{VIDEO}\nDoes it show {PROMPT}?") -> Turn:
    return Turn((clip(seed),), text)


def always(answer: Answer) -> Behaviour:
    return lambda request: answer


def first(*answers: Answer, then: Behaviour = truthful) -> Behaviour:
    """The given answers to the first requests of a question, then others."""
    return lambda request: (
        answers[request.attempt] if request.attempt < len(answers) else then(request)
    )


# -------------------------------------------------------------------- what is sent


def test_it_is_a_chat_model() -> None:
    assert isinstance(vlm("http://localhost:1/v1"), VLMClient)


def test_frames_arrive_as_they_are() -> None:
    with served(always(Answer(completion("fine")))) as server:
        vlm(server).reply([Turn((clip(1), clip(2)), f"A: {VIDEO} B: {VIDEO} which?")])
    request = server.requests[0]
    shown = videos(request)
    assert torch.equal(shown[0], clip(1).frames) and torch.equal(shown[1], clip(2).frames)
    kinds = [part["type"] for part in request.parts]
    assert kinds == ["text"] + ["image_url"] * 9 + ["text"] + ["image_url"] * 9 + ["text"]
    assert [part["text"] for part in request.parts if part["type"] == "text"] == [
        "A: ", " B: ", " which?",
    ]  # fmt: skip


def test_jpeg_is_close_and_smaller_frames_are_smaller() -> None:
    smooth = torch.arange(32, dtype=torch.uint8).mul(8).view(1, 1, 32, 1).expand(5, 32, 32, 3)
    video = Clip(smooth.contiguous(), 8.0)
    with served(always(Answer(completion("fine")))) as server:
        vlm(server, picture="jpeg").reply([Turn((video,), VIDEO)])
        small = Viewing(fps=4, least_frames=1, min_pixels=1, max_pixels=256)
        vlm(server, viewing=small).reply([Turn((video,), VIDEO)])
    near, less = (videos(request)[0] for request in server.requests)
    assert (near.int() - video.frames.int()).abs().max() <= 4
    assert tuple(less.shape) == (2, 16, 16, 3)


def test_a_video_arrives_as_a_file_that_lasts_as_long() -> None:
    smooth = torch.arange(0, 160, 10, dtype=torch.uint8).view(16, 1, 1, 1).expand(16, 32, 32, 3)
    half = Viewing(fps=4, least_frames=1, min_pixels=1)
    with served(always(Answer(completion("fine")))) as server:
        vlm(server, video="mp4", viewing=half).reply([Turn((Clip(smooth, 8.0),), VIDEO)])
    part = server.requests[0].parts[0]
    assert part["type"] == "video_url"
    frames, shown = videos(server.requests[0])[0], smooth[half.indices(16, 8.0)]
    assert (frames.float().mean((1, 2, 3)) - shown.float().mean((1, 2, 3))).abs().max() < 3
    seen = half.show(Clip(smooth, 8.0), Grid(side=2))
    assert (len(seen.indices) - 1) / shown_rate(seen) == pytest.approx(15 / 8)  # first to last


def test_what_a_request_says() -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": False}}
    with served(always(Answer(completion("fine")))) as server:
        critic = vlm(server, samples=2, temperature=0.5, max_tokens=7, extra=extra)
        critic.reply([turn()._replace(opening="I think")])
    one, other = (request.body for request in server.requests)
    assert one["max_tokens"] == 7 and one["temperature"] == 0.5 and one["top_logprobs"] == 20
    assert one["chat_template_kwargs"] == {"enable_thinking": False}
    assert one["messages"][1] == {"role": "assistant", "content": "I think"}
    assert one["continue_final_message"] and not one["add_generation_prompt"]
    assert one["seed"] != other["seed"] and 0 <= one["seed"] < 2**31


def test_a_seed_does_not_depend_on_company() -> None:
    with served(always(Answer(completion("fine")))) as server:
        critic = vlm(server, temperature=1.0)
        critic.reply([turn(1), turn(2)])
        critic.reply([turn(2)])
        vlm(server, temperature=1.0, seed=5).reply([turn(2)])
        vlm(server, temperature=1.0, seed=None).reply([turn(2)])
    seeds: dict[str, list[int | None]] = {}
    for request in server.requests:
        seeds.setdefault(request.digest, []).append(request.body.get("seed"))
    alone, again = sorted(seeds.values(), key=len)
    assert again[0] == again[1] and len({*alone, *again}) == 4 and again[3] is None


def test_other_names_for_the_same() -> None:
    with served(always(Answer(completion("fine")))) as server:
        critic = vlm(server, limit_field="max_completion_tokens", top_logprobs=None)
        critic.reply([turn()])
    body = server.requests[0].body
    assert body["max_completion_tokens"] == 1024
    assert not body.keys() & {"max_tokens", "logprobs", "top_logprobs", "seed"}


# -------------------------------------------------------------------- what comes back


def test_a_choice_by_hand() -> None:
    top = {"yes": 0.3, " yes": 0.1, "Yes": 0.2, "no": 0.15, "maybe": 0.2}
    with served(always(Answer(completion("no", tokens=[token("no", top)])))) as server:
        shares_told = vlm(server).choose([turn()], YES_NO)
    assert shares_told == [{"yes": pytest.approx(0.8), "no": pytest.approx(0.2)}]
    body = server.requests[0].body
    assert body["max_tokens"] == 1 and body["temperature"] == 1 and body["logprobs"] is True


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        ({"yes": 0.25, "no": 0.25}, {"yes": 0.5, "no": 0.5}),
        ({"yes": 0.25, "no": 0.24}, Fault("no such token")),
        ({"yes": 0.5}, {"yes": 1.0, "no": 0.0}),
        ({"Yess": 1.0}, Fault("no such token")),
        ({}, Fault("no such token")),
    ],
)
def test_options_need_half_of_the_probability(
    top: dict[str, float], expected: dict[str, float] | Fault
) -> None:
    logs = {text: math.log(p) for text, p in top.items()}
    assert shares(logs, YES_NO) == (
        expected if isinstance(expected, Fault) else pytest.approx(expected)
    )


def test_the_truth_comes_through_a_choice() -> None:
    clips = [Clip(frames, 8.0) for frames in world.wrong_clips([PROMPT] * 3, 2, seed=0)]
    with served(truthful) as server:
        answers = vlm(server).choose([Turn((one,), f"{VIDEO} {PROMPT}") for one in clips], YES_NO)
    truth = [rating.score for rating in ShapesCritic().rate(clips, [PROMPT] * 3)]
    told = [one["yes"] for one in answers if not isinstance(one, Fault)]
    assert told == pytest.approx(truth)


def test_replies_come_in_order_with_their_tokens() -> None:
    def behaviour(request: Request) -> Answer:
        number = int(videos(request)[0][0, 0, 0, 0])
        told = [token(str(number), {str(number): 0.75, "x": 0.25}), token("", {"": 1.0})]
        return Answer(completion(str(number), tokens=told))

    with served(behaviour) as server:
        replies = vlm(server, samples=2, temperature=1.0).reply([turn(k) for k in range(5)])
    for k, pair in enumerate(replies):
        number = str(int(clip(k).frames[0, 0, 0, 0]))
        for reply in pair:
            assert isinstance(reply, Reply) and reply.text == number
            assert dict(reply.tokens[0].top) == pytest.approx(
                {number: math.log(0.75), "x": math.log(0.25)}
            )


def told(*pieces: str | bytes) -> dict[str, Any]:
    """Tokens with these bytes."""
    return {
        "content": [
            token(p, {p: 1.0}) if isinstance(p, str) else token("\ufffd", {"\ufffd": 1.0}, data=p)
            for p in pieces
        ]
    }


def test_tokens_are_those_of_the_text() -> None:
    thinking = told("<think>", "4", "</think>", "\n", "The", " score", ": ", "5", "<|im_end|>")
    assert [t.text for t in tokens_of("The score: 5", thinking)] == ["The", " score", ": ", "5"]
    halves = told(b"\xc3", b"\xa9", "5")
    assert [t.text for t in tokens_of("\u00e95", halves)] == ["\ufffd", "\ufffd", "5"]
    assert tokens_of("another", thinking) == ()
    assert tokens_of("5", None) == () == tokens_of("5", {"content": None})


PLACE = {"token": "A", "logprob": -0.1, "bytes": [65]}
UNTOLD: list[Any] = [
    None, {}, {"content": None}, {"content": []}, {"content": [PLACE]}, [], {"refusal": None},
    {"content": [PLACE | {"top_logprobs": None}]}, {"content": [PLACE | {"top_logprobs": []}]},
    {"content": [PLACE | {"top_logprobs": [{"token": "A", "logprob": None}]}]},
    {"tokens": ["A"], "token_logprobs": [-0.1]},
]  # fmt: skip
"""Ways to tell no probabilities."""


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (completion("half of i", finish="length"), Fault("cut short")),
        (completion("", finish="length"), Fault(ONLY_REASONING)),
        (completion(None, finish="length", reasoning_content="Well"), Fault(ONLY_REASONING)),
        (
            completion([{"type": "thinking", "thinking": "Well"}], finish="length"),
            Fault(ONLY_REASONING),
        ),
        (completion("", finish="content_filter"), Fault("filtered")),
        (completion(None, refusal="I will not"), Fault("refused")),
        (completion([{"type": "refusal", "refusal": "I will not"}]), Fault("refused")),
        (completion([{"type": "text", "text": "A"}]), Reply("A")),
        (completion([{"type": "output_text", "text": "A"}, " or B"]), Reply("A or B")),
        (completion({"text": "A"}), Reply("A")),
        (
            completion(
                [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "B"}]},
                    {"type": "reasoning", "text": "B"},
                    {"type": "text", "text": "A"},
                ]
            ),
            Reply("A"),
        ),
        (completion("A", reasoning_content="B", reasoning="B"), Reply("A")),
        *((completion("A") | {"error": nothing}, Reply("A")) for nothing in (None, {}, "", False)),
        *(
            (completion("A") | {"usage": odd}, Reply("A"))
            for odd in (None, [1], "many", {"prompt_tokens": 1e999})
        ),
        *((completion("A", told=untold), Reply("A")) for untold in UNTOLD),
    ],
)
def test_answers_that_are_not_whole(body: dict[str, Any], expected: Reply | Fault) -> None:
    with served(always(Answer(body))) as server:
        critic = vlm(server)
        assert critic.reply([turn()]) == [[expected]]
    assert len(server.requests) == 1  # the same again would be no better
    assert critic.spent.faults.total() == isinstance(expected, Fault)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (completion("", finish="content_filter"), Fault("filtered")),
        (completion(None, refusal="I will not"), Fault("refused")),
    ],
)
def test_a_choice_that_is_withheld_is_a_fault_of_one_question(
    body: dict[str, Any], expected: Fault
) -> None:
    """It has no probabilities either, which is no reason to end the run."""

    def behaviour(request: Request) -> Answer:
        return Answer(body) if "dog" in request.text else truthful(request)

    turns = [turn(1), turn(1, f"{VIDEO}\nIs it a dog?")]
    with served(behaviour) as server:
        critic = vlm(server)
        found = critic.choose(turns, YES_NO)
    assert isinstance(found[0], dict) and found[1] == expected
    assert len(server.requests) == 2 and critic.spent.faults == {expected.reason: 1}


def test_a_video_that_cannot_be_shown_is_a_fault_of_its_own() -> None:
    bad = Turn((clip()._replace(fps=0.0),), VIDEO)
    with served(always(Answer(completion("fine")))) as server:
        answers = vlm(server, samples=2, temperature=1).reply([bad, turn()])
        assert vlm(server).reply([bad])[0][0] == answers[0][0]
    assert isinstance(answers[0][0], Fault) and "frames a second" in answers[0][0].reason
    assert answers[1] == [Reply("fine")] * 2


# -------------------------------------------------------------------- faults that go away

GOOD = Answer(completion("fine"))
PASSING = {
    "timeout": Answer(completion("late"), delay=3.0),
    "HTTP 500": error(500, "out of memory"),
    "HTTP 502": Answer(b"<html>Bad Gateway</html>", 502),
    "HTTP 503": error(503, "overloaded", Retry_After="0.01"),
    "too many requests": error(429, "slow down", "rate_limit_exceeded", Retry_After="0.01"),
    "connection lost": Answer(completion("fine"), cut=30),
    "malformed response": Answer(b'{"choices": [{"message"'),
    "slow trickle": Answer(completion("fine"), trickle=0.02),
    "empty choices": Answer({"choices": []}),
    "a list": Answer(b"[]"),
    "a page": Answer(b"<html>Log in to the network</html>"),
    "no message": Answer({"choices": [{"index": 0}]}),
    "content of numbers": Answer(completion([7])),
    "content without text": Answer(completion([{"type": "text"}])),
    "no choices": Answer({"usage": {}}),
    "choices null": Answer({"choices": None, "usage": None}),
    "choice null": Answer({"choices": [None]}),
    "nothing": Answer(b""),
    "null": Answer(b"null"),
    "finish_reason error": Answer(completion("fin", finish="error")),
    "finish_reason abort": Answer(completion(None, finish="abort")),
    "empty answer": Answer(completion("")),
    "blank answer": Answer(completion(" \n")),
    "null answer": Answer(completion(None)),
    "only reasoning": Answer(completion(None, reasoning_content="Score: 1")),
    "only thinking": Answer(completion([{"type": "thinking", "thinking": "Score: 1"}])),
    "no parts": Answer(completion([])),
    "cut chunks": Answer(completion("fine"), cut=30, chunked=True),
    "error of unknown kind": Answer({"error": {"code": 1302, "message": "?"}}),
    "no probability": Answer(completion("a", tokens=[token("a", {}) | {"top_logprobs": [
        {"token": "a", "logprob": 800.0}]}])),
    "endless tokens": Answer(b'{"usage": {"prompt_tokens": 1e999}, "choices": []}'),
    "half a letter": Answer(completion("\ud800")),
    "deep": Answer(b"[" * 100_000),
    "wrong coding": Answer(b"fine", headers={"Content-Encoding": "gzip"}),
}  # fmt: skip
REASONS = {
    "slow trickle": "timeout", "wrong coding": "connection lost", "cut chunks": "connection lost",
    "blank answer": "empty answer", "null answer": "empty answer", "only reasoning": "empty answer",
    "only thinking": "empty answer", "no parts": "empty answer",
}  # fmt: skip


def reason_of(name: str) -> str:
    named = {"timeout", "too many requests", "connection lost", "empty answer"}
    own = name in named or name.startswith(("HTTP", "finish_reason", "error"))
    return REASONS.get(name, name if own else "malformed response")


def timeout_for(name: str) -> float:
    """Seconds: short where they are to run out, else more than a busy machine needs."""
    return 1.0 if reason_of(name) == "timeout" else 20.0


@pytest.mark.slow
@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_asked_again(name: str) -> None:
    with served(first(PASSING[name], then=always(GOOD))) as server:
        critic = vlm(server, timeout=timeout_for(name))
        assert critic.reply([turn()]) == [[Reply("fine")]]
    assert critic.spent.retries == {reason_of(name): 1} and not critic.spent.faults
    assert (critic.spent.requests, critic.spent.answers) == (2, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", PASSING)
def test_what_stays_is_a_fault_that_a_later_run_may_mend(name: str) -> None:
    with served(always(PASSING[name])) as server:
        critic = vlm(server, timeout=timeout_for(name), retries=1)
        assert critic.reply([turn()]) == [[Fault(reason_of(name), transient=True)]]
    assert critic.spent.faults == critic.spent.retries == {reason_of(name): 1}
    assert len(server.requests) == critic.spent.requests == 2


def test_a_response_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipo_lightning.critics.pretrained.http_errors.MOST_BYTES", 2**20)
    assert MOST_BYTES > 2**20
    with served(always(Answer(b"x" * 2**16, endless=True))) as server:
        answers = vlm(server, retries=0).reply([turn()])
    assert answers == [[Fault("endless response", transient=True)]]


@pytest.mark.slow
def test_faults_of_one_are_not_those_of_another() -> None:
    def behaviour(request: Request) -> Answer:
        odd = int(videos(request)[0][0, 0, 0, 0]) % 2
        return error(500, "no") if odd else truthful(request)

    turns = [turn(k) for k in range(8)]
    with served(behaviour) as server:
        together = vlm(server, concurrency=8).choose(turns, YES_NO)
        alone = [vlm(server, concurrency=1).choose([one], YES_NO)[0] for one in turns]
    odd = [int(one.videos[0].frames[0, 0, 0, 0]) % 2 == 1 for one in turns]
    assert [isinstance(one, Fault) for one in together] == odd and any(odd) and not all(odd)
    assert together == alone  # neither batch nor order matters


def test_it_asks_so_many_at_a_time() -> None:
    three, lock, now, most = Barrier(3), Lock(), 0, 0

    def behaviour(request: Request) -> Answer:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        three.wait(20)  # not fewer
        with lock:
            now -= 1
        three.wait(20)
        return GOOD

    with served(behaviour) as server:
        vlm(server, concurrency=3).reply([turn(k) for k in range(9)])
    assert most == 3  # nor more


def test_pauses_grow_and_the_server_may_ask_for_more() -> None:
    with served(first(error(429, "wait", Retry_After="0.25"), then=always(GOOD))) as server:
        critic = vlm(server)
        started = time.monotonic()
        critic.reply([turn()])
        assert time.monotonic() - started >= 0.25
    failure, keys = AskAgain("HTTP 500"), (b"a", b"b", b"a")
    server_of = critic.server
    pauses = [[pause_before(server_of, failure, key, k) for k in range(16)] for key in keys]
    assert pauses[0] == pauses[2] != pauses[1]  # drawn by content
    for k, pause in enumerate(pauses[0]):
        whole = min(0.01 * 2**k, 60)
        assert whole / 2 <= pause <= whole


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0), ("", 0), ("3", 3), ("0.5", 0.5), ("-4", 0), ("soon", 0), ("nan", 0), ("inf", 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("Wed, 99 Oct 2015", 0),
        ("Wed, 21 Oct 2015 07:28:00 -0000", 0), ("Wed Oct 21 07:28:00 2015", 0),
    ],
)  # fmt: skip
def test_retry_after(header: str | None, seconds: float) -> None:
    assert retry_after(header) == seconds


def test_retry_after_as_a_date() -> None:
    from datetime import UTC, datetime, timedelta
    from email.utils import format_datetime

    later = datetime.now(UTC) + timedelta(seconds=100)
    asctime = later.strftime("%a %b %d %H:%M:%S %Y")
    for date in (format_datetime(later, usegmt=True), asctime):
        assert 98 <= retry_after(date) <= 100


RETRY_INFO = {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "daily limit",
                        "details": [{"@type": "Help"}, {"retryDelay": "4000s"}, "?"]}}  # fmt: skip


@pytest.mark.parametrize(
    "answer",
    [
        error(429, "daily limit", Retry_After="4000"),
        error(429, "daily limit", retry_after_ms="4000000"),
        Answer(RETRY_INFO, 429),
        Answer(RETRY_INFO),
    ],
    ids=["header", "milliseconds", "in the body", "in a body that claims success"],
)
def test_a_wait_beyond_patience_stops_the_run(answer: Answer) -> None:
    with (
        served(always(answer)) as server,
        pytest.raises(CriticGone, match="wait 4000 s.*patience=0.3"),
    ):
        vlm(server).reply([turn()])


# -------------------------------------------------------------------- what stops a run


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (error(401, "bad key"), r"401 Unauthorized \(bad key\): check the key in \$OPENAI_API_KEY"),
        (error(403, "not yours"), "403 Forbidden .*check the key"),
        (error(404, "no such model"), r"\(no such model\): check model and base_url"),
        (Answer({"detail": "Not Found"}, 404), r"404 Not Found \(Not Found\)"),
        (error(400, "logprobs are not supported"), r"\(logprobs are not supp.*top_logprobs, extra"),
        (Answer(b"\x1b[31mno\n\nway \xff", 422), r"\(\\x1b\[31mno way \\ufffd\)"),
        (error(400, "long " * 200), r"long long\.\.\.\)|long l\.\.\.\)|lo?n?g?\.\.\.\)|\.\.\.\)"),
        (Answer(b"", 405), "405 Method Not Allowed: check base_url"),
        (error(413, "too large"), "fewer or smaller frames"),
    ],
)
def test_what_no_later_request_can_mend_stops_at_once(answer: Answer, words: str) -> None:
    with served(always(answer)) as server, pytest.raises(InputError, match=words) as refused:
        vlm(server, concurrency=1).reply([turn(k) for k in range(3)])
    assert len(server.requests) == 1
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


def test_the_model_must_be_there() -> None:
    with served(truthful) as server, pytest.raises(InputError, match="`gpt-9` does not exist"):
        vlm(server, model="gpt-9").reply([turn()])


def test_a_host_that_looks_at_contents_may_refuse_one_question() -> None:
    filtered = error(400, "we do not like this", "content_filter")
    with served(lambda r: filtered if "nude" in r.text else GOOD) as server:
        critic = vlm(server)
        answers = critic.reply([turn(text=f"{VIDEO} a nude"), turn()])
    assert answers == [[Fault("filtered")], [Reply("fine")]]


@pytest.mark.parametrize(
    "refusal",
    [
        error(400, "This model's maximum context length is 4096 tokens. However, you requested"),
        error(400, "too many tokens", "context_length_exceeded"),
    ],
)
def test_a_question_that_is_too_long_is_a_fault_of_its_own(refusal: Answer) -> None:
    with served(lambda r: refusal if "long" in r.text else GOOD) as server:
        answers = vlm(server).reply([turn(text=f"{VIDEO} long"), turn()])
    assert answers == [[Fault("longer than the model's context", transient=True)], [Reply("fine")]]


@pytest.mark.parametrize(
    "answer", [error(429, "You exceeded your quota", "insufficient_quota"), error(402, "pay")]
)
def test_an_account_without_credit_stops_the_run(answer: Answer) -> None:
    with served(always(answer)) as server, pytest.raises(CriticGone, match="no credit left"):
        vlm(server).reply([turn()])
    assert len(server.requests) == 1


@pytest.mark.parametrize("told", UNTOLD)
def test_no_probabilities_no_choice(told: Any) -> None:
    answers = [Answer(completion("yes", told=told)),
               Answer(completion("", finish="length", told=told))]  # fmt: skip
    words = ["no log probabilities.*: choose a critic that answers in words",
             "nothing but reasoning within one token: switch its reasoning off"]  # fmt: skip
    for answer, said in zip(answers, words, strict=True):
        with served(always(answer)) as server, pytest.raises(InputError, match=said):
            vlm(server).choose([turn()], YES_NO)
        assert len(server.requests) == 1
    with served(always(Answer(completion(None, told=told)))) as server:
        found = vlm(server, retries=1).choose([turn()], YES_NO)
    assert found == [Fault("empty answer", transient=True)] and len(server.requests) == 2


def test_no_choice_where_none_was_asked_for() -> None:
    with pytest.raises(InputError, match="needs vlm.top_logprobs"):
        vlm("http://localhost:1", top_logprobs=None).choose([turn()], YES_NO)


# -------------------------------------------------------------------- errors within an answer

SHAPES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "at the top": lambda error: {"error": error, "user_id": "x"},
    "in a choice": lambda error: {"choices": [
        {"error": error, "finish_reason": "error", "message": {"content": "half an ans"}}]},
    "in a message": lambda error: {"choices": [{"message": {"content": None, "error": error}}]},
    "without choices": lambda error: {"choices": [], "error": error},
    "alone": lambda error: {"object": "error"} | error,
    "beside a mark": lambda error: {"error": True} | error,
    "in a list": lambda error: {"errors": [error], "success": False},
}  # fmt: skip
CODES: list[tuple[int, dict[str, Any]]] = [
    (429, {"code": 429}), (429, {"code": "429"}), (429, {"code": "rate_limit_exceeded"}),
    (429, {"code": "RateLimitReached"}), (429, {"code": 429, "status": "RESOURCE_EXHAUSTED"}),
    (429, {"type": "rate_limit_error", "code": None}), (402, {"code": 402}),
    (429, {"code": 429, "type": "insufficient_quota"}), (402, {"code": "insufficient_credits"}),
    (401, {"code": 401}), (401, {"code": "invalid_api_key", "type": "invalid_request_error"}),
    (401, {"type": "AuthenticationError"}), (403, {"code": 403}), (403, {"type": "forbidden"}),
    (404, {"code": "model_not_found"}), (503, {"code": 503}), (503, {"type": "overloaded_error"}),
    (502, {"code": 502}), (500, {"type": "server_error"}), (408, {"code": "timeout"}),
    (400, {"type": "BadRequestError"}), (400, {"code": "content_filter"}),
    (400, {"code": "context_length_exceeded"}), (413, {"status": 413}),
]  # fmt: skip


OUTCOMES: list[tuple[int, dict[str, Any]]] = [
    (429, {"code": 429}), (402, {"code": 402}), (401, {"code": "invalid_api_key"}),
    (400, {"code": "content_filter"}), (400, {"code": "context_length_exceeded"}),
    (529, {"code": 529}),
]  # fmt: skip
"""One for each thing that may become of a question."""
WORDS = "the server's own words"


def outcome(answer: Answer, *, by_choice: bool = False) -> str:
    """What becomes of a question with this answer, in words or by probabilities."""
    with served(always(answer)) as server:
        try:
            critic = vlm(server, retries=1)
            found = critic.choose([turn()], YES_NO) if by_choice else critic.reply([turn()])[0]
            told = str(found[0])
        except (InputError, CriticGone) as error:
            told = f"{type(error).__name__} {error}".replace(server.url, "URL")
    return f"{told}, {len(server.requests)} requests"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(OUTCOMES)))
def test_an_error_within_an_answer_is_that_of_its_code(number: int) -> None:
    status, codes = OUTCOMES[number]
    error = codes | {"message": WORDS}
    expected = outcome(Answer({"error": error}, status))
    for shape, within in SHAPES.items():
        assert outcome(Answer(within(error))) == expected, shape
    assert outcome(Answer({"error": error}), by_choice=True) == expected


@pytest.mark.parametrize(
    ("error", "status"),
    [
        *((codes, status) for status, codes in CODES),
        ("Rate limit exceeded: 20 requests a minute", 429),
        ("Invalid API key", 401),
        ("Insufficient credits", 402),
        ({"message": "The model is overloaded, try again"}, 503),
        ({"code": 20012, "message": "Insufficient balance"}, 402),
        ({"code": 1302, "message": "what?"}, 0),
        ({"code": 200}, 0),
        ([], 0),
        (7, 0),
    ],
)
def test_an_error_is_known_by_its_code_or_its_words(error: Any, status: int) -> None:
    assert status_of(complaint(error)) == status


def test_the_words_of_the_host_behind_a_gateway_are_told() -> None:
    error = {"code": 401, "message": "Provider returned error", "metadata": {"raw": "bad key"}}
    assert "401 Unauthorized (Provider returned error: bad key)" in outcome(
        Answer({"error": error})
    )


def test_an_error_within_an_answer_may_ask_to_wait() -> None:
    answer = Answer({"error": {"code": 429}}, headers={"Retry-After": "4000"})
    assert "asks to wait 4000 s" in outcome(answer)


def test_codings_of_an_answer() -> None:
    body = json.dumps(completion("fine")).encode()
    coded = {"gzip": gzip.compress(body), "deflate": zlib.compress(body), "identity": body}
    for coding, content in coded.items():
        answer = Answer(content, headers={"Content-Encoding": coding}, chunked=coding != "deflate")
        assert outcome(answer) == outcome(GOOD) == f"{Reply('fine')}, 1 requests"


def test_redirects_are_not_followed() -> None:
    with served(always(GOOD)) as other:
        elsewhere = other.url.replace("127.0.0.1", "localhost")
        answer = Answer(b"", 307, {"Location": f"{elsewhere}/chat/completions"})
        with (
            served(always(answer)) as server,
            pytest.raises(InputError, match="307.*redirects to http://localhost.*trust it"),
        ):
            vlm(server).reply([turn()])
        assert not other.requests


def test_a_server_that_is_gone_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    started = time.monotonic()
    critic = vlm(f"http://127.0.0.1:{port}/v1", patience=0.3)
    with pytest.raises(
        CriticGone, match=r"cannot be reached.*for 0.3 s now.*start the server again"
    ):
        critic.reply([turn(1), turn(2)])
    assert 0.3 <= time.monotonic() - started < 15
    assert [record.levelname for record in caplog.records].count("WARNING") == 1


def test_a_server_that_comes_back_is_asked_again() -> None:
    port = free_port()
    critic = vlm(f"http://127.0.0.1:{port}/v1", patience=10, retries=0)
    answers: list[Any] = []
    asking = Thread(target=lambda: answers.extend(critic.reply([turn(1), turn(2)])))
    asking.start()
    time.sleep(0.1)
    with served(always(GOOD), port=port):
        asking.join()
    assert answers == [[Reply("fine")]] * 2
    assert critic.spent.requests == 2 and not critic.spent.retries


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_a_proxy_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(always(GOOD)) as server:  # it takes no CONNECT
        monkeypatch.setenv("HTTPS_PROXY", server.url.removesuffix("/v1"))
        critic = vlm("https://host.invalid/v1", retries=1)
        assert critic.reply([turn()]) == [[Fault("proxy", transient=True)]]
    assert critic.spent.retries == {"proxy": 1} and not server.requests


@pytest.mark.skipif(shutil.which("openssl") is None, reason="a certificate is made with openssl")
def test_an_untrusted_certificate_is_not_accepted(tmp_path: Path) -> None:
    import ssl

    with served(always(GOOD)) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate(tmp_path))
        server.socket = context.wrap_socket(server.socket, server_side=True)
        url = server.url.replace("http:", "https:")
        with pytest.raises(InputError, match="certificate cannot be trusted.*SSL_CERT_FILE"):
            vlm(url).reply([turn()])
    assert not server.requests


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate that nobody signed but itself, and its key."""
    import subprocess

    files = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2",
         "-out", str(files[0]), "-keyout", str(files[1])],
        check=True, capture_output=True,
    )  # fmt: skip
    return files


# -------------------------------------------------------------------- the budget


def test_a_budget_of_requests() -> None:
    with served(always(GOOD)) as server:
        critic = vlm(server, budget_requests=5)
        assert len(critic.reply([turn(k) for k in range(3)])) == 3
        with pytest.raises(CriticGone, match=r"budget_requests=5 \(one call of the critic: 3\)"):
            critic.reply([turn(k) for k in range(3)])
        assert len(critic.reply([turn(k) for k in range(2)])) == 2
        with pytest.raises(CriticGone, match="spent: 5 requests, 5 answers, 500 . 50 tokens"):
            critic.reply([turn()])
    assert len(server.requests) == 5


def test_repetitions_count_but_cost_no_answer() -> None:
    bad = error(500, "no")
    with served(lambda r: bad if r.text == "bad" else GOOD) as server:
        critic = vlm(server, budget_requests=4, retries=9)
        answers = critic.reply([Turn((), "bad"), Turn((), "a"), Turn((), "b")])
    assert answers == [[Fault("HTTP 500", transient=True)], [Reply("fine")], [Reply("fine")]]
    assert len(server.requests) == 4


def test_a_budget_of_tokens() -> None:
    with served(always(GOOD)) as server:
        critic = vlm(server, budget_tokens=200)
        critic.reply([turn(1)])
        critic.reply([turn(2), turn(3)])
        with pytest.raises(
            CriticGone, match="budget_tokens=200; spent: 3 requests.*330? tokens|30"
        ):
            critic.reply([turn(4)])
    assert critic.spent.prompt_tokens == 300 and critic.spent.completion_tokens == 30


def test_what_was_spent_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ipo_lightning")
    with served(first(error(500, "no"), then=always(GOOD))) as server:
        critic = vlm(server)
        critic.load("cpu")
        critic.release()
        critic.reply([turn()])
        critic.release()
        critic.release()
    (line,) = (record.getMessage() for record in caplog.records if record.levelname == "INFO"
               and record.name.startswith("ipo_lightning"))  # fmt: skip
    assert "2 requests, 1 answers, 100 + 10 tokens" in line and "retries: HTTP 500 1" in line


# -------------------------------------------------------------------- the key


def test_the_key_is_sent_and_never_repeated(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with served(truthful, key=KEY) as server:
        critic = vlm(server)
        assert not isinstance(critic.choose([turn()], YES_NO)[0], Fault)
        server.key = "another"
        with pytest.raises(InputError, match="Incorrect API key provided: Bearer .key.") as wrong:
            critic.choose([turn()], YES_NO)
    assert KEY in server.requests[0].headers["Authorization"]
    said = [caplog.text, str(wrong.value), repr(critic.__dict__), critic.identity, repr(server)]
    assert KEY not in " ".join(said) and "sk-t" not in str(wrong.value)


def test_a_host_that_shows_parts_of_a_key() -> None:
    masked = f"Incorrect API key provided: {KEY[:8]}****{KEY[-4:]}. See https://example.com"
    with served(always(error(401, masked))) as server, pytest.raises(InputError) as wrong:
        vlm(server).reply([turn()])
    assert KEY[:4] not in str(wrong.value) and KEY[-4:] not in str(wrong.value)
    assert "provided: [key] See" in str(wrong.value)


def test_an_answer_that_repeats_the_key() -> None:
    with served(lambda r: Answer(completion(f"You said {r.headers['Authorization']}"))) as server:
        assert vlm(server).reply([turn()]) == [[Reply("You said Bearer [key]")]]


def test_keys_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match="export OPENAI_API_KEY=.*key_variable=null"):
        vlm("https://example.com/v1").load("cpu")
    vlm("https://example.com/v1", key_variable=None).load("cpu")
    vlm("http://example.com/v1")  # no key, nothing to warn of
    with served(always(GOOD)) as server:
        vlm(server).load("cpu")
        vlm(server).reply([turn()])
        assert "Authorization" not in server.requests[0].headers
    with (
        served(always(error(401, "who?"))) as server,
        pytest.raises(InputError, match=r"check the key: \$OPENAI_API_KEY is not set"),
    ):
        vlm(server).reply([turn()])


def test_a_key_in_place_of_a_name_is_not_repeated() -> None:
    with pytest.raises(InputError, match="give the NAME") as refused:
        Server("http://localhost:1/v1", key_variable="sk-very-secret")
    assert "secret" not in str(refused.value)


def test_a_key_with_a_line_break_is_named_but_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-first\nsecond-line")
    with pytest.raises(InputError, match=r"\$MY_KEY has characters that no key has") as wrong:
        vlm("https://example.com/v1", key_variable="MY_KEY").load("cpu")
    assert "first" not in str(wrong.value) and "second" not in str(wrong.value)


def test_readable_on_the_way() -> None:
    with pytest.warns(UserWarning, match="http://10.0.0.7/v1: the key and the videos are sent un"):
        vlm("http://10.0.0.7/v1")
    for url in ("https://10.0.0.7/v1", "http://localhost:8/v1", "http://[::1]:8/v1"):
        vlm(url)


# -------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("localhost:8000/v1", "http"),
        ("ftp://host/v1", "http"),
        ("https:///v1", "http"),
        ("", "http"),
        ("https://me:secret@host/v1", "without user, password"),
        ("https://host/v1?key=secret", "without user, password, query"),
        ("https://host/v1/chat/completions", "leave out what comes after /v1"),
        ("http://host:port/v1", "^base_url: "),
    ],
)
def test_addresses_are_looked_at_early(url: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as refused:
        vlm(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "setting",
    [
        {"concurrency": 0}, {"timeout": 0}, {"timeout": math.inf}, {"connect_timeout": -1},
        {"retries": -1}, {"backoff": -1}, {"patience": math.nan}, {"budget_requests": 0},
        {"budget_tokens": 0}, {"samples": 0}, {"samples": 2}, {"temperature": -1},
        {"max_tokens": 0}, {"top_logprobs": 0}, {"video": "gif"}, {"picture": "webp"},
        {"extra": {"messages": []}}, {"extra": {"max_tokens": 3}},
    ],
)  # fmt: skip
def test_settings_that_cannot_work(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(InputError, match=name):
        vlm("http://localhost:1/v1", **setting)


def test_the_identity_is_what_determines_an_answer() -> None:
    here = vlm("http://localhost:1/v1")
    same = [
        vlm("https://example.com/v2", key_variable=None), vlm("http://localhost:1/v1/"),
        vlm("http://localhost:1/v1", retries=9, concurrency=3, budget_tokens=5), 
        vlm("http://localhost:1/v1", seed=4),  # at temperature 0 nothing is drawn
    ]  # fmt: skip
    assert {one.identity for one in same} == {here.identity}
    others = [
        {"model": "b"}, {"revision": "2"}, {"viewing": Viewing()}, {"video": "mp4"},
        {"picture": "jpeg"}, {"temperature": 0.5}, {"temperature": 0.5, "samples": 2},
        {"temperature": 0.5, "seed": 1}, {"max_tokens": 5}, {"top_logprobs": 5},
        {"extra": {"top_k": 1}},
    ]  # fmt: skip
    names = {vlm("http://localhost:1/v1", **other).identity for other in others}
    assert len(names | {here.identity}) == len(others) + 1


def test_it_works_where_a_loop_runs_already() -> None:
    import asyncio

    async def notebook() -> list[list[Reply | Fault]]:
        return critic.reply([turn()])

    with served(always(GOOD)) as server:
        critic = vlm(server)
        assert asyncio.run(notebook()) == [[Reply("fine")]]


# -------------------------------------------------------------------- looking at an address


def viewer(request: Request) -> Answer:
    """A model that sees: by pixels, not by what the check expects."""

    def left(frame: torch.Tensor) -> float:
        return (frame.float().std(-1) > 20).float().sum(0).argmax().item()

    def red(frames: torch.Tensor) -> bool:
        return (frames[0, ..., 0].int() - frames[0, ..., 2].int()).max().item() > 90

    shown = videos(request)
    if "which video" in request.text:
        return Answer(completion("A" if red(shown[0]) else "B"))
    if "move" in request.text:
        return Answer(completion("Right." if left(shown[0][-1]) > left(shown[0][0]) else "left"))
    if request.body["max_tokens"] == 1:
        yes = 0.9 if red(shown[0]) == ("red" in request.text) else 0.1
        top = {"Yes": yes, "No": 1 - yes}
        return Answer(completion("Yes", tokens=[token("Yes", top)]))
    return Answer(completion("red" if red(shown[0]) else "blue"))


@pytest.mark.slow
@pytest.mark.parametrize("video", ["frames", "mp4"])
def test_the_check_of_an_address(video: str, capsys: pytest.CaptureFixture[str]) -> None:
    with served(viewer) as server:
        assert endpoint_check.main([server.url, MODEL, "--video", video]) == 0
        said = capsys.readouterr().out
        assert said.count("  ok ") == 8 and "WRONG" not in said and "spent: 8 requests" in said
        assert "a red square is blue: 0.100" in said
        server.behaviour = always(Answer(completion("red")))
        assert endpoint_check.main([server.url, MODEL, "--video", video]) == 1
    said = capsys.readouterr().out
    assert said.count("WRONG") == 6 and "returns no log probabilities" in said


def test_the_check_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    with served(truthful) as server:
        assert endpoint_check.main([server.url, "gpt-9"]) == 1
    assert "error: " in (said := capsys.readouterr().err) and "check model and base_url" in said
    wrong = {"code": 402, "message": "nothing left"}
    for shape in (SHAPES["at the top"], SHAPES["in a choice"]):
        with served(always(Answer(shape(wrong)))) as server:
            assert endpoint_check.main([server.url, MODEL]) == 1
        assert "402 Payment Required (nothing left)" in capsys.readouterr().err


# -------------------------------------------------------------------- through the settings


@pytest.mark.parametrize(
    ("group", "choice"),
    [("critic", "critic/vlm"), ("eval_critic", "critic/vlm@eval_critic.vlm")],
)
def test_it_is_chosen_by_the_settings(compose_train: ComposeTrain, group: str, choice: str) -> None:
    cfg = compose_train(
        f"{group}=ipo_form", f"{choice}=openai", f"{group}.vlm.model=NAME",
        f"{group}.vlm.server.base_url=https://example.com/v1", f"{group}.vlm.extra={{top_k: 5}}",
    )  # fmt: skip
    checks.check(cfg)
    critic = build(cfg[group], group)
    assert isinstance(critic.vlm, EndpointVLM) and critic.during_rollout
    assert critic.vlm.server.base_url == "https://example.com/v1"
    assert critic.identity.startswith("NAME@served#view-") and critic.vlm.extra == {"top_k": 5}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("server.retries=many", "server.retries=many: give a whole number, at least 0"),
        ("server.timeout=0", "server.timeout=0: give a number, above 0"),
        (
            "server.budget_tokens=0.5",
            "server.budget_tokens=0.5: give a whole number",
        ),
        ("viewing.fps=fast", "vlm.viewing.fps=fast: give a number, above 0"),
        ("viewing.most_frames=8.5", "vlm.viewing.most_frames=8.5: give a whole number"),
        ("samples=0", "vlm.samples=0: give a whole number, at least 1"),
    ],
)
def test_settings_are_refused_early(compose_train: ComposeTrain, setting: str, words: str) -> None:
    cfg = compose_train(
        "critic=ipo_form", "critic/vlm=openai", "critic.vlm.model=m", f"critic.vlm.{setting}"
    )
    with pytest.raises(InputError, match=words):
        checks.check(cfg)


def test_a_model_must_be_named(compose_train: ComposeTrain) -> None:
    cfg = compose_train("critic=ipo_form", "critic/vlm=openai")
    with pytest.raises(InputError, match="critic.vlm.model has no default"):
        refuse_missing(cfg)
