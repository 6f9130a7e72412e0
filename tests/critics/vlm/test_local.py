"""Chat models in this process, on tiny models of the real classes."""

import math
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText

from ipo_lightning.critics.pretrained.viewing import Viewing
from ipo_lightning.critics.vlm.client import VIDEO, Fault, Reply, Turn, VLMClient
from ipo_lightning.critics.vlm.local import LocalVLM
from ipo_lightning.errors import InputError
from ipo_lightning.video import Clip
from tests.helpers import tiny_vlm
from tests.helpers.tiny_vlm import FAMILIES, SMALL

YES_NO = {"yes": ("yes", "Yes", "YES"), "no": ("no", "No")}
LETTERS = {"first": ("A",), "second": ("B",), "tie": ("tie",)}
ROUNDING = 2e-5
"""Of a probability, between a turn alone and in a padded batch, in float32."""

Open = Callable[..., LocalVLM]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("vlm")
    return cache(lambda family: tiny_vlm.save_model(root / family, family))


@pytest.fixture(scope="module")
def vlm(folders: Callable[[str], Path]) -> Open:
    """A loaded model: ``chat("qwen2_vl", batch_size=3)``."""

    @cache
    def loaded(family: str, **settings: Any) -> LocalVLM:
        settings = {"dtype": "float32", "max_tokens": 8} | settings
        model = LocalVLM(str(folders(family)), viewing=Viewing(**SMALL), **settings)
        model.load("cpu")
        return model

    return loaded


def stops(model: LocalVLM, ends: Iterable[int]) -> AbstractContextManager[Any]:
    """Random weights hardly ever end an answer: let them end at these tokens."""
    return mock.patch.object(model._weights.generation_config, "eos_token_id", list(ends))


def vocabulary(model: LocalVLM) -> int:
    return int(model._weights.config.get_text_config().vocab_size)


def pair(first: int, second: int, opening: str = "") -> Turn:
    clips = (tiny_vlm.clip(first), tiny_vlm.clip(second))
    text = f"Video 1: {VIDEO} Video 2: {VIDEO} Which is better?"
    return Turn(clips, text, opening)


def single(seed: int, question: str = "Does it move?") -> Turn:
    return Turn((tiny_vlm.clip(seed),), f"{VIDEO}{question}")


def three() -> list[Turn]:
    """Of three lengths."""
    return [single(1), single(2, "Is there, if you look at it closely, a dog in it?"), pair(3, 4)]


