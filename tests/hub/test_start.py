"""``start=``: a LoRA merged or trained on, a transformer, a round of another run, and chains of
them; LoRAs merged into exported weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import CogVideoXTransformer3DModel
from omegaconf import DictConfig
from torch import Tensor, nn

from app.start import TARGET, resolve_start
from ipo_lightning.backbones.cogvideox import CogVideoX, Lora
from ipo_lightning.backbones.start import Start
from ipo_lightning.errors import InputError
from ipo_lightning.policy import LORA_FILE, trained_weights
from sample import sample
from tests.backbones.test_cogvideox import ask, moved
from tests.conftest import ComposeTrain, composed
from tests.helpers import tiny
from tests.hub.test_export import card
from train import train

LORA = Lora(rank=3, alpha=5, targets=("to_k", "to_q"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_pipeline(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of somebody's training."""
    policy, folder = tiny.policy(base, lora=LORA), tmp_path_factory.mktemp("lora")
    policy.export(moved(policy.build(), by=0.5), folder)
    return folder / LORA_FILE


def answer(policy: CogVideoX, network: nn.Module | None = None) -> Tensor:
    with torch.no_grad():
        return ask(policy, policy.build() if network is None else network)


def with_lora(base: Path, lora: Path) -> Tensor:
    policy = tiny.policy(base)
    network = policy.build()
    policy.load_lora(network, lora)
    return answer(policy, network)


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


# -------------------------------------------------------------------- the network


def test_a_merged_lora_is_the_new_base(base: Path, lora: Path) -> None:
    expected = with_lora(base, lora)
    assert not torch.allclose(expected, answer(tiny.policy(base)), atol=1e-3)
    whole = tiny.policy(base, start=Start(str(lora)))
    close(answer(whole), expected)
    names = trained_weights(tiny.policy(base).build()).keys()
    assert trained_weights(whole.build()).keys() == names, "all weights are trained as before"
    over = tiny.policy(base, start=Start(str(lora)), lora=Lora(rank=2, alpha=2))
    network = over.build()
    close(answer(over, network), expected)
    network.disable_adapters()
    close(answer(over, network), expected)


@pytest.mark.parametrize("own", [LORA, Lora(rank=3, alpha=1, targets=("to_q", "to_k"))])
def test_a_lora_is_trained_on(own: Lora, base: Path, lora: Path, tmp_path: Path) -> None:
    """With an alpha of its own; what is exported fits the plain base."""
    policy = tiny.policy(base, start=Start(str(lora), merge=False), lora=own)
    network = policy.build()
    close(answer(policy, network), with_lora(base, lora))
    assert all(".lora_" in name for name in trained_weights(network))
    policy.export(network, tmp_path)
    close(with_lora(base, tmp_path / LORA_FILE), with_lora(base, lora))


def test_a_transformer_takes_the_place_of_the_bases(base: Path, tmp_path: Path) -> None:
    trained = tiny.policy(base)
    network = moved(trained.build())
    trained.export(network, tmp_path / "policy")
    for adapter in (None, LORA):
        policy = tiny.policy(base, start=Start(str(tmp_path / "policy")), lora=adapter)
        close(answer(policy), answer(trained, network))
    other = tiny.save_pipeline(tmp_path / "5b", style="5b")
    with pytest.raises(InputError, match=r"start=\S+/policy does not fit its base model"):
        tiny.policy(other, start=Start(str(tmp_path / "policy"))).build()


def test_weights_in_bfloat16_are_rounded_once(base: Path, lora: Path) -> None:
    exact = trained_weights(tiny.policy(base, start=Start(str(lora))).build())
    half = trained_weights(tiny.policy(base, start=Start(str(lora)), weights="bfloat16").build())
    name = next(name for name in half if "to_k.weight" in name)
    assert half[name].dtype == torch.bfloat16
    plain = trained_weights(tiny.policy(base).build())[name]
    change = exact[name] - plain
    torch.testing.assert_close(half[name], (plain.bfloat16().float() + change).bfloat16())


def test_what_a_run_starts_from_is_part_of_its_identity(base: Path, lora: Path) -> None:
    found = {
        tiny.policy(base, **more).identity
        for more in (
            {},
            {"start": Start(str(lora))},
            {"start": Start(str(lora), before=Start(str(lora)))},
            {"start": Start(str(lora), merge=False), "lora": LORA},
        )
    }
    assert len(found) == 4
    with pytest.raises(InputError, match=r"backbone\.start\.path=gone\.safetensors: it is gone"):
        _ = tiny.policy(base, start=Start("gone.safetensors")).identity


@pytest.mark.parametrize(
    ("lora_settings", "said"),
    [
        (Lora(rank=2, alpha=5, targets=("to_k", "to_q")), "its rank is 3: give backbone.lora.rank"),
        (Lora(rank=3, alpha=5, targets=("to_k",)), "it has .*to_q.* other layers"),
        (Lora(rank=3, alpha=5), "it lacks .* other layers"),
        (None, "start.merge=false: true: no lora is trained"),
    ],
)
def test_a_lora_that_cannot_be_trained_on(
    lora_settings: Lora | None, said: str, base: Path, lora: Path
) -> None:
    with pytest.raises(InputError, match=said):
        tiny.policy(base, start=Start(str(lora), merge=False), lora=lora_settings).build()


# -------------------------------------------------------------------- the command line


