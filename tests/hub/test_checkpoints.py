"""Checkpoints of others: LoRA files by many names, hub repositories of any layout, shards."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from app.entry import REPO
from ipo_lightning.backbones.cogvideox import Lora
from ipo_lightning.errors import InputError
from ipo_lightning.hub.checkpoints import (
    ALONE,
    TRANSFORMER_FILE,
    Checkpoint,
    find_checkpoint,
    halve,
    load_into,
)
from ipo_lightning.policy import LORA_FILE, trained_weights
from tests.backbones.test_cogvideox import ask, moved
from tests.helpers import tiny, tiny_wan
from tests.helpers.commands import command
from tests.helpers.hub import hub_server
from tests.rounds.test_distributed import COMMON

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_pipeline(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model after somebody's training."""
    return tiny.save_pipeline(tmp_path_factory.mktemp("other") / "tiny", seed=1)


def answer(folder: Path, checkpoint: Checkpoint) -> Tensor:
    policy = tiny.policy(folder)
    with torch.no_grad():
        return ask(policy, load_into(checkpoint, policy))


def plain_answer(folder: Path) -> Tensor:
    policy = tiny.policy(folder)
    with torch.no_grad():
        return ask(policy, policy.build())


# -------------------------------------------------------------------- LoRA


def as_diffusers(weights: Weights, folder: Path) -> Path:
    return folder / LORA_FILE  # as it was exported, with its metadata


def with_alphas(name: Callable[[str], str]) -> Callable[[Weights, Path], Path]:
    """A file of other names, with an alpha beside each layer and no metadata."""

    def write(weights: Weights, folder: Path) -> Path:
        content = {name(key): weight for key, weight in weights.items()}
        down = [key for key in weights if ".lora_A." in key]
        content |= {name(key).partition(".lora")[0] + ".alpha": torch.tensor(5.0) for key in down}
        save_file(content, folder / "style.safetensors")
        return folder / "style.safetensors"

    return write


def kohya(key: str) -> str:
    layer, _, rest = key.removeprefix("transformer.").partition(".lora_")
    side = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight"}[rest]
    return f"lora_unet_{layer.replace('.', '_')}.{side}"


def as_peft(weights: Weights, folder: Path) -> Path:
    """As peft's own save_pretrained writes it: alpha in a file beside."""
    (folder / "peft").mkdir()
    content = {key.replace("transformer.", "base_model.model.", 1): w for key, w in weights.items()}
    save_file(content, folder / "peft" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 5.0, "target_modules": ["to_k", "to_q"],
              "base_model_name_or_path": "somewhere"}  # fmt: skip
    (folder / "peft" / "adapter_config.json").write_text(json.dumps(config))
    return folder / "peft"