def plain_logits(model: LocalVLM, turn: Turn) -> torch.Tensor:
    """(V,) of the token after a turn, from a forward of the checkpoint as transformers loads it."""
    own = AutoModelForImageTextToText.from_pretrained(model.model, dtype="float32").eval()
    shown = [model.viewing.show(clip, model.processor.grid) for clip in turn.videos]
    words: list[str | None] = []
    for index, part in enumerate(turn.text.split(VIDEO)):
        words += [part] if index == 0 else [None, part]
    inputs = model.processor.encode(model.processor.rendered(words, turn.opening), shown)
    with torch.no_grad():
        logits: torch.Tensor = own(**inputs).logits[0, -1]
    return logits


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_probabilities_are_a_softmax_over_the_raw_logits(family: str, vlm: Open) -> None:
    model = vlm(family)
    assert isinstance(model, VLMClient)
    for turn in (single(1), pair(1, 2)):
        (answer,) = model.choose([turn], YES_NO)
        chances = plain_logits(model, turn).double().softmax(0)
        words = {
            word: model.processor.tokenizer.encode(word) for word in ("yes", "Yes", "no", "No")
        }
        yes, no = (sum(float(chances[words[word][0]]) for word in some) for some in
                   (("yes", "Yes"), ("no", "No")))  # fmt: skip
        assert isinstance(answer, dict)
        assert answer["yes"] == pytest.approx(yes / (yes + no), abs=1e-6)
        assert sum(answer.values()) == pytest.approx(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_do_not_depend_on_batch_or_order(family: str, vlm: Open) -> None:
    turns = three()
    alone, together = vlm(family), vlm(family, batch_size=3)
    wanted = alone.choose(turns, LETTERS)
    assert alone.choose(turns[::-1], LETTERS)[::-1] == wanted, "to the last bit"
    for one, other in zip(wanted, together.choose(turns, LETTERS), strict=True):
        assert isinstance(one, dict) and isinstance(other, dict)
        assert other == pytest.approx(one, abs=ROUNDING)
    assert len({round(answer["first"], 4) for answer in wanted if isinstance(answer, dict)}) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_shown_and_where_matters(family: str, vlm: Open) -> None:
    model = vlm(family)
    swapped, frozen = pair(2, 1), pair(1, 1)
    answers = model.choose([pair(1, 2), swapped, frozen], LETTERS)
    assert all(answers[i] != answers[j] for i, j in ((0, 1), (0, 2), (1, 2)))


def test_an_opening_is_where_the_answer_goes_on(vlm: Open) -> None:
    model = vlm("qwen2_vl")
    for opening in ("", "My choice: "):
        turn = pair(1, 2, opening)
        (answer,) = model.choose([turn], LETTERS)
        logits = plain_logits(model, turn)
        tokens = [model.processor.tokenizer.encode(word)[0] for word in ("A", "B", "tie")]
        wanted = logits[tokens].double().softmax(0).tolist()
        assert isinstance(answer, dict)
        assert list(answer.values()) == pytest.approx(wanted, abs=1e-6)
    text = model.processor.rendered([None, "which?"], "It is")
    assert text.endswith("<|im_start|>assistant\nIt is")


@pytest.mark.parametrize("family", FAMILIES)
def test_videos_stand_where_the_text_has_them(family: str, vlm: Open) -> None:
    model = vlm(family)
    shown = [model.viewing.show(clip, model.processor.grid) for clip in pair(1, 2).videos]
    text = model.processor.rendered(["first ", None, " second ", None, " end"])
    ids = model.processor.encode(text, shown)["input_ids"][0]
    mark = model.processor.whole.video_token
    said = model.processor.tokenizer.decode(ids)
    places = [said.index("first "), said.index(mark), said.index(" second "),
              said.rindex(mark), said.index(" end")]  # fmt: skip
    assert places == sorted(places)


def test_words_that_are_tokens_stay_words(vlm: Open) -> None:
    model = vlm("qwen2_vl")
    marked = single(1, "a cat<|im_end|><|video_pad|> <video>".replace(VIDEO, "< video>"))
    (answer,) = model.choose([marked], YES_NO)
    assert isinstance(answer, dict), "the prompt adds no video and ends no turn"
    assert model.processor.harmless("<|im_end|>!") == "< |im_end|>!"


def test_options_without_a_token_are_refused(vlm: Open) -> None:
    model = vlm("qwen2_vl")
    with pytest.raises(InputError, match="option maybe: none of its spellings .'maybe', 'MAYBE'."):
        model.choose([single(1)], {"yes": ("yes",), "maybe": ("maybe", "MAYBE")})
    with pytest.raises(InputError, match="options yes and sure share a token"):
        model.choose([single(1)], {"yes": ("yes",), "sure": ("yes", "A")})


def test_a_spelling_of_several_tokens_does_not_count(vlm: Open) -> None:
    model = vlm("qwen2_vl")
    with_long = {"yes": ("yes", "Yes", "certainly"), "no": ("no", "No", "not at all")}
    assert model.choose([single(1)], with_long) == model.choose([single(1)], YES_NO)


@pytest.mark.parametrize("family", FAMILIES)
def test_replies_tell_raw_probabilities(family: str, vlm: Open) -> None:
    model = vlm(family)
    turn = single(1)
    values, ids = plain_logits(model, turn).softmax(0).topk(20)
    with stops(model, set(range(vocabulary(model))) - {int(ids[0])}):
        ((answer,),) = model.reply([turn])
    assert isinstance(answer, Reply)
    assert 1 <= len(answer.tokens) < 8
    assert answer.text == "".join(token.text for token in answer.tokens) or "\ufffd" in answer.text
    wanted: dict[str, float] = {}
    for value, token in zip(values.tolist(), ids.tolist(), strict=True):
        text = model.processor.tokenizer.decode([token])
        wanted[text] = wanted.get(text, 0.0) + value
    first = answer.tokens[0]
    assert first.text == model.processor.tokenizer.decode([int(ids[0])]), "the likeliest is taken"
    chances = {text: math.exp(value) for text, value in first.top.items()}
    assert chances == pytest.approx(wanted, abs=1e-6)


def test_penalties_of_the_checkpoint_change_nothing(folders: Any, tmp_path: Path) -> None:
    """Qwen2.5-VL ships a repetition penalty."""
    folder = tiny_vlm.save_model(tmp_path / "penalised", "qwen2_5_vl")
    (folder / "generation_config.json").write_text(
        '{"do_sample": true, "repetition_penalty": 1.8, "temperature": 0.1, "top_k": 1,'
        ' "eos_token_id": 275, "pad_token_id": 273}'
    )
    replies = []
    for path in (folders("qwen2_5_vl"), folder):
        model = LocalVLM(str(path), dtype="float32", max_tokens=60, viewing=Viewing(**SMALL))
        model.load("cpu")
        with stops(model, range(0, vocabulary(model), 8)):
            replies.append(model.reply([single(1), single(2)]))
    assert replies[0] == replies[1]
    assert any(isinstance(one, Reply) and one.tokens for (one,) in replies[0])


@pytest.mark.slow
def test_samples_differ_and_follow_from_the_turn_alone(vlm: Open) -> None:
    settings: dict[str, Any] = {"samples": 3, "temperature": 1.5, "max_tokens": 60}
    turns = [single(1), single(2), pair(3, 4)]

    def replies(order: list[Turn], **more: Any) -> list[list[str]]:
        model = vlm("qwen2_vl", **settings, **more)
        with stops(model, range(0, vocabulary(model), 8)):
            answers = model.reply(order)
        assert [len(some) for some in answers] == [3] * len(order)
        return [[one.text for one in some if isinstance(one, Reply)] for some in answers]

    texts = replies(turns)
    assert all(len(set(some)) == 3 for some in texts)
    assert replies(turns[::-1])[::-1] == texts
    assert replies(turns, batch_size=4) == texts
    assert replies(turns, seed=1) != texts


@pytest.mark.slow
def test_draws_follow_the_softmax(vlm: Open) -> None:
    """An answer is empty as often as its first token is one that ends it."""
    model = vlm("qwen2_vl", samples=400, temperature=0.5, batch_size=200, max_tokens=12)
    ends = list(range(0, vocabulary(model), 2))
    with stops(model, ends):
        (answers,) = model.reply([single(1)])
    chance = float((plain_logits(model, single(1)) / 0.5).softmax(0)[ends].sum())
    assert 0.2 < chance < 0.8
    assert answers.count(Reply("")) / 400 == pytest.approx(chance, abs=0.1), "4 sigma"


def test_a_reply_ends_where_the_model_stops(vlm: Open) -> None:
    model, turn = vlm("qwen2_vl"), single(1)
    likeliest = int(plain_logits(model, turn).argmax())
    with stops(model, [0, likeliest]):
        assert model.reply([turn]) == [[Reply("")]]
    with stops(model, []):
        assert model.reply([turn]) == [[Fault("cut short")]]


def test_bfloat16_is_read_out_in_float32(vlm: Open) -> None:
    model = vlm("qwen2_vl", dtype="bfloat16")
    seen: list[torch.Tensor] = []
    head = model._weights.get_output_embeddings()
    with head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])):
        (answer,) = model.choose([single(1)], LETTERS)
    logits = F.linear(seen[0][0, -1].double(), head.weight.double())
    tokens = [model.processor.tokenizer.encode(word)[0] for word in ("A", "B", "tie")]
    assert isinstance(answer, dict)
    assert list(answer.values()) == pytest.approx(logits[tokens].softmax(0).tolist(), abs=1e-5)
    assert seen[0].dtype == torch.bfloat16


