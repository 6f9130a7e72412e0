"""Wrong inputs end with a sentence that names them, and nothing is written."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import pytest
from omegaconf import OmegaConf

from app import assembly, checks, claiming
from app.entry import REPO, refuse_misspelt
from app.free_text import flags_first
from app.keys import KEYS
from ipo_lightning.errors import InputError, pipe_may_close
from ipo_lightning.rounds import IterationCallback
from ipo_lightning.rounds.training import TrainingStage
from ipo_lightning.storage.layout import STAGES, RunDir
from tests.conftest import ComposeTrain, composed
from tests.helpers.commands import command
from train import train

CSV = "lightning.pytorch.loggers.CSVLogger"


# ---------------------------------------------------------------- through the command line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["los=kto"], "did you mean 'loss'"),
        (["loss=kot"], "did you mean 'kto'"),
        (["-m", "loss=dpo,kot"], "loss=kot: no such choice"),
        (["loss.bta=3"], "did you mean 'loss.beta'"),
        (["round=0"], "round=0: give a whole number"),
        (["loss=dpo", "-m", "seed=x,1"], "job 0 (seed=x): seed=x: give a whole number"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
    ids=["key", "choice", "sweep-choice", "nested-key", "round", "sweep-value", "flag"],
)
def test_the_command_line_refuses(arguments: list[str], named: str, tmp_path: Path) -> None:
    # The sweep's first job is a dry run, else it would train.
    done = command("train.py", *arguments, f"paths.outputs={tmp_path}/outputs", "dry_run=true")
    assert done.returncode in (1, 2)
    said = done.stderr.strip().splitlines()
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert len(said) <= 3 or done.returncode == 2  # 2: Hydra's own usage
    assert not any((tmp_path / "outputs").glob("shapes*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["task=critc"], "did you mean 'critic'"),
        (["data=imported"], "data.imported.path has no default: give data.imported.path=VALUE"),
        (["critic=human", "critic.dims=VQ"], "critic.dims=VQ: give a list of names"),
        (["critic=human", "critic.seed=x"], "critic.seed=x: give a whole number"),
        (["task=critic", "netwrk=x"], "did you mean 'network'"),
        (["data.path=nowhere.csv", "task=critic"], "data.path=nowhere.csv: there is no such file"),
    ],
    ids=["task", "missing", "dims", "seed", "key", "file"],
)
def test_the_training_of_a_critic_refuses(arguments: list[str], named: str, tmp_path: Path) -> None:
    """Each from the configuration of its task."""
    done = command("train.py", *arguments, f"paths.outputs={tmp_path}/outputs")
    assert done.returncode == 1 and named in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3
    assert not (tmp_path / "outputs").exists()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = command("train.py", "round=0", "debug=true", f"paths.outputs={tmp_path}")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_flags_come_first() -> None:
    assert flags_first(["seed=1", "-m", "loss=dpo,kto"]) == ["-m", "seed=1", "loss=dpo,kto"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["rollout.m=3"], "did you mean 'rollout.n'"),
        (["backbone=null"], "backbone=null: give one of"),
        (["+experiment=null"], "give one of ipo_base, "),
        (["critic=ensemble", "critic@critic.members.clip=null"], "give one of clip, "),
        (["rollout=[1]"], "rollout=[1]: give one of "),
        (["labelling=3"], "labelling=3: give one of "),
        (["critic={a: 1}"], "critic={a: 1}: choose one of clip, "),
        (["+experiment=nope"], "experiment=nope: no such choice"),
        (["loss"], "'loss'"),
        (["loss.beta=[1"], "[1"),
    ],
    ids=[
        "nested-key",
        "group-null",
        "no-experiment",
        "no-member",
        "group-list",
        "group-number",
        "group-mapping",
        "experiment",
        "no-value",
        "grammar",
    ],
)
def test_misspelt_words_are_named(words: list[str], named: str) -> None:
    with pytest.raises(InputError) as refused:
        refuse_misspelt("train", words)
    assert named in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "words", "wrong", "named"),
    [
        ("train", ["critic=vlm_pairwise", "critic.vlm.samples=3"], "los=dpo", "'loss'"),
        ("train", ["critic=vlm_pairwise", "+critic.question=q"], "critic.aspect={a: b}",
         "with critic=vlm_pairwise; did you mean 'critic.aspects'"),
        ("train", ["critic=ipo_form", "critic/vlm=openai", "critic.vlm.server.retries=2"],
         "loss.bta=3", "'loss.beta'"),
        ("train", ["critic/vlm=openai", "critic=ipo_form", "critic.vlm.server.retries=2"],
         "critic.vlm.server.retires=3", "'critic.vlm.server.retries'"),
        ("train", ["critic=ipo_form"], "critic/vml=openai", "'critic/vlm'"),
        ("train", ["critic=shapes"], "critic/vlm=openai", "no critic/vlm to choose"),
        ("train", ["critic=ipo_form"], "critic/vlm=opnai", "'openai'"),
        ("train", ["critic=ensemble", "+critic@critic.members.hpsv3=hpsv3",
                   "critic.members.hpsv3.frames=2"],
         "critic.members.clip.frame=2", "'critic.members.clip.frames'"),
        ("train", ["critic=compared", "critic@critic.critic=clip", "critic.critic.frames=3"],
         "critic@critic.critc=clip", "did you mean one of critic, critic@critic.critic?"),
        ("train", ["critic=vlm_pointwise", "critic.questions.0.weight=3"], "rollout.m=3",
         "'rollout.n'"),
        ("train", ["eval_critic=ipo_form", "critic/vlm@eval_critic.vlm=openai",
                   "eval_critic.vlm.server.timeout=3"],
         "eval_critic.vlm.sever.timeout=3", "'eval_critic.vlm.server.timeout'"),
        ("train", ["critic=gauges", "critic.bands.flow.high=3"], "critic.bands={flo: {high: 3}}",
         "critic.bands has flow, frozen"),
        ("train", ["experiment=shapes_lora", "backbone.lora.rank=3"], "seeed=2", "'seed'"),
        ("train", ["loss=kto,nft", "loss.beta=2", "-m"], "trainr=cpu", "'trainer'"),
        ("train", ["loss=kto"], "critic.frames=3", "there is no setting 'critic.frames'; add"),
        ("train", ["loss=kto"], "critic=null", "give one of clip, "),
        ("train_critic", ["network=multimodal", "network.lora.rank=3"], "sed=3", "'seed'"),
        ("train_critic", ["network=multimodal"], "critic=clip", "no critic to choose"),
        ("sample", ["critic=clip", "rollout=cogvideox", "rollout.steps=3"], "promt=x", "'prompt'"),
        ("sample", ["rollout=cogvideox"], "critic=shapez", "'shapes'"),
        ("sample", ["critic=clip"], "rollout=cogvideo", "'cogvideox'"),
        ("audit", ["critic=ipo_form", "critic/vlm=openai", "critic.vlm.samples=3"], "dim=x",
         "'dims'"),
        ("audit", ["n=3"], "critic=clp", "'clip'"),
        ("audit", ["n=3"], "critic={_target_: mine.Own}", "choose one of clip"),
    ],
)  # fmt: skip
def test_the_wrong_word_is_named_and_no_right_one(
    program: str, words: list[str], wrong: str, named: str
) -> None:
    """Whatever stands before it, of settings that only the choices beside them have."""
    with pytest.raises(InputError) as refused:
        refuse_misspelt(program, [*words, wrong])
    message = str(refused.value)
    assert message.startswith(wrong) and named in message
    assert not any(f"{word}:" in message for word in words)


@pytest.mark.parametrize(
    "words", [["loss=dpo,kto", "-m"], ["+mine=3"], ["loss.beta=7", "experiment=shapes_lora"]]
)
def test_sound_words_pass(words: list[str]) -> None:
    refuse_misspelt("train", words)


# ---------------------------------------------------------------- in this process, which is faster


def refusal(compose_train: ComposeTrain, *overrides: str) -> str:
    with pytest.raises(InputError) as refused:
        train(compose_train(*overrides))
    message = str(refused.value)
    assert 1 <= len(message.splitlines()) <= 3
    return message


@pytest.mark.slow
@pytest.mark.parametrize(
    "override",
    [
        "round=0",
        "round=1.5",
        "seed=x",
        "threads=0",
        "until=lunch",
        "name=../up",
        "name=store",
        "dry_run=maybe",
        "rollout.n=1",
        "rollout.n=many",
        "rollout.steps=0",
        "rollout.guidance_scale=0.5",
        "data.batch_size=1.5",
        "data.optimizer_steps=0",
        "loss.beta=-1",
        "loss.beta=abc",
        "loss.beta=null",
        "regularise.winners=-1",
        "regularise.real=-1",
        "regularise.safeguard=1",
        "calibration.logit=0",
        "step=three_pass",
        "reference=none",
        "backbone.density=odd",
        "optim.optimizer.lr=abc",
        "optim.warmup_steps=-1",
        "labelling.pair_rule.margin=abc",
        "evaluation.n=0",
        "callbacks.iteration=null",
        "callbacks.iteration.checkpoint_every=0",
        "reference.of=moon",
        "reference=adapter",
        "backbone.path=/nowhere",
        "backbone.num_frames=10",
    ],
)
def test_a_wrong_setting_is_named(
    override: str, compose_train: ComposeTrain, tmp_path: Path
) -> None:
    message = refusal(compose_train, override)
    assert override.partition("=")[0] in message
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_a_function_does_not_take_is_named(compose_train: ComposeTrain) -> None:
    assert "gamma" in refusal(compose_train, "+loss.gamma=3")


def test_a_class_that_does_not_exist_is_named(compose_train: ComposeTrain) -> None:
    assert "nope.Critic" in refusal(compose_train, "critic._target_=nope.Critic")


def test_prompts_need_a_file(compose_train: ComposeTrain, tmp_path: Path) -> None:
    assert "data.prompts.path=VALUE" in refusal(compose_train, "data=file")
    missing = tmp_path / "missing.txt"
    message = refusal(compose_train, "data=file", f"data.prompts.path={missing}")
    assert message == f"data.prompts.path={missing}: there is no such file"


@pytest.mark.parametrize(
    "override", ["trainer.accelerator=tpu", "trainer.precision=17", "trainer.devices=0"]
)
def test_a_trainer_that_cannot_be_had_is_refused_before_the_folder_is_claimed(
    override: str, compose_train: ComposeTrain, tmp_path: Path
) -> None:
    overrides = "logger=none", "trainer.accelerator=cpu", override
    assert "trainer" in refusal(compose_train, *overrides)
    assert list(tmp_path.rglob("config.yaml")) == []


def test_a_folder_keeps_its_settings(compose_train: ComposeTrain, tmp_path: Path) -> None:
    """Another round of the same run is welcome, another seed is not."""
    cfg = compose_train("name=mine", "seed=1")
    run = RunDir(tmp_path / "mine")
    claiming.claim(run, cfg)
    claiming.claim(run, compose_train("name=mine", "seed=1", "round=5", "trainer=cpu"))
    message = refusal(compose_train, "name=mine", "seed=2", "logger=none", "trainer=cpu")
    assert "seed: 1 -> 2" in message
    assert "name=NAME" in message
    assert OmegaConf.load(run.config_file).seed == 1


@pytest.mark.slow
def test_a_dry_run_prints_the_plan_and_writes_nothing(
    compose_train: ComposeTrain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(compose_train("dry_run=true", "name=plan", "round=2")) is None
    printed = capsys.readouterr().out
    assert f"run {tmp_path}/plan: 2 rounds" in printed
    assert printed.count("to do") == 11  # the base's evaluation, and five stages of two rounds
    assert list(tmp_path.iterdir()) == []


def test_what_a_critic_lacks_is_said_before_videos_are_made_for_it(
    small: ComposeTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPO_LIGHTNING_CACHE", str(tmp_path / "cache"))
    for choice in ("critic=videoreward", "eval_critic=unifiedreward"):
        with pytest.raises(InputError, match="prompt_text: .*HF_HUB_OFFLINE is set"):
            train(small(choice, "round=1"))
    assert not list(tmp_path.rglob("*.mp4"))


def test_stages_are_those_of_the_rounds() -> None:
    """The checks may not import the rounds, which import torch."""
    assert checks.STAGES == STAGES


def test_checks_are_light() -> None:
    """The first second is spent on the settings, not on torch."""
    code = "import sys, app.entry, app.checks; sys.exit(sum(m in sys.modules for m in ['torch']))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0


HEAVY = ("lightning", "diffusers", "transformers", "torchmetrics", "bitsandbytes.nn",
         "torch._dynamo", "torch.distributed.fsdp")  # fmt: skip
"""What takes seconds to import."""


@pytest.mark.parametrize(
    ("imports", "heavy"),
    [
        ("app.finished, app.reporting, train", HEAVY),  # a finished run, report_only=true
        ("app.entry, app.process, sample", ("lightning", "torchmetrics", "diffusers")),
        ("app.entry, ipo_lightning.backbones.cogvideox", ("lightning", "bitsandbytes.nn")),
    ],
)
def test_what_a_command_does_not_need_is_not_imported(imports: str, heavy: Sequence[str]) -> None:
    code = f"import sys, {imports}; print(*(m for m in {heavy!r} if m in sys.modules))"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=REPO, stdout=subprocess.PIPE, text=True).stdout == "\n"


def test_every_checked_key_is_a_setting(compose_train: ComposeTrain) -> None:
    """A value that no configuration has would be checked in vain."""
    configs = [compose_train(), composed("train_critic", "data.path=x")]
    taken = [key for keys in KEYS.values() for key in keys.values()]
    missing = {
        key
        for key in (*checks.SETTINGS, *taken)
        if all(OmegaConf.select(cfg, key, default=...) is ... for cfg in configs)
    }
    assert missing == set()


def test_a_trainer_is_built(compose_train: ComposeTrain) -> None:
    cfg = compose_train("trainer=cpu", "logger=none")
    callback = IterationCallback(RunDir("nowhere"), [TrainingStage()])
    assert isinstance(assembly.build_trainer(cfg, callback), L.Trainer)


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["trainer.enable_progress_bar=false"], 0),
        (["logger=none"], 0),
        (["logger=none", f"+logger={{csv: {{_target_: {CSV}, save_dir: x}}, off: null}}"], 1),
        ([f"+logger={{csv: {{_target_: {CSV}, save_dir: x}}}}"], 2),
        (["~callbacks.progress", "~callbacks.videos", "trainer.enable_progress_bar=false"], 0),
    ],
    ids=["no-bar", "no-logger", "loggers-by-name", "logger-beside", "no-callbacks"],
)
def test_bars_and_loggers_may_be_left_out(
    words: list[str], count: int, compose_train: ComposeTrain
) -> None:
    off = [] if any("logger" in word for word in words) else ["logger=none"]
    cfg = compose_train("trainer=cpu", *off, *words)
    checks.check(cfg)
    trainer = assembly.build_trainer(cfg, IterationCallback(RunDir("nowhere"), [TrainingStage()]))
    assert len(trainer.loggers) == count
    assert (trainer.progress_bar_callback is None) == (not cfg.trainer.enable_progress_bar)


def test_an_optimizer_that_refuses_its_settings_is_named(compose_train: ComposeTrain) -> None:
    with pytest.raises(InputError, match=r"^optim\.optimizer: .*beta"):
        assembly.optimizer_of(compose_train("optim.optimizer.betas=[2,3]"))


@pytest.mark.parametrize(
    "word", ["~seed", "~optim", "~regularise", "~regularise.real", "~data", "~plan",
             "~callbacks.iteration", "~trainer", "~round"]
)  # fmt: skip
def test_what_a_run_needs_cannot_be_deleted(word: str, compose_train: ComposeTrain) -> None:
    with pytest.raises(InputError) as refused:
        checks.check(compose_train("name=x", word))
    assert str(refused.value).startswith(word[1:])


def test_a_closed_pipe_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of ``| head``; another pipe's error is an error."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        with pytest.raises(SystemExit) as left, pipe_may_close():
            pipe.write("a table")
        assert left.value.code == 141
        with pytest.raises(BrokenPipeError), pipe_may_close():
            raise BrokenPipeError
