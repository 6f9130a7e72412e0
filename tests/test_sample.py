"""sample.py makes one and the same video of every form of a checkpoint."""

import json
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from PIL import Image

import sample as sample_module
from app.entry import (
    CONF,
    refuse_misspelt,
    register_resolvers,
)
from app.free_text import as_typed
from app.sample_settings import batch_of, sampling_of
from ipo_lightning.backbones.cogvideox import CogVideoX, Lora
from ipo_lightning.errors import InputError
from ipo_lightning.guards import best_of
from ipo_lightning.hub.checkpoints import find_checkpoint, load_into
from ipo_lightning.policy import Sampling, trained_weights
from ipo_lightning.storage.layout import RunDir
from ipo_lightning.storage.store import fingerprint, write_atomically
from ipo_lightning.vbench.names import check_names, video_name
from ipo_lightning.video import read_video
from sample import determined, file_name, sample, write
from tests.helpers import tiny, tiny_wan
from tests.helpers.ranks import SERVER
from tests.rounds.test_rounds import Killed, crash_at
from train import train

PROMPT = "a red ring moving left"
TRAIN = (
    "rollout.prompts=2", "rollout.n=2", "rollout.steps=2", "data.optimizer_steps=2",
    "data.batch_size=2",
    "labelling.pair_rule.margin=0", "labelling.filters.motion_ratio=0", "evaluation.n=1",
    "evaluation.prompts=2", "round=1", "callbacks.videos=null", "callbacks.progress=null",
    "trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "logger=none",
)  # fmt: skip


def composed(config: str, *overrides: str) -> DictConfig:
    """The settings of an entry point."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config, list(overrides))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of all weights and one of an adapter."""
    outputs = tmp_path_factory.mktemp("outputs")
    for name, more in (("full", ()), ("lora", ("experiment=shapes_lora",))):
        train(composed("train", *TRAIN, f"paths.outputs={outputs}", f"name={name}", *more))
    return {name: outputs / name for name in ("full", "lora")}


@pytest.fixture
def draw(tmp_path: Path) -> Callable[..., list[Path]]:
    """Videos of a checkpoint: ``draw(ckpt, "n=2")``."""

    def run(ckpt: Path | str, *more: str) -> list[Path]:
        words = [f"ckpt='{ckpt}'", f"prompt='{PROMPT}'", f"paths.outputs={tmp_path}", "steps=3",
                 "trainer.accelerator=cpu"]  # fmt: skip
        keys = {word.partition("=")[0] for word in more}
        kept = [w for w in words if w.partition("=")[0] not in keys]
        return sample(composed("sample", *kept, *more))

    return run


def frames(files: list[Path]) -> list[torch.Tensor]:
    return [read_video(file).frames for file in files]


@pytest.mark.slow
def test_a_run_its_last_round_its_policy_and_its_checkpoint_are_one_policy(
    runs: dict[str, Path], draw: Callable[..., list[Path]]
) -> None:
    for run in runs.values():
        checkpoint = next((run / "round_1" / "checkpoints").glob("*.ckpt"))
        same = [run / "round_1", run / "round_1" / "policy", checkpoint]
        if best_of(RunDir(run).lines())["round"] == 1:  # else it is the base model
            same.append(run)
        videos = [frames(draw(path))[0] for path in same]
        assert all(torch.equal(videos[0], video) for video in videos[1:]), run


@pytest.mark.slow
def test_lora_file_alone(
    runs: dict[str, Path], draw: Callable[..., list[Path]], tmp_path: Path
) -> None:
    file = runs["lora"] / "round_1" / "policy" / "pytorch_lora_weights.safetensors"
    copied = tmp_path / "style.safetensors"
    copied.write_bytes(file.read_bytes())
    assert torch.equal(frames(draw(copied))[0], frames(draw(runs["lora"]))[0])


@pytest.mark.slow
def test_base_pipeline_differs_from_the_trained_policy(
    runs: dict[str, Path], draw: Callable[..., list[Path]]
) -> None:
    base = frames(draw("ipo_lightning/shapes/pipeline"))[0]
    assert not torch.equal(base, frames(draw(runs["full"] / "round_1"))[0])
    for run in runs.values():
        assert torch.equal(base, frames(draw(run / "round_0", "guidance_scale=1"))[0]), run