def test_what_cannot_be_asked_is_a_fault(vlm: Open, folders: Any) -> None:
    model = vlm("qwen2_vl", batch_size=3)
    long = single(1, "word " * 2000)
    answers = model.choose([single(1), long, single(2)], YES_NO)
    assert answers[1] == Fault("longer than the model's context")
    assert isinstance(answers[0], dict) and isinstance(answers[2], dict)
    timeless = Turn((Clip(tiny_vlm.clip(1).frames, 0.0),), f"{VIDEO}?")
    (fault,) = model.choose([timeless], YES_NO)
    assert isinstance(fault, Fault) and "0.0 frames a second" in fault.reason
    uneven = Turn((tiny_vlm.clip(1, 2), tiny_vlm.clip(2, 8)), f"{VIDEO}{VIDEO}?")
    (fault,) = vlm("llava_onevision").choose([uneven], YES_NO)
    assert fault == Fault("this model is shown videos of one length only")
    assert isinstance(model.choose([uneven], YES_NO)[0], dict)


def test_infinite_logits_are_a_fault(folders: Any) -> None:
    model = LocalVLM(str(folders("qwen2_vl")), dtype="float32", viewing=Viewing(**SMALL),
                      max_tokens=2)  # fmt: skip
    model.load("cpu")
    with torch.no_grad():
        model._weights.get_output_embeddings().weight.fill_(math.nan)
    assert model.choose([single(1)], YES_NO) == [Fault("not a number")]
    for ends in ([], range(vocabulary(model))):
        with stops(model, ends):
            assert model.reply([single(1)]) == [[Fault("not a number")]]


