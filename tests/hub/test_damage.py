"""Damaged checkpoints of every kind end in a sentence with the cause, or load as they were."""

import io
import json
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from app.entry import build
from app.sample_settings import backbone_of, sampling_of, settings_beside
from ipo_lightning.backbones.cogvideox import Lora
from ipo_lightning.errors import InputError, readable
from ipo_lightning.hub.checkpoints import TRANSFORMER_FILE, find_checkpoint, load_into
from ipo_lightning.policy import LORA_FILE, trained_weights
from tests.backbones.test_cogvideox import moved
from tests.conftest import composed
from tests.helpers import tiny
from tests.helpers.damaged import Evil, dead_link, folder, saved
from tests.hub.test_checkpoints import shards

KINDS = ("transformer", "lora", "lightning", "pipeline")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_pipeline(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each kind, and a run."""
    folder = tmp_path_factory.mktemp("made")
    for kind, lora in (("transformer", None), ("lora", Lora(rank=2, alpha=3))):
        policy = tiny.policy(base, lora=lora)
        network = moved(policy.build(), by=0.1)
        policy.export(network, folder / kind)
        state = {f"network.{name}": w for name, w in trained_weights(network).items()}
        if lora is None:
            (folder / "lightning").mkdir()
            content = {"ipo_lightning": {"base": policy.identity}, "state_dict": state}
            torch.save(content, folder / "lightning" / "epoch=1.ckpt")
    shutil.copytree(base, folder / "pipeline")
    run = folder / "run"
    (run / "round_0").mkdir(parents=True)
    shutil.copytree(folder / "transformer", run / "round_1" / "policy")
    (run / "rounds.jsonl").write_text('{"round": 0}\n{"round": 1}\n')
    ours = {"_target_": "ipo_lightning.backbones.cogvideox.CogVideoX", "path": str(base)}
    sampling = {"steps": 2, "guidance_scale": 3.0, "negative_prompt": ""}
    (run / "config.yaml").write_text(yaml.safe_dump({"backbone": ours, "rollout": sampling}))
    return folder


def opened(ckpt: Path, base: Path) -> nn.Module:
    """What sample.py does before it draws."""
    checkpoint = find_checkpoint(str(ckpt))
    cfg = composed("sample", "ckpt=x", "prompt=x")
    if checkpoint.config is None:
        path = checkpoint.path if checkpoint.kind == "pipeline" else base
        return load_into(checkpoint, tiny.policy(Path(path)))
    saved = settings_beside(checkpoint)
    node = backbone_of(cfg, checkpoint, saved)
    with readable(checkpoint.config):
        policy = build(node, "backbone")
        policy.check_sampling(sampling_of(cfg, saved, node))
        _ = policy.size, policy.latent_shape, policy.objective()
    return load_into(checkpoint, policy)


def refused(ckpt: Path, base: Path) -> str:
    with pytest.raises(InputError) as error:
        opened(ckpt, base)
    said = str(error.value)
    assert said.count("\n") < 3 and len(said) < 900, said
    assert "weights_only" not in said and "hub" not in said.lower(), said
    return said


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def garbage(file: Path) -> None:
    file.write_bytes(random.Random(0).randbytes(5000))


def text(file: Path) -> None:
    file.write_text("<html>404 Not Found</html>")


def pointer(file: Path) -> None:
    """What git leaves where LFS is not installed."""
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")


def missing(file: Path) -> None:
    file.unlink()


def huge_header(file: Path) -> None:
    file.write_bytes((2**62).to_bytes(8, "little") + b"{}")


WEIGHTS = {
    "transformer": Path("transformer") / TRANSFORMER_FILE,
    "lora": Path("lora") / LORA_FILE,
    "lightning": Path("lightning") / "epoch=1.ckpt",
    "pipeline": Path("pipeline") / "transformer" / TRANSFORMER_FILE,
    "run": Path("run") / "round_1" / "policy" / TRANSFORMER_FILE,
}
DAMAGES = (truncate, empty, garbage, text, pointer, folder, dead_link, missing, huge_header)


@pytest.mark.slow
@pytest.mark.parametrize("by_file", [False, True], ids=["folder", "file"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda one: one.__name__)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_damaged_weights_are_refused(
    kind: str, damage: Callable[[Path], None], by_file: bool, made: Path, base: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / kind, tmp_path / kind)
    file = tmp_path / WEIGHTS[kind]
    damage(file)
    if by_file:
        if kind in ("pipeline", "run") or (damage is folder and kind == "transformer"):
            pytest.skip("asked by its folder alone")
        refused(file, base)
    elif kind != "lightning":
        refused(tmp_path / kind, base)


def rewrite(change: Callable[[dict[str, torch.Tensor]], dict[str, Any]]) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        save_file(change(load_file(file)), file)

    return damage


CONTENT: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, Any]]] = {
    "no tensors": lambda found: {},
    "one is missing": lambda found: dict(list(found.items())[1:]),
    "one too many": lambda found: {**found, "more.weight": torch.ones(2)},
    "wrong shapes": lambda found: {k: w[None].clone() for k, w in found.items()},
    "not finite": lambda found: {k: w * float("nan") for k, w in found.items()},
    "other names": lambda found: {f"x.{k}": w for k, w in found.items()},
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CONTENT)
@pytest.mark.parametrize("kind", ["transformer", "lora", "run"])
def test_weights_that_do_not_fit_are_refused(
    kind: str, change: str, made: Path, base: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / kind, tmp_path / kind)
    rewrite(CONTENT[change])(tmp_path / WEIGHTS[kind])
    refused(tmp_path / kind, base)


@pytest.mark.parametrize("part", ["transformer"])
def test_a_pipeline_with_a_weight_missing_is_not_filled_with_noise(
    part: str, made: Path, base: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / "pipeline", tmp_path / "pipeline")
    rewrite(CONTENT["one is missing"])(tmp_path / "pipeline" / part / TRANSFORMER_FILE)
    assert "1 of the weights of its transformer are missing" in refused(tmp_path / "pipeline", base)


TEXTS = {"empty": "", "cut": '{"_class_name": "Cog', "list": "[1]", "null": "null", "number": "3",
         "noise": "\x00\x01\ufffd", "deep": "[" * 100_000,
         "other": '{"_class_name": "X"}'}  # fmt: skip


def named(damage: Any) -> str:
    """A kind of damage in a test's name, equal in every process."""
    return getattr(damage, "__name__", str(damage))


@pytest.mark.parametrize("damage", [*TEXTS, folder, dead_link], ids=named)
@pytest.mark.parametrize("file", ["transformer/config.json", "run/round_1/policy/config.json",
                                  "pipeline/model_index.json", "pipeline/transformer/config.json",
                                  "pipeline/scheduler/scheduler_config.json",
                                  "pipeline/vae/config.json"])  # fmt: skip
def test_damaged_configs_are_refused(
    file: str, damage: Any, made: Path, base: Path, tmp_path: Path
) -> None:
    if (file, damage) == ("pipeline/scheduler/scheduler_config.json", "other"):
        pytest.skip("a scheduler may leave out what is at its default")
    kind = file.partition("/")[0]
    shutil.copytree(made / kind, tmp_path / kind)
    if callable(damage):
        damage(tmp_path / file)
    else:
        (tmp_path / file).write_text(TEXTS[damage])
    with pytest.raises(InputError) as error:
        checkpoint = find_checkpoint(str(tmp_path / kind))
        policy = tiny.policy(Path(checkpoint.path) if checkpoint.kind == "pipeline" else base)
        _ = policy.latent_shape, policy.scheduler, policy.identity
        load_into(checkpoint, policy)
    assert str(error.value).count("\n") < 3 and "hub" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [*TEXTS, folder], ids=named)