def test_the_best_round_of_a_run_may_be_its_base_model(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    (run.path / "round_1" / "policy").mkdir(parents=True)
    (run.path / "round_1" / "policy" / "pytorch_lora_weights.safetensors").touch()
    (run.path / "round_0").mkdir()
    run.config_file.touch()
    for mean, kind, told in ((0.1, "lora", None), (-0.1, "base", "round 0, the base model, is")):
        gain = {"mean": mean, "low": mean, "high": mean}
        for number in (0, 1):
            run.append({"round": number, "gain": gain})
        with pytest.warns(match=told) if told else nullcontext():
            found = find_checkpoint(str(run.path))
        assert (found.kind, found.config) == (kind, run.config_file)


@pytest.mark.slow
def test_a_video_has_the_same_noise_whatever_n_and_batch_are(
    draw: Callable[..., list[Path]],
) -> None:
    pipeline = "ipo_lightning/shapes/pipeline"
    alone = draw(pipeline, "n=1")
    more = draw(pipeline, "n=3", "batch_size=2")
    assert alone[0] == more[0]
    difference = (frames(alone)[0].float() - frames(more)[0].float()).abs()
    assert difference.max() <= 2, "equal within rounding, of colours too"
    other_seed = draw(pipeline, "seed=1")
    assert not torch.equal(frames(other_seed)[0], frames(alone)[0])


def test_a_critic_that_compares_needs_two(
    draw: Callable[..., list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="compares videos of a prompt; give n=2"):
        draw("ipo_lightning/shapes/pipeline", "n=1", "critic=shapes_pairwise")
    assert not (tmp_path / "samples").exists()
    draw("ipo_lightning/shapes/pipeline", "n=2", "critic=shapes_pairwise")
    lines = capsys.readouterr().out.splitlines()
    scores = [float(line.split()[-1]) for line in lines[-2:]]
    assert scores[0] == -scores[1]


def test_files_sheet_and_scores(
    draw: Callable[..., list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "prompts.txt"
    listed.write_text(f"{PROMPT}\na blue square growing\n")
    files = draw("ipo_lightning/shapes/pipeline", f"prompts={listed}", "prompt=null", "n=2",
                 "critic=shapes")  # fmt: skip
    assert len(files) == len(set(files)) == 4
    assert all(file.parent == tmp_path / "samples" and file.suffix == ".mp4" for file in files)
    assert frames(files)[0].shape == (9, 128, 128, 3)
    sheets = list((tmp_path / "samples").glob("sheet-*.png"))
    assert len(sheets) == 1
    with Image.open(sheets[0]) as sheet:
        assert sheet.height > 4 * 90
    printed = capsys.readouterr().out
    assert "shapes-rules@1" in printed
    assert printed.count("-s0-k") >= 8


# -------------------------------------------------------------------- settings

PIPELINE = "ipo_lightning/shapes/pipeline"


@pytest.fixture(scope="module")
def tinies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random pipelines of both families."""
    root = tmp_path_factory.mktemp("tinies")
    return {
        "cogvideox": tiny.save_pipeline(root / "cogvideox"),
        "wan": tiny_wan.save_pipeline(root / "wan"),
    }


@pytest.mark.slow
def test_what_a_video_depends_on_is_in_its_name() -> None:
    checkpoint = find_checkpoint(PIPELINE)
    policy = CogVideoX(PIPELINE)
    network = load_into(checkpoint, policy)

    def tag(*words: str) -> str:
        cfg = composed("sample", "ckpt=x", *words)
        sampling = sampling_of(cfg, OmegaConf.create({}), {"path": PIPELINE})
        return fingerprint(determined(cfg, checkpoint, policy, network, sampling))

    changes = ("steps=2", "guidance_scale=2", "scheduler=dpm", "fps=12", "precision=bf16",
               "tiling=true", "enlarge=2", "guidance_scale=2 dynamic_guidance=true",
               "guidance_scale=2 negative_prompt=dark")  # fmt: skip
    assert len({tag(), *(tag(*change.split()) for change in changes)}) == len(changes) + 1
    same = ("batch_size=1", "slicing=true", "offload=true", "negative_prompt=dark", "n=2", "fps=8")
    assert {tag(change) for change in same} == {tag()}


@torch.no_grad()
def test_a_name_says_which_weights_and_alpha(tinies: dict[str, Path], tmp_path: Path) -> None:
    tags = []
    for alpha, scale in ((3, 1), (6, 1), (3, 2)):
        policy = tiny.policy(tinies["cogvideox"], lora=Lora(rank=3, alpha=alpha))
        for weight in trained_weights(network := policy.build()).values():
            weight.mul_(scale)
        policy.export(network, folder := tmp_path / f"{alpha}-{scale}")
        checkpoint, base = find_checkpoint(str(folder)), tiny.policy(tinies["cogvideox"])
        cfg, loaded = composed("sample", "ckpt=x"), load_into(checkpoint, base)
        tags.append(fingerprint(determined(cfg, checkpoint, base, loaded, Sampling(2))))
    assert len(set(tags)) == 3


def test_a_tag_is_explained(draw: Callable[..., list[Path]], tmp_path: Path) -> None:
    file = draw(PIPELINE, "scheduler=dpm", "fps=12")[0]
    tag = file.stem.rpartition("-")[2]
    told = json.loads((tmp_path / "samples" / f"settings-{tag}.json").read_text())
    assert told["sampling"] == {"steps": 3, "guidance_scale": 1.0, "scheduler": "dpm"}
    assert (told["ckpt"], told["fps"]) == (PIPELINE, 12.0)


@pytest.mark.slow
def test_finished_videos_are_kept(draw: Callable[..., list[Path]]) -> None:
    settings = ("n=3", "batch_size=2")
    files = draw(PIPELINE, *settings)
    content = [file.read_bytes() for file in files]
    files[2].unlink()
    for file in files[:2]:
        file.write_bytes(content[2])  # stands for a video that must not be touched
    again = draw(PIPELINE, *settings)
    assert again == files
    assert [file.read_bytes() for file in files] == [content[2]] * 3
    draw(PIPELINE, *settings, "overwrite=true")
    assert [file.read_bytes() for file in files] == content


@pytest.mark.slow
def test_a_kill_leaves_no_half_video_and_the_rest_is_made(
    draw: Callable[..., list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [file.read_bytes() for file in draw(PIPELINE, "n=3", "batch_size=1")]
    samples = tmp_path / "samples"
    shutil.rmtree(samples)
    crash_at(monkeypatch, CogVideoX, "decode", 3)
    with pytest.raises(Killed):
        draw(PIPELINE, "n=3", "batch_size=1")
    assert sorted(file.suffix for file in samples.iterdir()) == [".json", ".mp4", ".mp4"]
    monkeypatch.undo()
    assert [file.read_bytes() for file in draw(PIPELINE, "n=3", "batch_size=1")] == whole


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(
    draw: Callable[..., list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Uneven: three jobs, with a critic that wants the exact pixels back."""
    monkeypatch.setattr(sample_module, "get_context", lambda _: SERVER)  # with imports done
    listed = tmp_path / "prompts.txt"
    listed.write_text(f"{PROMPT}\na blue square growing\na green cross shrinking\n")
    settings = (f"prompts={listed}", "prompt=null", "n=2", "batch_size=2", "critic=shapes")
    content, told = [], []
    for devices in (1, 2):
        files = draw(PIPELINE, *settings, f"trainer.devices={devices}")
        content.append({file.name: file.read_bytes() for file in sorted(files[0].parent.iterdir())})
        told.append(capsys.readouterr().out)
        shutil.rmtree(tmp_path / "samples")
    assert len(content[0]) == 8, "6 videos, a sheet and what the tag stands for"
    assert content[0] == content[1]
    assert told[0] == told[1]
    with pytest.raises(InputError, match="scheduler=unipc: CogVideoX has"):
        draw(PIPELINE, "scheduler=unipc", "trainer.devices=2", "n=9")


@pytest.mark.slow
def test_fps_of_the_file(draw: Callable[..., list[Path]]) -> None:
    assert read_video(draw(PIPELINE, "fps=12")[0]).fps == pytest.approx(12)
    assert read_video(draw(PIPELINE)[0]).fps == pytest.approx(8)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["cogvideox", "wan"])
def test_saving_memory(
    family: str, tinies: dict[str, Path], monkeypatch: pytest.MonkeyPatch, draw: Any
) -> None:
    """Slicing and offloading change no bit, half precision a little."""
    size = ("backbone.num_frames=9", "backbone.height=16", "backbone.width=32")
    backbone = {"cogvideox": (), "wan": ("backbone=wan_1_3b", "backbone.text_length=6", *size)}
    common = (*backbone[family], "n=2", "overwrite=true")
    seen: list[Any] = []
    monkeypatch.setattr(sample_module, "write", lambda file, clip, scale: (
        seen.append(clip), write(file, clip, scale)))  # fmt: skip

    def pixels(*more: str) -> torch.Tensor:
        seen.clear()
        draw(tinies[family], *common, *more)
        return torch.stack([clip.frames.float() for clip in seen])

    plain = pixels()
    for same in ("slicing=true", "offload=true"):
        assert torch.equal(pixels(same, "backbone.decode_batch=2"),
                           pixels("backbone.decode_batch=2"))  # fmt: skip
    half = (pixels("precision=bf16") - plain).abs()
    assert half.max() > 0 and half.mean() < 4


@pytest.mark.slow
def test_tiles_are_other_pixels_and_must_fit(
    tinies: dict[str, Path], tmp_path: Path, draw: Callable[..., list[Path]]
) -> None:
    """diffusers' tiles of 48 x 40 pixels overlap by whole latents; those of 8 x 12 do not."""
    folder = tmp_path / "tiled"
    shutil.copytree(tinies["cogvideox"], folder)
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(
        json.dumps({**config, "sample_height": 96, "sample_width": 80})
    )
    size = ("backbone.height=96", "backbone.width=80")
    whole = frames(draw(folder, *size))[0].float()
    tiled = frames(draw(folder, *size, "tiling=true"))[0].float()
    assert 0 < (tiled - whole).abs().mean() < 20
    with pytest.raises(InputError, match="tiling=true: diffusers' tiles .* do not fit 16 x 24"):
        draw(tinies["cogvideox"], "tiling=true")


@pytest.mark.slow
def test_schedulers_of_a_family(tinies: dict[str, Path], draw: Callable[..., list[Path]]) -> None:
    wan = ("backbone=wan_1_3b", "backbone.text_length=6", "backbone.num_frames=9",
           "backbone.height=16", "backbone.width=32")  # fmt: skip
    own, unipc, euler = (
        frames(draw(tinies["wan"], *wan, *more))[0]
        for more in ((), ("scheduler=unipc",), ("scheduler=euler",))
    )
    assert torch.equal(own, unipc) and not torch.equal(own, euler)
    with pytest.raises(InputError, match="scheduler=ddim: Wan"):
        draw(tinies["wan"], *wan, "scheduler=ddim")
    with pytest.raises(InputError, match=r"is a WanPipeline; CogVideoX is a CogVideoXPipeline"):
        draw(tinies["wan"])


def test_the_sampling_of_ipos_authors_is_a_choice(runs: dict[str, Path]) -> None:
    """What is given comes first, then rollout=, then the run."""
    saved = OmegaConf.load(runs["full"] / "config.yaml")
    node = {"path": "elsewhere"}

    def chosen(*words: str, run: Any = saved) -> Sampling:
        return sampling_of(composed("sample", "ckpt=x", *words), run, node)

    assert chosen() == Sampling(2)
    assert chosen("rollout=cogvideox") == Sampling(50, 6.0, scheduler="dpm", dynamic_guidance=True)
    few = chosen("rollout=cogvideox", "steps=4", "dynamic_guidance=false", "scheduler=ddim")
    assert few == Sampling(4, 6.0, scheduler="ddim")
    assert chosen(run=OmegaConf.create({})) == Sampling(50, 6.0)
    guided = OmegaConf.merge(saved, {"evaluation": {"guidance_scale": 3.0}})
    assert chosen(run=guided) == Sampling(2, 3.0)  # as its policies were evaluated
    assert chosen("guidance_scale=2", run=guided) == Sampling(2, 2.0)
    dynamic = {"rollout": {"guidance_scale": 6.0, "dynamic_guidance": True},
               "evaluation": {"guidance_scale": 1.0}}  # fmt: skip
    assert chosen(run=OmegaConf.merge(saved, dynamic)) == Sampling(2)


def test_large_videos_are_sampled_one_by_one() -> None:
    cfg = composed("sample", "ckpt=x")
    assert batch_of(cfg, (9, 32, 32)) == 8
    assert batch_of(cfg, (49, 480, 720)) == 1
    assert batch_of(composed("sample", "ckpt=x", "batch_size=3"), (49, 480, 720)) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["n=0"], "n=0: give a whole number, at least 1"),
        (["fps=0"], "fps=0: give a number, above 0, or null"),
        (["scheduler=heun"], "scheduler=heun: choose one of ddim, dpm, unipc, euler, or null"),
        (["precision=fp16"], "precision=fp16: choose one of float32, bf16"),
        (["tiling=some"], "tiling=some: give true or false"),
        (["dynamic_guidance=3"], "dynamic_guidance=3: give true or false, or null"),
        (["dynamic_guidance=true"], "dynamic_guidance=true: give a guidance_scale above 1"),
        (["trainer.devices=none"], "trainer.devices=none: give a whole number"),
        (["trainer.accelerator=cuda", "trainer.devices=64"], "this machine has"),
    ],
)
def test_wrong_settings_are_refused(
    words: list[str], said: str, draw: Callable[..., list[Path]], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        draw(PIPELINE, *words)
    assert not (tmp_path / "samples").exists()


# -------------------------------------------------------------------- words


def test_names_are_safe_and_distinct() -> None:
    name = file_name("../../etc/pass wd; rm -rf *", 3, 0, "abc")
    assert "/" not in name
    assert ".." not in name
    assert file_name("a cat", 0, 0, "x") != file_name("a  cat", 0, 0, "x")
    assert len(file_name("word " * 500, 0, 0, "x")) < 120
    assert file_name("\u732b", 0, 0, "x").startswith("video-")


def test_a_prompt_needs_no_quoting() -> None:
    assert as_typed("sample", ["prompt=a cat, it's [big]", "n=2"]) == [
        "prompt='a cat, it\\'s [big]'", "n=2",
    ]  # fmt: skip
    assert as_typed("sample", ['prompt="given, quoted"']) == ['prompt="given, quoted"']


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    ["epoch=3-step=100.ckpt", "a b/c.ckpt", "[1]/x", "{a}.ckpt", "it's/x.ckpt", "a,b", "a:b=c",
     "(x)/y", "1e5", "null.ckpt", "C:\\x\\", "~/x", "a#b", "%41"],
)  # fmt: skip
def test_a_path_needs_no_quoting(path: str) -> None:
    words = as_typed("sample", [f"ckpt={path}", "prompt=x"])
    refuse_misspelt("sample", words)
    assert composed("sample", *words).ckpt == path