FORMS = {
    "diffusers": as_diffusers,
    "bare names": with_alphas(lambda key: key.removeprefix("transformer.")),
    "old names": with_alphas(
        lambda key: key.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")
    ),
    "kohya": with_alphas(kohya),
    "peft": as_peft,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_lora_by_any_name_keeps_its_alpha(form: str, base: Path, tmp_path: Path) -> None:
    policy = tiny.policy(base, lora=Lora(rank=3, alpha=5, targets=("to_k", "to_q")))
    network = moved(policy.build(), by=0.5)
    policy.export(network, tmp_path)
    path = FORMS[form](load_file(tmp_path / LORA_FILE), tmp_path)
    with torch.no_grad():
        expected = ask(policy, network)
    found = find_checkpoint(str(path))
    assert found.kind == "lora"
    torch.testing.assert_close(answer(base, found), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(expected, plain_answer(base), atol=1e-3)


def test_a_wan_lora_of_kohyas_trainer_keeps_its_alpha(tmp_path: Path) -> None:
    """Converted by diffusers; such files have all layers of a block."""
    folder = tiny_wan.save_pipeline(tmp_path / "wan")
    every = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
    policy = tiny_wan.policy(folder, lora=Lora(rank=2, alpha=5, targets=every))
    network = moved(policy.build(), by=0.3)
    policy.export(network, tmp_path)
    names = {"attn1": "self_attn", "attn2": "cross_attn", "to_q": "q", "to_k": "k", "to_v": "v",
             "to_out.0": "o", "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"}  # fmt: skip

    def musubi(key: str) -> str:
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        return kohya(key)

    path = with_alphas(musubi)(load_file(tmp_path / LORA_FILE), tmp_path)
    plain = tiny_wan.policy(folder)
    question = tiny.normal(0, 2, *tiny_wan.LATENT_SHAPE)
    more = (torch.tensor([10.5, 900.25]), tiny.normal(1, 2, *tiny_wan.TEXT_SHAPE))
    with torch.no_grad():
        ours = policy.predict(network, question, *more)
        loaded = load_into(find_checkpoint(str(path)), plain)
        torch.testing.assert_close(plain.predict(loaded, question, *more), ours, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*no matching weights|.*keys:UserWarning")
def test_a_lora_of_another_model_is_refused_not_dropped(base: Path, tmp_path: Path) -> None:
    """diffusers itself loads what fits and goes on."""
    policy = tiny.policy(base, lora=Lora(rank=3, alpha=5, targets=("to_k",)))
    policy.export(policy.build(), tmp_path)
    weights = load_file(tmp_path / LORA_FILE)
    deeper = {key.replace("blocks.1.", "blocks.9."): weight for key, weight in weights.items()}
    save_file(deeper, tmp_path / "deeper.safetensors")
    plain = tiny.policy(base)
    with pytest.raises(InputError, match=r"deeper\.safetensors is no LoRA of this model"):
        plain.load_lora(plain.build(), tmp_path / "deeper.safetensors")


# -------------------------------------------------------------------- folders


def test_a_transformer_folder_stands_on_the_base(base: Path, other: Path, tmp_path: Path) -> None:
    shutil.copytree(other / "transformer", tmp_path / "bare")
    shutil.copytree(other / "transformer", tmp_path / "within" / "transformer")
    for folder in ("bare", "within"):
        found = find_checkpoint(str(tmp_path / folder))
        assert found.kind == "transformer"
        assert torch.equal(answer(base, found), plain_answer(other))


def test_a_transformer_in_several_files_is_read(base: Path, other: Path, tmp_path: Path) -> None:
    tiny.pipeline(seed=1).transformer.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    found = find_checkpoint(str(tmp_path / "parts"))
    assert torch.equal(answer(base, found), plain_answer(other))


def test_transformers_that_do_not_fit_are_refused(base: Path, tmp_path: Path) -> None:
    wan = tiny_wan.save_pipeline(tmp_path / "wan")
    rotary = tiny.save_pipeline(tmp_path / "5b", "5b")
    shutil.copytree(base / "transformer", tmp_path / "short")
    file = tmp_path / "short" / TRANSFORMER_FILE
    weights = load_file(file)
    for odd in (
        {name: w for name, w in weights.items() if "blocks.1." not in name},
        {**weights, "proj_out.weight": weights["proj_out.weight"][:1].clone()},
    ):
        save_file(odd, file)
        with pytest.raises(InputError, match=r"does not fit its base model: \d+ weights have"):
            answer(base, find_checkpoint(str(tmp_path / "short")))
    with pytest.raises(InputError, match=r"is a WanTransformer3DModel; .*give the backbone="):
        answer(base, find_checkpoint(str(wan / "transformer")))
    with pytest.raises(InputError, match=r"its use_rotary_positional_embeddings is True, not Fal"):
        answer(base, find_checkpoint(str(rotary / "transformer")))


def test_one_of_several_loras_must_be_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"x": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match=r"give one of its files, as .*a\.safetensors"):
        find_checkpoint(str(tmp_path))


# -------------------------------------------------------------------- hubs


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], None]:
    """Puts a folder into the local cache as a repository, as a download leaves it."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))

    def put(repo: str, files: Path) -> None:
        folder = cache / f"models--{repo.replace('/', '--')}"
        shutil.copytree(files, folder / "snapshots" / COMMIT)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(COMMIT)

    return put


@pytest.mark.filterwarnings("ignore:.*local_dir_use_symlinks:UserWarning")  # diffusers' own
def test_a_repository_with_a_whole_pipeline(other: Path, hub: Callable[[str, Path], None]) -> None:
    hub("Fudan-FUXI/IPOC-2B-v1.0", other)
    found = find_checkpoint("Fudan-FUXI/IPOC-2B-v1.0")
    assert found == Checkpoint("pipeline", "Fudan-FUXI/IPOC-2B-v1.0")
    assert torch.equal(answer(Path(found.path), found), plain_answer(other))
    pinned = find_checkpoint(f"Fudan-FUXI/IPOC-2B-v1.0@{COMMIT}")
    assert pinned == replace(found, revision=COMMIT)
    with pytest.raises(InputError, match="cannot be read"):
        find_checkpoint("Fudan-FUXI/IPOC-2B-v1.0@another")


@pytest.mark.parametrize("place", ["transformer", "."])
def test_a_repository_with_a_transformer_alone(
    place: str, base: Path, other: Path, hub: Callable[[str, Path], None], tmp_path: Path
) -> None:
    shutil.copytree(other / "transformer", tmp_path / "files" / place)
    hub("Fudan-FUXI/IPOC-2B-v1.0", tmp_path / "files")
    found = find_checkpoint("Fudan-FUXI/IPOC-2B-v1.0")
    assert found.kind == "transformer"
    assert torch.equal(answer(base, found), plain_answer(other))


def test_a_repository_with_a_lora(
    base: Path, hub: Callable[[str, Path], None], tmp_path: Path
) -> None:
    policy = tiny.policy(base, lora=Lora(rank=3, alpha=5, targets=("to_k", "to_q")))
    network = moved(policy.build(), by=0.5)
    policy.export(network, tmp_path / "files")
    as_peft(load_file(tmp_path / "files" / LORA_FILE), tmp_path)
    shutil.copy(tmp_path / "files" / LORA_FILE, tmp_path / "files" / "other.safetensors")
    hub("them/style", tmp_path / "files")
    hub("them/peft.style-v1.5", tmp_path / "peft")
    with torch.no_grad():
        expected = ask(policy, network)
    for ckpt in ("them/style", "them/style/other.safetensors", "them/peft.style-v1.5",
                 f"them/style@{COMMIT}/other.safetensors"):  # fmt: skip
        torch.testing.assert_close(answer(base, find_checkpoint(ckpt)), expected, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match=r"has no missing\.safetensors; it has other"):
        find_checkpoint("them/style/missing.safetensors")


def test_what_a_hub_cannot_give_is_named(hub: Callable[[str, Path], None], tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "notes.txt").write_text("nothing")
    hub("them/notes", tmp_path / "files")
    with pytest.raises(InputError, match=r"has no diffusers pipeline, .*; it has notes\.txt\."):
        find_checkpoint("them/notes")
    with pytest.raises(InputError, match="cannot be read: no network, and no copy in the local"):
        find_checkpoint("nobody/nothing-v1.0")


def test_what_a_hub_refuses_is_told(
    monkeypatch: pytest.MonkeyPatch, hub: Callable[[str, Path], None]
) -> None:
    """A server of the test's own answers as a hub does for a repository that is not there."""
    with hub_server(monkeypatch) as server:
        server.status = 401
        with pytest.raises(
            InputError, match="ckpt=them/secret cannot be read: .*401 Unauth"
        ) as error:
            find_checkpoint("them/secret")
    assert server.asked and "\n" not in str(error.value)