@pytest.mark.parametrize("file", ["config.yaml", "rounds.jsonl"])
def test_damaged_files_of_a_run_are_refused(
    file: str, damage: Any, made: Path, base: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    if callable(damage):
        damage(tmp_path / "run" / file)
    else:
        (tmp_path / "run" / file).write_text(TEXTS[damage])
    refused(tmp_path / "run", base)


def test_a_run_without_its_settings_is_told(made: Path, base: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.warns(UserWarning, match="has no config.yaml: backbone and sampling are not"):
        opened(tmp_path / "run", base)


def test_the_run_is_whole_before_it_is_damaged(made: Path, base: Path) -> None:
    for kind in WEIGHTS:
        opened(made / WEIGHTS[kind] if kind == "lightning" else made / kind, base)


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "3",
        '{"round": "x"}',
        '{"round": null}',
        '{"score": 1}',
        '{"round": 99}',
        '{"round": 1e400}',
        '{"round": -1}',
    ],
)
def test_odd_lines_of_rounds_are_refused(
    line: str, made: Path, base: Path, tmp_path: Path
) -> None:  # fmt: skip
    shutil.copytree(made / "run", tmp_path / "run")
    (tmp_path / "run" / "rounds.jsonl").write_text(line + "\n")
    refused(tmp_path / "run", base)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [
    {"rollout": 3}, {"rollout": {"steps": "many"}}, {"rollout": {"steps": None}},
    {"rollout": {"guidance_scale": [1]}}, {"rollout": {"scheduler": {"a": 1}}},
    {"rollout": {"scheduler": "none"}}, {"backbone": {"height": "tall"}},
    {"backbone": {"num_frames": [9]}}, {"backbone": {"path": 3}}, {"backbone": {"path": None}},
    {"backbone": {"nonsense": 1}}, {"backbone": {"weights": {"a": 1}}},
    {"backbone": {"path": "x" * 5000}},
])  # fmt: skip
def test_odd_settings_of_a_run_are_refused(
    settings: dict[str, Any], made: Path, base: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    for group, values in settings.items():
        config[group] = {**config[group], **values} if isinstance(values, dict) else values
    file.write_text(yaml.safe_dump(config))
    with pytest.raises(InputError) as error:
        opened(tmp_path / "run", base)
    assert str(error.value).count("\n") < 3 and len(str(error.value)) < 6000


def test_shards_that_are_missing_are_named(made: Path, base: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "transformer", tmp_path / "parts")
    weights = load_file(tmp_path / "parts" / TRANSFORMER_FILE)
    names = [f"diffusion_pytorch_model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    save_file(weights, tmp_path / "parts" / names[0])
    (tmp_path / "parts" / TRANSFORMER_FILE).unlink()
    index = {"weight_map": {key: names[k % 2] for k, key in enumerate(weights)}}
    (tmp_path / "parts" / f"{TRANSFORMER_FILE}.index.json").write_text(json.dumps(index))
    assert f"as {names[1]}" in refused(tmp_path / "parts", base)


# -------------------------------------------------------------------- Lightning checkpoints


def broken_directory(content: bytes) -> bytes:
    place = content.rindex(b"PK\x05\x06")
    return content[:place] + b"\x00" * (len(content) - place)


def without(content: bytes, ending: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            if not name.endswith(ending):
                new.writestr(name, old.read(name))
    return buffer.getvalue()


CKPTS: dict[str, Callable[[bytes], bytes]] = {
    "code": lambda good: saved({"state_dict": Evil()}),
    "code at its root": lambda good: saved(Evil()),
    "a plain pickle with code": lambda good: pickle.dumps(Evil()),
    "a plain pickle": lambda good: pickle.dumps({"a": 1}),
    "a class": lambda good: saved({"ipo_lightning": Path("x")}),
    "a list": lambda good: saved([1]),
    "nothing of ours": lambda good: saved({"state_dict": {}}),
    "base is a list": lambda good: saved({"ipo_lightning": [1], "state_dict": {}}),
    "state is a list": lambda good: saved({"ipo_lightning": {"base": "x"}, "state_dict": [1]}),
    "state of numbers": lambda good: saved({"ipo_lightning": {"base": "x"},
                                            "state_dict": {"a": 1}}),
    "another base": lambda good: saved({"ipo_lightning": {"base": "x"}, "state_dict": {}}),
    "no directory": broken_directory,
    "no data": lambda good: without(good, "data.pkl"),
    "no tensors": lambda good: without(good, "data/3"),
    "a zip": lambda good: without(good, ""),
    "another's": lambda good: b"PK\x03\x04" + good[4:300],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", CKPTS)
def test_checkpoints_that_are_none_are_refused(
    kind: str, made: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "odd.ckpt"
    file.write_bytes(CKPTS[kind]((made / WEIGHTS["lightning"]).read_bytes()))
    said = refused(file, base)
    assert not (tmp_path / "owned").exists()
    if "code" in kind:
        assert "it is not opened" in said


@pytest.mark.parametrize("name", [".", "..", "/", "", " ", "\x00", "a" * 5000, "/dev/null", "~",
                                  "x.ckpt", "x.safetensors", "//", "a\nb"])  # fmt: skip
def test_odd_paths_are_refused(name: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        opened(Path(name), base) if name else find_checkpoint(name)


def test_links_without_an_end_and_want_of_permission(
    made: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "is a link" in refused(tmp_path / "link", base)
    refused(tmp_path / "loop", base)
    shutil.copytree(made / "run", tmp_path / "run")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "somewhere")

    for method in ("stat", "read_bytes", "glob"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, method, denied)
            with pytest.raises(InputError, match="Permission denied"):
                find_checkpoint(str(tmp_path / "run"))
                opened(tmp_path / "run", base)


# -------------------------------------------------------------------- fuzz


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("kind", WEIGHTS)
def test_bytes_flipped_or_cut_are_refused_or_harmless(
    kind: str, seed: int, made: Path, base: Path, tmp_path: Path
) -> None:
    """Loaded weights are of the right names, shapes and finite; a byte of a value may differ."""
    draw = random.Random(f"{kind}{seed}")
    shutil.copytree(made / kind, tmp_path / kind)
    files = [one for one in sorted((tmp_path / kind).rglob("*")) if one.is_file()
             and "tokenizer" not in str(one) and "text_encoder" not in str(one)]  # fmt: skip
    file = draw.choice([tmp_path / WEIGHTS[kind], draw.choice(files)])
    content = bytearray(file.read_bytes())
    if draw.random() < 0.3:
        content = content[: draw.randrange(len(content))]
    for _ in range(draw.randint(1, 6) if content else 0):
        near = min(len(content), draw.choice([9, 300, 5000, len(content)]))
        content[draw.randrange(near)] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    ckpt = tmp_path / WEIGHTS[kind] if kind == "lightning" else tmp_path / kind
    try:
        network = opened(ckpt, base)
    except InputError as error:
        assert str(error).count("\n") < 3 and "weights_only" not in str(error)
    else:
        assert trained_weights(network)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_damaged_shards_are_refused_or_harmless(seed: int, base: Path, tmp_path: Path) -> None:
    draw, policy = random.Random(seed), tiny.policy(base)
    shards(policy, policy.build(), tmp_path / "update-3.ckpt")
    file = draw.choice(sorted(one for one in (tmp_path / "update-3.ckpt").iterdir()))
    content = bytearray(file.read_bytes())
    how = draw.choice(["cut", "flip", "flip", "flip", "delete", "folder", "empty"])
    if how == "cut":
        file.write_bytes(content[: draw.randrange(len(content))])
    elif how == "flip":
        for _ in range(draw.randint(1, 5)):
            content[draw.randrange(min(len(content), 6000))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
    else:
        {"delete": missing, "folder": folder, "empty": empty}[how](file)
    try:
        network = opened(tmp_path / "update-3.ckpt", base)
    except InputError as error:
        assert str(error).count("\n") < 3 and "weights_only" not in str(error)
    else:
        assert trained_weights(network)
