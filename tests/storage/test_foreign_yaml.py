"""Settings of anybody are plain data: nothing is looked up, built, or blown up."""

import random
import time
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from app.renamed import saved_settings
from app.sample_settings import backbone_of, sampling_of, settings_beside
from ipo_lightning.errors import InputError
from ipo_lightning.hub.checkpoints import Checkpoint
from ipo_lightning.storage.foreign_yaml import SIZE, parsed, read_settings
from tests.test_sample import composed

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "aliases": BOMB,
    "one alias": "a: &x 1\nb: *x",
    "merge": "a: &x {b: 1}\nc:\n  <<: *x",
    "python": "a: !!python/object/apply:os.system ['touch owned']",
    "path": "a: !!python/object/apply:pathlib.Path [/etc]",
    "own tag": "a: !secret x",
    "set": "a: !!set {x, y}",
    "binary": "a: !!binary aGVsbG8=",
    "deep flow": "a: " + "[" * 20_000,
    "deep block": "\n".join("  " * k + f"k{k}:" for k in range(100)),
    "deep dashes": "- " * 50_000 + "x",
    "large": "a: " + "x" * SIZE,
    "long number": "a: " + "9" * 100_000,
    "sexagesimal": "a: " + "1:" * 100_000 + "1",
    "twice": "a: 1\na: 2",
    "list": "[1, 2]",
    "text": "hello",
    "number": "3",
    "empty": "",
    "only a comment": "# nothing",
    "unclosed": "a: [1, 2",
    "tab": "a:\n\tb: 1",
    "two documents": "a: 1\n---\nb: 2",
    "control": "a: \x00\x01",
    "key": "? [1, 2]\n: 3",
    "bad anchor": "a: *nothing",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_more_than_plain_data_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    file, start = tmp_path / "config.yaml", time.monotonic()
    file.write_text(HOSTILE[kind])
    with pytest.raises(InputError) as refused:
        read_settings(file, "restore it")
    assert time.monotonic() - start < 5
    said = str(refused.value)
    assert said.count("\n") == 0 and str(file) in said and said.endswith("; restore it")
    assert len(said) < 400 and not (Path.cwd() / "owned").exists()


def test_other_things_in_its_place_are_refused(tmp_path: Path) -> None:
    for name, content in {"utf-16": "a: 1".encode("utf-16"), "noise": bytes(range(256))}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            read_settings(tmp_path / name, "restore it")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("folder", "link", "endless"):
        with pytest.raises(InputError, match="it is no file"):
            read_settings(tmp_path / name, "restore it")


def test_our_own_settings_are_read_as_they_were_written(tmp_path: Path) -> None:
    cfg = composed(
        "train", "name=mine", "loss.beta=1e-5", "rollout.negative_prompt='cost \\${seed}'"
    )
    plain = OmegaConf.to_container(cfg, resolve=True)
    plain.pop("hydra", None)  # type: ignore[union-attr]
    file = tmp_path / "config.yaml"
    file.write_text(OmegaConf.to_yaml(cfg, resolve=True))
    saved = saved_settings(file, "restore it")
    assert OmegaConf.to_container(saved, resolve=True) == plain
    assert saved.rollout.negative_prompt == "cost ${seed}"
    file.write_text("\ufeff" + file.read_text().replace("\n", "\r\n"))
    assert OmegaConf.to_container(saved_settings(file, ""), resolve=True) == plain


@pytest.mark.parametrize("text", ["${oc.env:SECRET_KEY}", "\\${oc.env:SECRET_KEY}",
                                  "\\\\${oc.env:SECRET_KEY}", "x ${a} ${oc.env:SECRET_KEY,x}",
                                  "${oc.decode:${oc.env:SECRET_KEY}}", "${seed}"])  # fmt: skip
def test_a_reference_is_text(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "sk-secret")
    file = tmp_path / "config.yaml"
    ours = {"_target_": "ipo_lightning.backbones.cogvideox.CogVideoX", "path": "a/b"}
    rollout = {"steps": 3, "guidance_scale": 4.0, "negative_prompt": text}
    file.write_text(yaml.safe_dump({"seed": 3, "backbone": ours, "rollout": rollout}))
    checkpoint, cfg = Checkpoint("lora", "x", file), composed("sample", "ckpt=x", "prompt=x")
    saved = settings_beside(checkpoint)
    assert sampling_of(cfg, saved, backbone_of(cfg, checkpoint, saved)).negative_prompt == text
    for key in ("path", "name", "revision"):
        file.write_text(yaml.safe_dump({"backbone": {**ours, key: text}}))
        with pytest.raises(InputError, match="not plain data"):
            settings_beside(checkpoint)


@pytest.mark.parametrize("backbone", [
    3, [1], "x", None, {}, {"path": "x"}, {"_target_": 3, "path": "x"}, {"_target_": ["os.system"]},
    {"_target_": "ipo_lightning.backbones.cogvideox.Lora", "path": "x"},
    {"_target_": "ipo_lightning.backbones.wan.Wan", "path": "x", "_args_": [1]},
    {"_target_": "ipo_lightning.backbones.wan.Wan", "path": "x", "lora": {"_partial_": True}},
    {"_target_": "ipo_lightning.backbones.wan.Wan", "path": "x", "lora": [{"_target_": "os.x"}]},
    {"_target_": "ipo_lightning.backbones.wan.Wan", "path": "???"},
])  # fmt: skip
def test_a_backbone_that_is_none_is_refused(backbone: object, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"backbone": backbone}))
    with pytest.raises(InputError, match="config.yaml"):
        settings_beside(Checkpoint("lora", "x", file))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(300))
def test_damaged_settings_are_read_or_refused(seed: int) -> None:
    draw = random.Random(seed)
    text = OmegaConf.to_yaml(composed_once(), resolve=True)
    for _ in range(draw.randint(1, 8)):
        place = draw.randrange(len(text))
        text = draw.choice([text[:place], text[:place] + chr(draw.choice([0, 9, 10, 34, 38, 42, 58,
                            91, 123, 0x2028, 0xFEFF])) + text[place + 1 :]]) or "x"  # fmt: skip
    try:
        parsed(text)
    except ValueError as error:
        assert "\n" not in str(error)


def composed_once(known: list[object] = []) -> object:  # noqa: B006 - composed once for all
    if not known:
        known.append(composed("train"))
    return known[0]