# -------------------------------------------------------------------- shards


def skip_old_torch() -> None:
    if not ALONE:
        pytest.skip("torch 2.6 writes an index that names getattr, which is not opened")


def shards(policy: Any, network: nn.Module, path: Path) -> Path:
    """A checkpoint as Lightning's FSDP2 strategy leaves it, of one rank."""
    skip_old_torch()
    state = {f"network.{name}": weight for name, weight in network.state_dict().items()}
    content = {"state_dict": state, "optimizer_0": {"param_groups": [{"lr": 1e-3}]}}
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(content, storage_writer=dcp.FileSystemWriter(path))
    torch.save({"ipo_lightning": {"base": policy.identity}}, path / "meta.pt")
    return path


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=3)], ids=["full", "lora"])
def test_a_sharded_checkpoint_is_put_together(
    lora: Lora | None, base: Path, tmp_path: Path
) -> None:
    policy = tiny.policy(base, lora=lora)
    network = moved(policy.build())
    path = shards(policy, network, tmp_path / "update-3.ckpt")
    found = find_checkpoint(str(path))
    assert found.kind == "lightning"
    loaded = trained_weights(load_into(found, tiny.policy(base, lora=lora)))
    assert loaded.keys() == trained_weights(network).keys()
    assert all(torch.equal(w, loaded[name]) for name, w in trained_weights(network).items())


