"""Exports in plain diffusers, the card beside them, and what would be published of them."""

import json
import re
import sys
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from diffusers import CogVideoXPipeline, WanPipeline
from huggingface_hub import constants
from hydra import compose, initialize_config_dir
from safetensors.torch import save_file

import sample as sample_module
from app.entry import CONF, REPO
from ipo_lightning.backbones.cogvideox import CogVideoX, Lora
from ipo_lightning.critics.protocols import Rating
from ipo_lightning.errors import InputError
from ipo_lightning.hub.cards import Base, Data, model_card, without_paths
from ipo_lightning.hub.upload import check_hub, published
from ipo_lightning.rounds.closing import started_with
from ipo_lightning.seeds import derive_seed, gaussian
from ipo_lightning.video import Clip
from tests.helpers import tiny, tiny_wan
from tests.helpers.hub import Hub, hub_server
from train import train

PROMPT = "a red ring moving left"


class Bright:
    """Mean brightness; a critic of any videos."""

    identity = "bright@1"

    def load(self, device: str) -> None:
        """Nothing."""

    def release(self) -> None:
        """Nothing."""

    def rate(self, clips: Sequence[Clip], prompts: Sequence[str]) -> list[Rating]:
        """One rating a clip."""
        return [Rating(clip.frames.float().mean().item() / 255) for clip in clips]