def test_identity_is_what_determines_an_answer(folders: Any, tmp_path: Path) -> None:
    path = str(folders("qwen2_vl"))
    base = LocalVLM(path)
    assert base.identity == LocalVLM(path, seed=3).identity, "a greedy reply draws nothing"
    others: list[dict[str, Any]] = [
        {"dtype": "float32"}, {"max_tokens": 9}, {"viewing": Viewing(fps=4)},
        {"temperature": 0.7}, {"temperature": 0.7, "seed": 1}, {"temperature": 0.7, "samples": 2},
        {"attention": "eager"}, {"batch_size": 2}, {"template": {"enable_thinking": False}},
    ]  # fmt: skip
    identities = {LocalVLM(path, **settings).identity for settings in others}
    assert len(identities | {base.identity}) == len(others) + 1
    other = tiny_vlm.save_model(tmp_path / "qwen2_vl", "qwen2_vl", seed=1)
    assert LocalVLM(str(other)).identity != base.identity
    assert base.identity.startswith("qwen2_vl@")


def test_settings_are_refused(folders: Any, tmp_path: Path) -> None:
    path = str(folders("qwen2_vl"))
    for settings, message in (
        ({"samples": 2}, "several replies need a temperature"),
        ({"batch_size": 0}, "batch_size=0: give a whole number, at least 1"),
        ({"dtype": "int8"}, "dtype=int8: choose one of"),
    ):
        with pytest.raises(InputError, match=message):
            LocalVLM(path, **settings)
    with pytest.raises(InputError, match="neither a folder nor a hub id"):
        LocalVLM(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: it cannot be read"):
        LocalVLM(str(tmp_path / "empty")).load("cpu")
    with pytest.raises(InputError, match="owner/name: it cannot be read.*needs the network"):
        LocalVLM("owner/name").load("cpu")


def test_weights_that_could_run_code_are_not_read(tmp_path: Path) -> None:
    folder = tiny_vlm.save_model(tmp_path / "pickled", "qwen2_vl")
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be read.*safetensors"):
        LocalVLM(str(folder)).load("cpu")


def test_without_torchvision_one_sentence(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(InputError, match="make extras EXTRAS=critics"):
        LocalVLM(str(folders("qwen2_vl"))).ready()


@pytest.mark.slow
def test_release_frees_and_asking_unloaded_is_an_error(folders: Any) -> None:
    model = LocalVLM(str(folders("qwen2_vl")), dtype="float32", viewing=Viewing(**SMALL))
    model.load("cpu")
    wanted = model.choose([single(1)], YES_NO)
    model.release()
    with pytest.raises(RuntimeError, match="is not loaded"):
        model.choose([single(1)], YES_NO)
    model.load("cpu")
    assert model.choose([single(1)], YES_NO) == wanted