def settled(compose: ComposeTrain, *words: str) -> DictConfig:
    cfg = compose(*words)
    resolve_start(cfg)
    return cfg


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("start=nowhere",), "start=nowhere: there is no such file or folder; of a hub, download"),
        (("start=docs",), "start=docs: neither a run, a round"),
        (("start_merge=true",), "start_merge=true: give start= as well"),
        (("experiment=shapes_lora", "reference=adapter", "start=LORA"), "give start_merge=true"),
    ],
)
def test_wrong_starts(
    words: tuple[str, ...], said: str, lora: Path, compose_train: ComposeTrain
) -> None:
    with pytest.raises(InputError, match=said):
        settled(compose_train, *(word.replace("LORA", str(lora)) for word in words))


def test_a_pipelines_transformer(base: Path, compose_train: ComposeTrain) -> None:
    start = settled(compose_train, f"start={base}").backbone.start
    assert start == {"_target_": TARGET, "path": f"{base}/transformer", "merge": True}


def test_a_run_that_starts_elsewhere_has_another_name(
    lora: Path, compose_train: ComposeTrain
) -> None:
    words = ("experiment=shapes_lora", f"start={lora}")
    names = {
        settled(compose_train, *some).name
        for some in (words[:1], words, (*words, "start_merge=true"))
    }
    assert len(names) == 3


# -------------------------------------------------------------------- runs


def line(cfg: DictConfig, number: int) -> dict[str, Any]:
    rows = (Path(cfg.paths.outputs) / cfg.name / "rounds.jsonl").read_text().splitlines()
    found: dict[str, Any] = json.loads(rows[number])
    return found


@pytest.mark.slow
def test_runs_that_start_from_each_other(begun: ComposeTrain) -> None:
    """Round 0 of each is the policy that the one before ended with, through merged adapters and
    adapters that are trained on; the last one's export needs what its base began with."""
    adapter = ("experiment=shapes_lora", "round=1")
    first = begun(*adapter, "name=first")
    train(first)
    folder = Path(first.paths.outputs)

    def next_one(name: str, before: DictConfig, *words: str) -> DictConfig:
        cfg = begun(*words, "round=1", f"name={name}", f"start={folder}/{before.name}/round_1")
        train(cfg)
        assert line(cfg, 0)["eval_score"] == pytest.approx(line(before, 1)["eval_score"], abs=1e-4)
        return cfg

    merged = next_one("merged", first, *adapter, "start_merge=true")
    onward = next_one("onward", merged, *adapter)
    whole = next_one("whole", onward, "loss=sft")
    told = yaml.safe_load((folder / "whole" / "config.yaml").read_text())["backbone"]["start"]
    assert [told["path"].split("/")[-4], told["before"]["path"].split("/")[-4]] == [
        "onward", "first"
    ], "what onward was trained on is in its own LoRA"  # fmt: skip
    text = (folder / "onward/round_1/policy/README.md").read_text()
    assert "- started from: `first/round_1 (merged), then merged/round_1 (trained on)`" in text
    assert text.index('load_lora_weights("folder/of/first/round_1")') < text.index(
        'load_lora_weights("policy")'
    )
    exported_is_sampled(folder, "onward", whole)


def exported_is_sampled(folder: Path, name: str, cfg: DictConfig) -> None:
    """`sample.py` writes the merged weights of a chain, which plain diffusers loads."""
    words = (f"ckpt={folder}/{name}/round_1", f"export={folder}/weights")
    assert sample(composed("sample", *words, outputs=folder)) == []
    network = CogVideoXTransformer3DModel.from_pretrained(folder / "weights")
    policy = CogVideoX(str(cfg.backbone.path), start=Start(str(folder / "weights")))
    ours, theirs = trained_weights(policy.build()), dict(network.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    start = Start(f"{folder}/first/round_1/policy/{LORA_FILE}")
    chain = Start(f"{folder}/{name}/round_1/policy/{LORA_FILE}", before=start)
    direct = trained_weights(CogVideoX(str(cfg.backbone.path), start=chain).build())
    assert all(torch.equal(ours[key], direct[key]) for key in ours)
    with pytest.raises(InputError, match="it is there and not empty"):
        sample(composed("sample", *words, outputs=folder))


def node(path: str, **more: Any) -> Mapping[str, Any]:
    return {"_target_": TARGET, "path": path, "merge": True, **more}


@pytest.mark.parametrize(
    ("start", "adapter", "told", "absent"),
    [
        (node("/x/a.safetensors"), True, ['weights("folder/of/a', "fuse_lora"], ["transformer="]),
        (node("/x/tuned"), True, ['from_pretrained("folder/of/tuned"', "transformer="], ["fuse_"]),
        (node("/x/tuned"), False, ['from_pretrained("policy"'], ["folder/of/tuned", "fuse_"]),
        (node("/x/a.safetensors", merge=False), True, ['weights("policy")'], ["fuse_lora"]),
    ],
)
def test_a_card_says_what_a_policy_lies_over(
    start: Mapping[str, Any], adapter: bool, told: list[str], absent: list[str]
) -> None:
    settings = yaml.safe_dump({"backbone": {"start": dict(start)}})
    text = card("zai-org/CogVideoX-2b", adapter, settings=settings).partition("## Settings")[0]
    assert "- started from: `" in text and "/x/" not in text
    assert all(one in text for one in told) and not any(one in text for one in absent)