class Dark(Bright):
    """The contrary."""

    identity = "dark@1"

    def rate(self, clips: Sequence[Clip], prompts: Sequence[str]) -> list[Rating]:
        """One rating a clip."""
        return [Rating(1 - one.score) for one in super().rate(clips, prompts)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models, prompts, critics and runs of this file lie."""
    root = tmp_path_factory.mktemp("export")
    tiny.save_pipeline(root / "cogvideox", "5b")
    tiny_wan.save_pipeline(root / "wan")
    words = [f"a red ring moving {way} {i}" for way in ("left", "right") for i in range(80)]
    (root / "prompts.txt").write_text("\n".join(words))
    for group, name in (("critic", "Bright"), ("eval_critic", "Dark")):
        (root / "conf" / group).mkdir(parents=True)
        (root / "conf" / group / "any.yaml").write_text(f"_target_: tests.hub.test_export.{name}\n")
    return root


WAN = ("backbone=wan_1_3b", "backbone.num_frames=9", "backbone.height=16", "backbone.width=32",
       "backbone.text_length=6", "backbone.shift=null", "backbone.checkpointing=false")  # fmt: skip
FAMILIES = {"cogvideox": (), "wan": WAN}
ADAPTER = "{_target_: ipo_lightning.backbones.FAMILY.Lora, rank: 2, alpha: 7}"


def words(place: Path, family: str, adapter: bool) -> list[str]:
    """The settings of a run of one round."""
    given = [
        f"hydra.searchpath=[file://{place}/conf]", "data=file", "critic=any",
        "eval_critic=any", f"data.prompts.path={place}/prompts.txt", *FAMILIES[family],
        f"backbone.path={place / family}", f"backbone.lora={ADAPTER if adapter else 'null'}",
        f"paths.outputs={place}/outputs", f"name={family}{'-lora' if adapter else ''}",
        "rollout.prompts=2", "rollout.n=2", "rollout.steps=3", "rollout.guidance_scale=3",
        "data.optimizer_steps=3", "data.batch_size=2", "data.num_workers=0",
        "labelling.pair_rule.margin=0", "labelling.filters.motion_ratio=0", "evaluation.n=1",
        "evaluation.prompts=2", "evaluation.gauges=null", "evaluation.real_clips=null",
        "callbacks.videos=null", "callbacks.progress=null", "trainer.enable_progress_bar=false",
        "trainer.accelerator=cpu", "logger=none", "round=1", "optim.optimizer.lr=0.05",
    ]  # fmt: skip
    return [word.replace("FAMILY", family) for word in given]


@pytest.fixture(scope="module")
def runs(place: Path) -> Callable[[str, bool], Path]:
    """(family, adapter) -> a finished run of one round, made once."""

    def run(family: str, adapter: bool) -> Path:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", words(place, family, adapter))
        path = Path(cfg.paths.outputs) / cfg.name
        if not (path / "rounds.jsonl").exists():
            assert train(cfg)
        return path

    return run


KINDS = pytest.mark.parametrize(
    ("family", "adapter"),
    [(family, adapter) for family in FAMILIES for adapter in (False, True)],
    ids=lambda value: value if isinstance(value, str) else "lora" if value else "full",
)


def plain_pipeline(family: str, base: Path, policy: Path, adapter: bool) -> Any:
    """The pipeline as anybody would load it."""
    kind: Any = {"cogvideox": CogVideoXPipeline, "wan": WanPipeline}[family]
    if adapter:
        pipe = kind.from_pretrained(base)
        pipe.load_lora_weights(policy)
    else:
        names = {"cogvideox": "CogVideoXTransformer3DModel", "wan": "WanTransformer3DModel"}
        transformer = getattr(diffusers, names[family]).from_pretrained(policy)
        pipe = kind.from_pretrained(base, transformer=transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.slow
@KINDS
def test_a_rounds_policy_makes_the_same_video_in_plain_diffusers(
    family: str,
    adapter: bool,
    runs: Callable[[str, bool], Path],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """From a run to its export, to a stock pipeline, to the pixels of sample.py."""
    run, seen = runs(family, adapter), []
    monkeypatch.setattr(sample_module, "write", lambda file, clip, scale: (
        seen.append(clip.frames), (file.parent.mkdir(exist_ok=True), file.touch())))  # fmt: skip
    monkeypatch.setattr(sample_module, "write_sheet", lambda made, prompts: None)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        sample_module.sample(
            compose("sample", [f"ckpt={run}/round_1", f"prompt={PROMPT}",
                               f"paths.outputs={tmp_path}", "trainer.accelerator=cpu"])
        )  # fmt: skip
    size = {"cogvideox": (tiny.FRAMES, tiny.HEIGHT, tiny.WIDTH),
            "wan": (tiny_wan.FRAMES, tiny_wan.HEIGHT, tiny_wan.WIDTH)}[family]  # fmt: skip
    shape = {"cogvideox": tiny.LATENT_SHAPE, "wan": tiny_wan.LATENT_SHAPE}[family]

    def video(pipe: Any) -> torch.Tensor:
        made = pipe(
            PROMPT, negative_prompt="", num_frames=size[0], height=size[1], width=size[2],
            num_inference_steps=3, guidance_scale=3.0, max_sequence_length=tiny.NUM_TOKENS,
            latents=gaussian(derive_seed(0, "sample", 0), shape)[None], output_type="np",
        ).frames[0]  # fmt: skip
        return (torch.from_numpy(made) * 255).round().int()

    pipe = plain_pipeline(family, place / family, run / "round_1" / "policy", adapter)
    off = (video(pipe) - seen[0].int()).abs()
    assert off.max() <= 1 and off.count_nonzero() < 2e-3 * off.numel()  # roundings that fell apart
    untrained = type(pipe).from_pretrained(place / family)
    untrained.set_progress_bar_config(disable=True)
    assert (video(untrained) - seen[0].int()).abs().max() > 3, "training moved the policy visibly"


# -------------------------------------------------------------------- cards


def front_and_body(card: str) -> tuple[dict[str, Any], str]:
    """The front matter as a hub reads it, and the rest."""
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), body


@pytest.mark.slow
@KINDS
def test_the_cards_program_makes_a_video(
    family: str,
    adapter: bool,
    runs: Callable[[str, bool], Path],
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But for the GPU, and with the folders that a local card leaves to the reader."""
    policy = runs(family, adapter) / "round_1" / "policy"
    front, body = front_and_body((policy / "README.md").read_text())
    assert front["library_name"] == "diffusers" and front["pipeline_tag"] == "text-to-video"
    assert ("lora" in front["tags"]) == adapter
    assert (front["license"], "base_model" in front) == ("unknown", False)
    program = re.search(r"```python\n(.*?)```", body, re.DOTALL)[1]
    changes = {
        "folder/of/the/base/model": str(place / family),
        '"policy"': f'"{policy}"',
        '.to("cuda")': "",
    }
    for more in ({}, {", dtype=torch.bfloat16": ""}):
        made = run_program(program, monkeypatch, tmp_path, changes | more)
        assert made == [(9, "video.mp4", 8 if family == "cogvideox" else 16)]


def run_program(
    program: str, monkeypatch: pytest.MonkeyPatch, folder: Path, changes: dict[str, str]
) -> list[tuple[int, str, int]]:
    """What a card's program writes: frames, name, frames a second."""
    for ours, theirs in changes.items():
        assert ours in program
        program = program.replace(ours, theirs)
    monkeypatch.chdir(folder)
    written = []

    def export_to_video(frames: Any, path: str, fps: int) -> None:
        """diffusers' own wants OpenCV or imageio, which is no dependency here."""
        written.append((len(frames), path, fps))

    monkeypatch.setattr("diffusers.utils.export_to_video", export_to_video)
    exec(compile(program, "card", "exec"), {})  # noqa: S102 - what the card tells readers to run
    return written


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [False, True])
def test_the_shipped_models_card_runs_in_a_clone(
    adapter: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its text encoder is stored in half precision, which transformers keeps."""
    shipped = REPO / "ipo_lightning/shapes/pipeline"
    lora = Lora(rank=2, alpha=2) if adapter else None
    policy = CogVideoX(str(shipped), lora=lora)
    policy.export(policy.build(), tmp_path)
    settings = yaml.safe_dump({"rollout": {"steps": 2, "guidance_scale": 2.0}})
    text = card(str(shipped), adapter, settings=settings)
    program = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert "dtype=" not in program
    changes = {'"policy"': f'"{tmp_path}"', '.to("cuda")': ""}
    assert run_program(program, monkeypatch, REPO, changes) == [(9, "video.mp4", 8)]


def test_a_card_tells_losses_data_and_scores_and_no_folder(
    runs: Callable[[str, bool], Path], place: Path
) -> None:
    run = runs("cogvideox", True)
    card = (run / "round_1" / "policy" / "README.md").read_text()
    line = json.loads((run / "rounds.jsonl").read_text().splitlines()[1])
    for told in ("dpo_loss (beta 1000.0", "| 1 | 2 | 4 |", "winners 40.0", "Bright", "Dark",
                 str(line["policy"]), "0, the base", "path: prompts.txt", "On 2 prompts",
                 "2 videos in all"):  # fmt: skip
        assert told in card, told
    assert str(place) not in card and str(REPO) not in card and "/tmp" not in card
    assert "outputs" not in card


def test_the_command_is_that_of_train_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert started_with() == [], "a test is no run"
    monkeypatch.setattr(sys, "argv", ["/home/me/clone/train.py", "name=a", "data.x=[1, 2]"])
    told = card("zai-org/CogVideoX-2b", command=started_with())
    assert "- command: `python train.py name=a 'data.x=[1, 2]'`" in told


LINE = {"round": 2, "score": 0.5, "score_se": 0.01, "eval_score": 0.6, "eval_score_se": 0.02,
        "win_rate": 0.7, "win_rate_ci": [0.6, 0.8], "n_pairs": 9, "gauges": {"motion": 1.5},
        "policy": "abc"}  # fmt: skip


def card(path: str, adapter: bool = False, **more: Any) -> str:
    base = Base("model", path, None, "CogVideoXPipeline", "CogVideoXTransformer3DModel")
    given = {
        "name": "run",
        "lines": [LINE],
        "data": [Data(1, 5, 20)],
        "held_out": Data(2, 7, 14),
        "settings": "",
        **more,
    }
    return model_card(base=base, adapter=adapter, **given)


@pytest.mark.parametrize(
    ("path", "licence"),
    [
        ("zai-org/CogVideoX-2b", {"license": "apache-2.0"}),
        ("Wan-AI/Wan2.1-T2V-14B-Diffusers", {"license": "apache-2.0"}),
        ("zai-org/CogVideoX1.5-5B", {
            "license": "other", "license_name": "cogvideox",
            "license_link": "https://huggingface.co/zai-org/CogVideoX1.5-5B/blob/main/LICENSE",
        }),
        ("Fudan-FUXI/IPOC-2B-v1.0", {
            "license": "other", "license_name": "base-model",
            "license_link": "https://huggingface.co/Fudan-FUXI/IPOC-2B-v1.0",
        }),
    ],
)  # fmt: skip
def test_licence_of_the_base(path: str, licence: dict[str, str]) -> None:
    for adapter, relation in ((False, "finetune"), (True, "adapter")):
        front, body = front_and_body(card(path, adapter))
        assert {key: front[key] for key in front if key.startswith("license")} == licence
        assert front["base_model"] == path and front["base_model_relation"] == relation
        assert licence.get("license_link", licence["license"]) in body
        assert f'"{path}"' in body


def test_the_shipped_models_licence() -> None:
    front, _ = front_and_body(card(str(REPO / "ipo_lightning/shapes/pipeline")))
    assert front["license"] == "apache-2.0" and "base_model" not in front


def test_strangers_words_break_neither_yaml_nor_markdown() -> None:
    name = "a | b\n# <img src=x> `c` ![d](e)\n---\nlicense: mit"
    settings = yaml.safe_dump({
        "loss": {"_target_": "x.f", "note": "``` \n# not a heading"},
        "data": {"prompts": {"path": "/home/me/secret/prompts.txt"}},
        "paths": {"outputs": "/home/me"}, "rollout": {"negative_prompt": "and/or --- ```"},
    })  # fmt: skip
    command = ["python", "train.py", "hydra.searchpath=[file:///home/me/conf]", "`rm -rf`"]
    text = card("zai-org/CogVideoX-2b", name=name, settings=settings, command=command)
    front, body = front_and_body(text)
    assert front.keys() == front_and_body(card("zai-org/CogVideoX-2b"))[0].keys()
    assert front["license"] == "apache-2.0"
    headings = [line for line in body.splitlines() if line.startswith("#")]
    assert len([one for one in headings if one.startswith("# ")]) == 1
    assert r"\<img src=x\>" in headings[0] and "license: mit" in headings[0]
    assert "/home/me" not in text and "and/or" in text
    block = re.search(r"^(`{3,})yaml\n(.*?)\n\1$", body, re.MULTILINE | re.DOTALL)
    assert yaml.safe_load(block[2])["rollout"] == {"negative_prompt": "and/or --- ```"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/prompts.txt", "prompts.txt"), ("~/models/x", "x"), ("../up/x", "x"),
        ("path=/a/b,c", "path=b,c"), ("file:///a/b", "b"), ("{path:/a/b}", "{path:b}"),
        ("zai-org/CogVideoX-2b", "zai-org/CogVideoX-2b"), ("a cat / a dog", "a cat / a dog"),
        ("https://huggingface.co/x/y", "https://huggingface.co/x/y"), ("data/x.txt", "data/x.txt"),
    ],
)  # fmt: skip
def test_paths_of_this_machine_are_cut_to_their_last_part(text: str, shown: str) -> None:
    assert without_paths(text) == shown


# -------------------------------------------------------------------- publishing


@KINDS
def test_nothing_but_weights_config_and_card_is_published(
    family: str, adapter: bool, runs: Callable[[str, bool], Path], place: Path
) -> None:
    """And nothing of these names a folder of this machine."""
    policy = runs(family, adapter) / "round_1" / "policy"
    (policy / "notes.txt").write_text("mine")
    names = {one.path_in_repo for one in published(policy)}
    weights = {"pytorch_lora_weights.safetensors"} if adapter else {
        "config.json", "diffusion_pytorch_model.safetensors"}  # fmt: skip
    assert names == {"README.md", *weights}
    for name in names:
        assert str(place).encode() not in (policy / name).read_bytes()


def test_a_file_that_names_a_folder_is_not_published(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("card")
    with pytest.raises(InputError, match="no weights"):
        published(tmp_path)
    header = {"lora": json.dumps({"base_model_name_or_path": "/home/me/models/x"})}
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", metadata=header)
    with pytest.raises(InputError, match=r"its lora base_model_name_or_path names a folder"):
        published(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": "../models/x"}))
    with pytest.raises(InputError, match=r"its _name_or_path names a folder"):
        published(tmp_path)


@pytest.mark.slow
def test_an_upload_that_would_fail_is_refused_before_the_run(
    compose_train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(repo: str) -> str:
        with pytest.raises(InputError) as error:
            train(compose_train(f"push_to_hub={repo}"))
        return str(error.value)

    assert compose_train().push_to_hub is None
    assert "HF_HUB_OFFLINE is set" in refused("me/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    assert "there is no token" in refused("me/model")
    assert "give OWNER/NAME" in refused("model")
    assert "push_to_hub=me/a--b" in refused("me/a--b")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    check_hub("me/model")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """See `hub_server`."""
    with hub_server(monkeypatch) as server:
        yield server


def publish_again(place: Path) -> None:
    """The command of the adapter run of CogVideoX, which is finished, with a wish to publish."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*words(place, "cogvideox", True), "push_to_hub=me/model"])
    train(cfg)


@pytest.mark.slow
def test_what_a_hub_receives(
    hub: Hub,
    runs: Callable[[str, bool], Path],
    place: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A private repository, one commit of the policy's files; the token in the header alone."""
    policy = runs("cogvideox", True) / "round_1" / "policy"
    capfd.readouterr()
    publish_again(place)
    out, err = capfd.readouterr()
    assert out.splitlines()[-1] == f"published: {hub.address}/me/model"
    create = next(json.loads(body) for path, _, body in hub.asked if path.endswith("create"))
    assert (create["name"], create["organization"]) == ("model", "me")
    assert create.get("private") is True or create.get("visibility") == "private"
    commit = next(body for path, _, body in hub.asked if "/commit/" in path)
    rows = [json.loads(row) for row in commit.splitlines()]
    sent = {row["value"]["path"]: b64decode(row["value"]["content"])
            for row in rows if row["key"] == "file"}  # fmt: skip
    assert sent.keys() == {"README.md", "pytorch_lora_weights.safetensors"}
    assert all(content == (policy / name).read_bytes() for name, content in sent.items())
    # diffusers counts its users in a thread of its own: these requests carry no token.
    ours = [headers for path, headers, _ in hub.asked if "telemetry" not in path]
    assert ours and all(headers["authorization"] == "Bearer hf_secret" for headers in ours)
    assert not any(b"hf_secret" in body for _, _, body in hub.asked)
    assert "hf_secret" not in out + err
    files = [file for file in policy.parent.parent.rglob("*") if file.is_file()]
    assert not any(b"hf_secret" in file.read_bytes() for file in files)


@pytest.mark.slow
def test_a_hub_that_refuses_is_told_of_in_a_sentence(
    hub: Hub, runs: Callable[[str, bool], Path], place: Path
) -> None:
    runs("cogvideox", True)
    hub.status = 403
    with pytest.raises(InputError, match=r"push_to_hub=me/model: .*nothing is lost") as error:
        publish_again(place)
    assert "hf_secret" not in str(error.value) and "\n" not in str(error.value)