def test_shards_of_another_adapter_or_base_are_refused(
    base: Path, other: Path, tmp_path: Path
) -> None:
    policy = tiny.policy(base, lora=Lora(rank=2, alpha=3))
    found = find_checkpoint(str(shards(policy, policy.build(), tmp_path / "update-3.ckpt")))
    with pytest.raises(InputError, match="does not fit its base model"):
        load_into(found, tiny.policy(base, lora=Lora(rank=4, alpha=3)))
    with pytest.raises(InputError, match="trained on another base model"):
        load_into(found, tiny.policy(other))


class Evil:
    """Runs a function when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


def test_an_index_that_names_code_is_not_opened(base: Path, tmp_path: Path) -> None:
    """Torch's own reader unpickles it."""
    policy = tiny.policy(base)
    path = shards(policy, policy.build(), tmp_path / "update-3.ckpt")
    (path / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "owned")))
    with pytest.raises(InputError, match=r"names posix\.mkdir, which is not opened"):
        load_into(find_checkpoint(str(path)), policy)
    assert not (tmp_path / "owned").exists()


def test_a_weight_that_is_a_pickle_is_not_opened(base: Path, tmp_path: Path) -> None:
    skip_old_torch()
    policy = tiny.policy(base)
    network = policy.build()
    name = next(iter(trained_weights(network)))
    state: dict[str, Any] = {f"network.{key}": w for key, w in network.state_dict().items()}
    state[f"network.{name}"] = Evil(tmp_path / "owned")
    path = tmp_path / "update-3.ckpt"
    with pytest.warns(UserWarning, match="single process"):
        dcp.save({"state_dict": state}, storage_writer=dcp.FileSystemWriter(path))
    torch.save({"ipo_lightning": {"base": policy.identity}}, path / "meta.pt")
    with pytest.raises(InputError, match="does not fit its base model: 1 weights"):
        load_into(find_checkpoint(str(path)), policy)
    assert not (tmp_path / "owned").exists()


@pytest.mark.slow
def test_what_two_ranks_wrote_is_the_rounds_policy(tmp_path: Path) -> None:
    """A run on two processes with sharded checkpoints; its last one has the exported weights."""
    words = [*COMMON, "trainer=fsdp", "trainer.devices=2", "round=1",
             "trainer.strategy.sharded_checkpoints=true", "data.batch_size=2",
             f"paths.outputs={tmp_path}"]  # fmt: skip
    command("train.py", *words).check_returncode()
    folder = tmp_path / "run" / "round_1"
    newest = max((folder / "checkpoints").glob("update-*.ckpt"))
    assert newest.is_dir() and len(list(newest.glob("*.distcp"))) == 2
    policy = tiny.policy(REPO / "ipo_lightning/shapes/pipeline")
    ours = trained_weights(load_into(find_checkpoint(str(newest)), policy))
    theirs = policy.load_export(folder / "policy")
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def test_half_the_bytes_but_for_what_a_family_keeps(base: Path, tmp_path: Path) -> None:
    policy = tiny.policy(base)
    network = policy.build()
    halve(network)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    wan = tiny_wan.policy(tiny_wan.save_pipeline(tmp_path / "wan")).build()
    halve(wan)
    kinds = {name.split(".")[0]: p.dtype for name, p in wan.named_parameters()}
    assert kinds["scale_shift_table"] == torch.float32 and kinds["proj_out"] == torch.bfloat16