def test_a_sweep_over_paths_stays_one() -> None:
    words = ["-m", "ckpt=a,b", "prompts=x=y"]
    assert as_typed("sample", words) == ["-m", "ckpt=a,b", "prompts='x=y'"]


@pytest.mark.parametrize("word", ["name=a=b", "paths.outputs=[x", "name=it's", "n"])
def test_what_hydra_cannot_parse_is_said_with_its_cure(word: str) -> None:
    with pytest.raises(InputError) as refused:
        refuse_misspelt("sample", ["ckpt=x", word])
    said = str(refused.value)
    assert said.startswith(word) and ("quote it" in said or "KEY=VALUE" in said)


@pytest.mark.parametrize(
    ("ckpt", "said"),
    [("nowhere/at/all", "no such file"), ("./nothing", "no such file"),
     ("README.md", "not opened"), ("tests", "neither a run")],
)  # fmt: skip
def test_wrong_paths_are_named(ckpt: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        find_checkpoint(ckpt)


def test_a_pickle_is_not_opened(tmp_path: Path, draw: Callable[..., list[Path]]) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return Path.touch, (tmp_path / "owned",)  # type: ignore[return-value]

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(InputError, match="not a checkpoint of this project"):
        draw(tmp_path / "evil.ckpt")
    assert not (tmp_path / "owned").exists()


def test_a_strangers_config_cannot_name_code(
    runs: dict[str, Path], draw: Callable[..., list[Path]], tmp_path: Path
) -> None:
    run = tmp_path / "stranger"
    (run / "round_0").mkdir(parents=True)
    policy = run / "round_1" / "policy"
    policy.mkdir(parents=True)
    for file in (runs["full"] / "round_1" / "policy").iterdir():
        (policy / file.name).write_bytes(file.read_bytes())
    ours = "ipo_lightning.backbones.cogvideox"
    for backbone in (
        "{_target_: os.system, command: 'touch owned'}",
        f"{{_target_: {ours}.json.loads, s: '1'}}",
        f"{{_target_: {ours}.CogVideoX, path: {{_target_: builtins.print}}}}",
    ):
        (run / "config.yaml").write_text(f"backbone: {backbone}\n")
        with pytest.raises(InputError, match=r"names \[.*none of this project's"):
            draw(policy)


@pytest.mark.slow
def test_videos_are_named_as_vbench_looks_for_them(
    draw: Callable[..., list[Path]], tmp_path: Path
) -> None:
    """In a folder that holds nothing else: VBench takes the ending from any file of it."""
    prompts = [PROMPT, 'a "blue" cross = 50%, moving up.']
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(prompts))
    shipped = "ipo_lightning/shapes/pipeline"
    words = ("prompt=null", f"prompts={file}", "n=3", "steps=1")
    made = draw(shipped, *words, "naming=vbench")
    (folder,) = {one.parent for one in made}
    wanted = [f"{prompt}-{k}.mp4" for prompt in prompts for k in range(3)]
    assert [one.name for one in made] == wanted
    assert {one.name for one in folder.iterdir()} == set(wanted)
    assert (folder.parent / f"sheet-{folder.name}.png").is_file()
    plain = draw(shipped, *words)
    assert all(map(torch.equal, frames(made), frames(plain)))
    assert {one.parent for one in draw(shipped, *words, "naming=vbench", "seed=1")} != {folder}


