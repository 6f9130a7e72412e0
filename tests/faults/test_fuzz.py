"""Readers of strangers' files and servers' answers end in a value or in their own error, whatever
they are given: no other exception, no hang, nothing written.

``FUZZ=5000 pytest tests/faults/test_fuzz.py`` tries so many inputs of each reader, other ones each
time; without it a few, always the same.
"""

import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import HealthCheck, example, given
from hypothesis import settings as of_hypothesis
from hypothesis import strategies as some
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import save

from app.entry import CONF
from data.prompts import read_prompts
from ipo_lightning.backbones.lora_files import read_lora
from ipo_lightning.critics.pretrained.http_errors import AskAgain
from ipo_lightning.critics.vlm.client import Reply
from ipo_lightning.critics.vlm.completions import first_choice, likeliest, read_reply
from ipo_lightning.critics.vlm.templates.base import Unreadable
from ipo_lightning.errors import InputError
from ipo_lightning.exchange import read_any
from ipo_lightning.storage.foreign_yaml import read_plain, read_settings
from ipo_lightning.storage.store import Store
from ipo_lightning.storage.tables import rows_of
from ipo_lightning.video import read_video, write_video
from tests.helpers import tiny, tiny_vlm

MANY = int(os.environ.get("FUZZ", 0))
fuzzed = of_hypothesis(
    max_examples=MANY or 30,
    derandomize=not MANY,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

# ---------------------------------------------------------------- inputs

PLACES = some.floats(0, 1, exclude_max=True)
BITS = some.integers(0, 7)
STRANGE = [b"\xef\xbb\xbf", b"\x00", b"\xff", b"\n", b'"', b"{", b"]", b"NaN", b"1e999", b"null",
           b"\xe2\x80\xa8", b"-1", b"9" * 40, b"${oc.env:HOME}", b"!!python/"]  # fmt: skip
PIECES = some.binary(max_size=8) | some.sampled_from(STRANGE)
WAYS = some.sampled_from(["cut", "flip", "put", "drop"])
EDITS = some.lists(some.tuples(WAYS, PLACES, BITS, PIECES), min_size=1, max_size=4)


def mutated(*valid: bytes) -> some.SearchStrategy[bytes]:
    """Valid inputs after a few changes."""
    return some.builds(edited, some.sampled_from(valid), EDITS)


def edited(content: bytes, edits: list[tuple[str, float, int, bytes]]) -> bytes:
    """The bytes after some changes at places between the beginning (0) and the end (1)."""
    for what, where, bit, piece in edits:
        at = int(where * len(content))
        if what == "cut":
            content = content[:at]
        elif what == "flip" and content:
            content = content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
        elif what == "put":
            content = content[:at] + piece + content[at:]
        elif what == "drop":
            content = content[:at] + content[at + 1 + 8 * bit :]
    return content


TEXTS = some.text(max_size=12)
NUMBERS = some.one_of(some.integers(), some.floats(), some.booleans(), some.none())
TREES = some.recursive(
    NUMBERS | TEXTS,
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


def filled(names: list[str]) -> some.SearchStrategy[dict[str, Any]]:
    """Objects with the names that a reader knows, and anything under them."""
    return some.dictionaries(some.sampled_from(names) | TEXTS, TREES, max_size=8)


# ---------------------------------------------------------------- tables and prompts

ROW = {"prompt": "a cat", "path_A": "a.mp4", "path_B": "b.mp4", "VQ": "A", "Overall": "same",
       "id": "1", "chosen": "a.mp4", "rejected": "b.mp4", "video": "a.mp4", "score": 3}  # fmt: skip
KNOWN = [*ROW, "task", "annotations", "result", "ranking", "left_video", "right_video", "labels",
         "data", "value", "choices", "timestamp", "annotator"]  # fmt: skip
JSON_LINES = (json.dumps(ROW) + "\n").encode() * 2
CSV = b'prompt,path_A,path_B,VQ\n"a, cat",a.mp4,b.mp4,A\na dog,c.mp4,d.mp4,same\n'
TABLES = {
    ".jsonl": JSON_LINES,
    ".json": json.dumps([ROW, ROW]).encode(),
    ".csv": CSV,
    ".tsv": CSV.replace(b",", b"\t"),
}


@pytest.mark.parametrize("suffix", TABLES)
def test_tables(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"table{suffix}"
    objects = some.lists(filled(KNOWN), max_size=3).map(lambda rows: as_table(rows, suffix))

    @fuzzed
    @given(mutated(TABLES[suffix]) | objects)
    @example(b"")
    def try_one(content: bytes) -> None:
        file.write_bytes(content)
        for read in (lambda: read_any(file).one_lined(), lambda: list(rows_of(file)),
                     lambda: read_prompts(file)):  # fmt: skip
            ends(read, InputError)

    try_one()
    assert os.listdir(tmp_path) == [file.name]


def as_table(rows: list[dict[str, Any]], suffix: str) -> bytes:
    """Rows as JSON, by whatever name."""
    if suffix == ".jsonl":
        return "\n".join(map(json.dumps, rows)).encode()
    return json.dumps(rows).encode()


def test_lists_of_prompts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"

    @fuzzed
    @given(mutated("a cat\r\n  a dog \n\u0065\u0301t\u00e9\n".encode()) | some.binary(max_size=40))
    def try_one(content: bytes) -> None:
        file.write_bytes(content)
        ends(lambda: read_prompts(file), InputError)

    try_one()


def ends(read: Callable[[], Any], *own: type[BaseException]) -> Any:
    """What is read; None after an error of the reader's own, which says so in a few lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read()
        except own as error:
            said = str(error)
            assert said.strip() and len(said.splitlines()) <= 3, f"not one to three lines: {said}"
            assert "weights_only" not in said, f"advice to load it anyway: {said}"
            return None


# ---------------------------------------------------------------- settings of others


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SECRET_KEY", "sk-never-to-be-written")
    return "sk-never-to-be-written"


def test_foreign_settings(tmp_path: Path, secret: str) -> None:
    file = tmp_path / "config.yaml"
    valid = (
        b"backbone:\n  _target_: ipo_lightning.backbones.cogvideox.CogVideoX\n  path: x\nseed: 1\n"
    )
    leaks = b"negative_prompt: ${oc.env:SECRET_KEY}\nname: &a [x]\nother: *a\n"

    @fuzzed
    @given(mutated(valid, leaks) | filled(["backbone", "rollout", "seed", "_target_"]).map(as_json))
    @example(leaks)
    def try_one(content: bytes) -> None:
        file.write_bytes(content)
        for read in (read_plain, read_settings):
            found = ends(lambda read=read: read(file, "give another file"), InputError)  # type: ignore[misc]
            assert secret not in repr(found)

    try_one()
    assert os.listdir(tmp_path) == [file.name]


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


# ---------------------------------------------------------------- weights of others


def test_lora_files(tmp_path: Path) -> None:
    network = tiny.policy(tiny.save_pipeline(tmp_path / "base")).build()
    layer = next(n for n, m in network.named_modules() if isinstance(m, torch.nn.Linear))
    weight = network.get_submodule(layer).weight
    factors = {
        f"transformer.{layer}.lora_A.weight": torch.ones(2, weight.shape[1]),
        f"transformer.{layer}.lora_B.weight": torch.ones(weight.shape[0], 2),
    }
    valid = save(factors, {"lora_adapter_metadata": '{"transformer.r": 2}'})
    file = tmp_path / "lora.safetensors"
    parts = ("lora_down.weight", "alpha", "lora_magnitude_vector", "diff", "diff_b")
    tails = some.sampled_from(["x.diff", "text_encoder.q.lora_A.weight",
                               *(f"{layer}.{part}" for part in parts)])  # fmt: skip
    shapes = some.lists(some.integers(0, 3), max_size=3)
    others = some.dictionaries(tails | TEXTS, shapes.map(lambda s: torch.ones(s)), max_size=3)

    @fuzzed
    @given(mutated(valid, valid[:200]) | others.map(save))
    def try_one(content: bytes) -> None:
        file.write_bytes(content)
        ends(lambda: read_lora(file, network, lambda name: name),
             ValueError, OSError, SafetensorError)  # fmt: skip

    try_one()


# ---------------------------------------------------------------- answers of servers

ANSWER = {
    "choices": [
        {
            "finish_reason": "stop",
            "message": {"content": "A", "refusal": None},
            "logprobs": {
                "content": [{"token": "A", "logprob": -0.1,
                             "top_logprobs": [{"token": "A", "logprob": -0.1}]}],
            },
        }
    ]
}  # fmt: skip
MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError)
"""What the caller takes for a malformed answer; see `ipo_lightning.critics.vlm.calls`."""


def replaced(tree: Any, path: list[int], value: Any) -> Any:
    """A tree with another value at one of its places."""
    if not path or not isinstance(tree, dict | list) or not tree:
        return value
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    at = keys[path[0] % len(keys)]
    changed: Any = dict(tree) if isinstance(tree, dict) else list(tree)
    changed[at] = replaced(tree[at], path[1:], value)
    return changed


@fuzzed
@given(some.lists(some.integers(0, 9), min_size=1, max_size=8), TREES)
def test_answers_of_servers(path: list[int], value: Any) -> None:
    answer: Mapping[str, Any] = replaced(ANSWER, path, value)
    for read in (read_reply, first_choice, lambda one: likeliest(one["choices"][0])):
        try:
            read(answer)  # type: ignore[operator]
        except (AskAgain, *MALFORMED):
            pass


TEMPLATES = [file.stem for file in sorted((CONF / "critic").glob("*.yaml"))
             if "prompt_template:" in file.read_text()]  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_words_of_critics(name: str) -> None:
    node = OmegaConf.load(CONF / "critic" / f"{name}.yaml").prompt_template
    template: Any = instantiate(node)
    numbers = some.sampled_from(["3", "10", "1e999", "nan", "-1", "9" * 400, "\u0663"])
    words = some.lists(
        TEXTS | numbers | some.sampled_from([
            "A", "B", "tie", "<answer>", "</answer>", "Video 1 is better", "Alignment Score (1-5):",
            "\n", "**", "{", "}", '"Overall"', ":", "visual quality", "Final score:", "[[", "A>B",
        ]), max_size=12,
    )  # fmt: skip

    @fuzzed
    @given(words)
    def try_one(parts: list[str]) -> None:
        ends(lambda: template.read(Reply(" ".join(parts))), Unreadable)

    try_one()


# ---------------------------------------------------------------- videos


def test_videos(tmp_path: Path) -> None:
    clip = tiny_vlm.clip(0)
    write_video(tmp_path / "valid.mp4", clip)
    valid = (tmp_path / "valid.mp4").read_bytes()
    file = tmp_path / "video.mp4"

    @fuzzed
    @given(mutated(valid) | some.binary(max_size=200))
    def try_one(content: bytes) -> None:
        file.write_bytes(content)
        ends(lambda: read_video(file), InputError)

    try_one()


# ---------------------------------------------------------------- the store


def test_records_and_blobs_of_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put_record("verdicts", "ab12", {"score": 0.5})
    record = store.path("verdicts", "ab12", ".json")
    valid = record.read_bytes()
    name = store.put_tensors("latents", {"x": torch.ones(3)})
    tensors = store.path("latents", name, ".safetensors")
    whole = tensors.read_bytes()

    @fuzzed
    @given(mutated(valid), mutated(whole))
    def try_one(wrapped: bytes, blob: bytes) -> None:
        record.write_bytes(wrapped)
        tensors.write_bytes(blob)
        found = ends(lambda: store.get_record("verdicts", "ab12"), InputError)
        assert found in (None, {"score": 0.5})
        got = ends(lambda: Store(tmp_path).get_tensors("latents", name), FileNotFoundError)
        assert got is None or torch.equal(got["x"], torch.ones(3))

    try_one()