def test_names_of_rewritten_prompts(tmp_path: Path) -> None:
    table = tmp_path / "names.jsonl"
    table.write_text('{"prompt": "a long  text", "name": "a ring"}\n')
    given = composed("sample", "ckpt=none", f"names={table}", "naming=vbench")
    assert sample_module.read_names(given, ["a long text"]) == ["a ring"]
    with pytest.raises(InputError, match="it has no row of the prompt 'a cross'"):
        sample_module.read_names(given, ["a cross"])
    with pytest.raises(InputError, match="give naming=vbench or vbench2 as well"):
        sample_module.read_names(composed("sample", "ckpt=none", f"names={table}"), ["a ring"])
    table.write_text('{"prompt": "a long text"}\n')
    with pytest.raises(InputError, match=r'names: .*:1: expected {"prompt": "...", "name"'):
        sample_module.read_names(given, ["a long text"])
    given.names = str(tmp_path / "names.txt")
    with pytest.raises(InputError, match="give a table with the columns 'prompt' and 'name'"):
        sample_module.read_names(given, ["a long text"])


@pytest.mark.parametrize(
    ("prompts", "naming", "said"),
    [
        (["a cat/dog"], "vbench", "has a '/'"),
        (["x" * 215], "vbench", "file name of 221 bytes.*naming=vbench2"),
        (["\u732b" * 80], "vbench2", "file name of 246 bytes"),
        (["y" * 180 + "a", "y" * 180 + "b"], "vbench2", "same first 180 characters"),
    ],
)
def test_prompts_that_are_no_file_names_are_refused(
    prompts: list[str], naming: str, said: str
) -> None:
    with pytest.raises(InputError, match=f"naming={naming}: .*{said}"):
        check_names(prompts, 5, naming)


def test_the_longest_names_can_be_written(tmp_path: Path) -> None:
    check_names(["x" * 214], 5, "vbench")
    write_atomically(tmp_path / video_name("x" * 214, 4, "vbench"), b"")
    check_names(["z" * 300], 20, "vbench2")
    assert video_name("z" * 300, 19, "vbench2") == f"{'z' * 180}-19.mp4"
