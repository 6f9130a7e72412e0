"""Stages of a round alone, the list of them, and the maker with and without a trainer."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import pytest
import torch
from omegaconf import DictConfig
from torch import nn

from ipo_lightning.backbones.cogvideox import CogVideoX
from ipo_lightning.critics.stage.critique import critique_of
from ipo_lightning.errors import InputError
from ipo_lightning.evaluation import Evaluation
from ipo_lightning.exchange.source import ImportedLabels
from ipo_lightning.labelling import Labelling
from ipo_lightning.losses import dpo_loss
from ipo_lightning.module import PreferenceModule
from ipo_lightning.parallel.runtime import Runtime
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.policy import Sampling
from ipo_lightning.rounds import (
    RolloutPlan,
    Round,
    RoundMaker,
    RoundStage,
    StageReached,
    TrainingClock,
    round_stages,
    runtime_of,
)
from ipo_lightning.rounds.datamodule import PreferenceDataModule
from ipo_lightning.rounds.drafts import Drafter
from ipo_lightning.rounds.imported import FirstRounds
from ipo_lightning.rounds.iteration import IterationCallback
from ipo_lightning.rounds.labels import CritiqueStage, LabellingStage
from ipo_lightning.rounds.policies import RoundPolicies, eval_mode
from ipo_lightning.rounds.trainer import announce, round_figures
from ipo_lightning.rounds.training import TrainingStage
from ipo_lightning.sampling import Sampler
from ipo_lightning.shapes.critic import ShapesCritic
from ipo_lightning.shapes.judge import ShapesJudge
from ipo_lightning.shapes.prompts import prompts
from ipo_lightning.storage.layout import RoundData, RunDir
from ipo_lightning.storage.records import Candidate, Pair, Verdict
from ipo_lightning.storage.store import LostBlob, Store
from train import train

PIPELINE = "ipo_lightning/shapes/pipeline"
NAMES = ["rollout", "critique", "labelling", "", "reference errors", "reference errors",
         "training", "evaluation", ""]  # fmt: skip


def a_round(run: RunDir, number: int = 1, rank: int = 0, **module: Any) -> Round:
    """A round in its folder, of a module that is no more than what a test says of it."""
    settings = {"label_kind": "pairwise", "policy": SimpleNamespace(identity="base")}
    stand_in = cast(PreferenceModule, SimpleNamespace(**(settings | module)))
    runtime = Runtime(workers=Workers(rank, 2 if rank else 1))
    run.round(number).path.mkdir(parents=True, exist_ok=True)
    policies = RoundPolicies(run, stand_in)
    return Round(number, run, stand_in, policies, runtime, RoundData(number, (), {}))


def candidates(scores: list[float]) -> tuple[list[Candidate], list[Verdict]]:
    """Videos of one prompt, and what a critic said of them."""
    gauges = {"motion": 5.0, "blank": 0.0}
    videos = [Candidate(0, "p", k, k, f"l{k}", f"v{k}", gauges) for k in range(len(scores))]
    return videos, [Verdict(0, k, f"v{k}", "critic", score) for k, score in enumerate(scores)]


def written(run: RunDir, scores: list[float]) -> Round:
    """A round whose videos have been scored."""
    current = a_round(run)
    videos, verdicts = candidates(scores)
    current.folder.write(current.folder.candidates_file, videos)
    current.folder.write(current.folder.verdicts_file, verdicts)
    return current


# -------------------------------------------------------------------- single stages


def test_labelling_alone(tmp_path: Path) -> None:
    current, stage = written(RunDir(tmp_path), [0.2, 0.9, 0.5]), LabellingStage(Labelling())
    assert not stage.done(current)
    stage.run(current)
    assert stage.done(current)
    (row,) = stage.load(current).rows
    assert isinstance(row, Pair) and (row.winner, row.loser) == (1, 0)
    assert json.loads(current.folder.labelling_file.read_text())["kept"] == 1


def test_a_round_without_labels_is_refused_when_they_are_loaded(tmp_path: Path) -> None:
    current, stage = written(RunDir(tmp_path), [0.5, 0.5]), LabellingStage(Labelling())
    stage.run(current)
    with pytest.raises(InputError, match="round 1: no label was kept"):
        stage.load(current)


def test_only_the_leading_rank_writes(tmp_path: Path) -> None:
    current = written(RunDir(tmp_path), [0.2, 0.9])
    LabellingStage(Labelling()).run(a_round(RunDir(tmp_path), rank=1))
    assert not current.folder.pairs_file.exists()


class Asked:
    """A critique that was given its verdicts."""

    def __init__(self, verdicts: list[Verdict]) -> None:
        self.verdicts = verdicts

    def ask(self, videos: list[Candidate], *where: Any) -> list[Verdict]:
        assert [one.video for one in videos] == [one.video for one in self.verdicts]
        return self.verdicts


def test_critique_alone(tmp_path: Path) -> None:
    current = a_round(RunDir(tmp_path))
    videos, verdicts = candidates([0.1, 0.2])
    current.folder.write(current.folder.candidates_file, videos)
    stage = CritiqueStage(cast(Any, Asked(verdicts)), Labelling())
    assert not stage.done(current)
    stage.run(current)
    assert stage.done(current) and current.folder.verdicts() == verdicts


def test_a_critique_with_too_few_verdicts_leaves_no_file(tmp_path: Path) -> None:
    """Else the file would say that all candidates have been asked about."""
    current = a_round(RunDir(tmp_path))
    videos, verdicts = candidates([0.1, 0.2])
    silent = [replace(one, score=None, fault="unreadable") for one in verdicts]
    current.folder.write(current.folder.candidates_file, videos)
    stage = CritiqueStage(cast(Any, Asked(silent)), Labelling())
    with pytest.raises(InputError, match="missing|verdict"):
        stage.run(current)
    assert not stage.done(current)


def test_a_plan_draws_other_prompts_in_each_round() -> None:
    plan = RolloutPlan([f"p{i}" for i in range(50)], n=2, prompts_per_round=5, seed=3)
    one, two = plan.of_round(1), plan.of_round(2)
    assert one == plan.of_round(1) and len(one) == 5
    assert {item.prompt for item in one} != {item.prompt for item in two}
    assert len({seed for item in [*one, *two] for seed in item.seeds}) == 20


def test_the_training_clock_skips_what_lies_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([1.0, 3.0, 10.0, 11.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    clock = TrainingClock()
    clock.reset(5.0)
    for _ in range(2):
        clock.start()
        clock.stop()
    assert clock.seconds == 5.0 + 2.0 + 1.0


# -------------------------------------------------------------------- the list


class Source:
    """Labels from elsewhere for some rounds."""

    def __init__(self, rounds: int | None = None) -> None:
        self.rounds, self.asked = rounds, 0
        row = Pair(0, 0, "p", 0, 1, "l0", "l1", "v0", "v1", 0.5)
        videos, verdicts = candidates([0.9, 0.1])
        self.labels = ImportedLabels(videos, verdicts, [row], {"tie": 2})

    def prepare(self, *arguments: Any) -> ImportedLabels:
        self.asked += 1
        return self.labels


def a_list(**more: Any) -> list[RoundStage]:
    sampler = SimpleNamespace(
        store=Store("nowhere"), embed=lambda prompts, runtime: None, after=lambda drafter: drafter
    )
    own = {"rollout": RolloutPlan(["p"], n=2), "critique": SimpleNamespace()}
    return round_stages(cast(Any, sampler), cast(Any, None), **{**own, **more})


@pytest.mark.parametrize("source", [None, Source(), Source(rounds=1)])
def test_the_list_states_the_loop(source: Source | None) -> None:
    assert [stage.name for stage in a_list(imported=source)] == NAMES


@pytest.mark.parametrize("source", [None, Source(rounds=1)])
def test_drafts_come_before_the_finals(source: Source | None, tmp_path: Path) -> None:
    stages = a_list(imported=source, drafter=Drafter(*[cast(Any, None)] * 3))
    assert [stage.name for stage in stages] == ["drafts", "draft critique", *NAMES]
    if source is not None:  # the round with imported labels has none
        assert all(stage.done(a_round(RunDir(tmp_path))) for stage in stages[:2])


def test_rounds_without_imported_labels_need_a_rollout() -> None:
    assert a_list(imported=Source(), rollout=None, critique=None)
    for source in (None, Source(rounds=1)):
        with pytest.raises(ValueError, match="give rollout and critique"):
            a_list(imported=source, rollout=None)


def test_imported_labels_become_a_rounds_files(tmp_path: Path) -> None:
    source, current = Source(), a_round(RunDir(tmp_path))
    stages = a_list(imported=source)[:3]
    for stage in stages:
        assert not stage.done(current)
        stage.run(current)
    folder, labels = current.folder, source.labels
    assert folder.candidates() == labels.candidates and folder.verdicts() == labels.verdicts
    assert stages[2].load(current).rows == folder.pairs() == labels.rows
    assert json.loads(folder.labelling_file.read_text()) == {"kept": 1, "dropped": {"tie": 2}}
    assert source.asked == 1
    assert not stages[0].done(current), "in each run the source is looked at anew"
    source.labels = source.labels._replace(rows=[replace(labels.rows[0], winner=1, loser=0)])
    with pytest.raises(InputError, match="not what they were"):
        stages[0].run(current)


def test_imported_labels_are_for_the_first_rounds(tmp_path: Path) -> None:
    first, later = Seen("labelling"), Seen("labelling")
    stage = FirstRounds(2, first, later)
    for number in (1, 2, 3):
        current = a_round(RunDir(tmp_path), number)
        assert not stage.done(current)
        stage.run(current)
        stage.load(current)
    assert (first.log, later.log) == ([1, 2], [3])


# -------------------------------------------------------------------- the maker


class Seen(RoundStage):
    """A stage that writes down for which rounds it was run."""

    def __init__(self, name: str, found: bool = False) -> None:
        self.name, self.found, self.log = name, found, list[int]()

    def done(self, round: Round) -> bool:
        return self.found or round.number in self.log

    def run(self, round: Round) -> None:
        self.log.append(round.number)

    def load(self, round: Round) -> RoundData:
        return round.data._replace(texts={**round.data.texts, self.name: "loaded"})


def a_maker(
    run: RunDir, stages: list[RoundStage], **more: Any
) -> tuple[RoundMaker, list[tuple[int, Any]]]:
    """A maker of rounds without a network, and the rounds that its module was told to begin."""
    begun: list[tuple[int, Any]] = []
    module = SimpleNamespace(
        network=nn.Linear(1, 1),
        reference=SimpleNamespace(of="round_start", answers="precomputed"),
        policy=SimpleNamespace(identity="base"),
        begin_round=lambda number, reference: begun.append((number, reference)),
    )
    return RoundMaker(run, cast(Any, module), stages, **more), begun


def the_loop() -> dict[str, Seen]:
    return {name: Seen(name) for name in ("rollout", "labelling", "training", "evaluation")}


class Losing(Seen):
    """A stage to which a file that it uses proves damaged some times."""

    def __init__(self, name: str, times: int) -> None:
        super().__init__(name)
        self.times, self.began = times, 0

    def run(self, round: Round) -> None:
        self.began += 1
        if self.began <= self.times:
            raise LostBlob("a file is gone")
        super().run(round)


def test_a_round_goes_through_its_stages_again_where_a_file_proves_damaged(tmp_path: Path) -> None:
    first, second = Seen("rollout"), Losing("labelling", 2)
    maker, _ = a_maker(RunDir(tmp_path), [first, second, Seen("training")])
    maker.bring(1, "labelling")
    assert (second.began, first.log, second.log) == (3, [1], [1])
    always = Losing("rollout", 99)
    maker, _ = a_maker(RunDir(tmp_path / "other"), [always, Seen("training")])
    with pytest.raises(LostBlob, match="a file is gone"):
        maker.bring(1, "rollout")
    assert always.began == 3


def test_what_is_done_is_loaded_and_not_made_again(tmp_path: Path) -> None:
    run, stages = RunDir(tmp_path), the_loop()
    stages["rollout"].found = True
    maker, begun = a_maker(run, [*stages.values()])
    data = maker.ensure_round(1, draws=8)
    assert data.texts == {"rollout": "loaded", "labelling": "loaded"}
    assert begun == [(1, None)]
    assert [stage.log for stage in stages.values()] == [[], [1], [], [0]]
    assert run.round(1).seconds().keys() == {"labelling"}
    maker.ensure_round(1, draws=8)
    assert stages["labelling"].log == [1]


def test_a_new_stage_is_a_class_and_a_line(tmp_path: Path) -> None:
    """Between labelling and training, as an update of the critic would be."""

    class CriticUpdate(RoundStage):
        name = "critic update"

        def done(self, round: Round) -> bool:
            return (round.folder.path / "critic.json").exists()

        def run(self, round: Round) -> None:
            assert round.data.texts.keys() == {"rollout", "labelling"}
            (round.folder.path / "critic.json").write_text(str(round.draws))

    stages = [*the_loop().values()]
    stages.insert(2, CriticUpdate())
    run = RunDir(tmp_path)
    maker, _ = a_maker(run, stages)
    maker.ensure_round(1, draws=8)
    assert (run.round(1).path / "critic.json").read_text() == "8"
    assert "critic update" in run.round(1).seconds()


def test_a_stage_brings_a_round_as_far_as_it_is_asked(tmp_path: Path) -> None:
    stages = the_loop()
    maker, begun = a_maker(RunDir(tmp_path), [*stages.values()])
    maker.bring(1, "rollout")
    assert [stage.log for stage in stages.values()] == [[1], [], [], []] and begun == []
    maker.bring(1, "labelling")
    assert [stage.log for stage in stages.values()] == [[1], [1], [], []]
    with pytest.raises(ValueError, match="critique"):
        maker.bring(1, "critique")


def test_until_stops_after_the_stage_of_the_last_round(tmp_path: Path) -> None:
    stages = the_loop()
    maker, _ = a_maker(RunDir(tmp_path), [*stages.values()], last_round=2, until="rollout")
    maker.ensure_round(1, draws=8)
    with pytest.raises(StageReached, match="stopped after the rollout of round 2"):
        maker.ensure_round(2, draws=8)
    assert stages["labelling"].log == [1]
    assert stages["training"].log == [1], "the round before is closed first"


def test_a_finished_run_is_asked_for_one_round_too_many(tmp_path: Path) -> None:
    run, stages, closed = RunDir(tmp_path), the_loop(), list[int]()
    maker, begun = a_maker(run, [*stages.values()], last_round=1, on_closed=closed.append)
    maker.ensure_round(1, draws=8)
    data = maker.ensure_round(2, draws=8)
    assert data.number == 1 and begun == [(1, None)] * 2
    assert stages["training"].log == [1]
    assert closed == [0, 1]
    run.append({"round": 1})
    maker.close_round(1)
    assert closed == [0, 1], "a round that has its line is closed"


def test_the_leading_ranks_view_of_the_disk_counts(tmp_path: Path) -> None:
    """A rank that sees nothing of what is there must not wait at another place."""
    stages = [Seen("rollout"), Seen("training")]
    runtime = Runtime(workers=Workers(1, 2, broadcast=lambda found: True))
    maker, _ = a_maker(RunDir(tmp_path), cast(Any, stages), runtime=runtime)
    maker.bring(1, "rollout")
    assert stages[0].log == []


# -------------------------------------------------------------------- policies


def test_modes_are_restored_one_by_one() -> None:
    network = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(1, 1)))
    network.train()
    network[1].eval()
    before = [module.training for module in network.modules()]
    with pytest.raises(OSError), eval_mode(network):
        assert not any(module.training for module in network.modules())
        raise OSError
    assert [module.training for module in network.modules()] == before


def test_a_network_gets_its_own_weights_back(tmp_path: Path) -> None:
    policy = CogVideoX(PIPELINE)
    module = PreferenceModule(policy, partial(dpo_loss, beta=1000.0))
    module.configure_model()
    policies = RoundPolicies(RunDir(tmp_path), module)
    with torch.no_grad():
        for weight in module.trained().values():
            weight.add_(1.0)
    own = {name: weight.clone() for name, weight in module.trained().items()}
    base = policy.build().state_dict()
    with policies.network(0) as network:
        assert not network.training
        assert all(torch.equal(weight, base[name]) for name, weight in module.trained().items())
    assert module.network.training
    assert all(torch.equal(weight, own[name]) for name, weight in module.trained().items())


def test_a_policy_that_is_gone_says_what_to_do(tmp_path: Path) -> None:
    current = a_round(RunDir(tmp_path))
    assert current.policies.fingerprint(0) == "base"
    with pytest.raises(InputError, match="round 1 must be trained again"):
        current.policies.fingerprint(1)


# -------------------------------------------------------------------- with and without a trainer


def parts(folder: Path) -> tuple[RoundMaker, PreferenceModule]:
    """What conftest's `small` describes, from Python."""
    store = Store(folder / "store")
    sampler = Sampler(CogVideoX(PIPELINE, decode_batch=6), store, Sampling(3), lossless=True)
    critic, judge = (critique_of(one, store) for one in (ShapesCritic(), ShapesJudge()))
    evaluation = Evaluation(
        prompts("select")[:2], n=1, sampler=sampler, critic=critic, eval_critic=judge
    )
    plan = RolloutPlan(prompts("train"), n=3, prompts_per_round=3)
    stages = round_stages(sampler, evaluation, rollout=plan, critique=critic)
    module = PreferenceModule(sampler.policy, partial(dpo_loss, beta=1000.0))
    return RoundMaker(RunDir(folder / "python"), module, stages), module


@pytest.mark.slow
def test_python_alone_makes_what_the_command_line_makes(
    small: Callable[..., DictConfig], tmp_path: Path
) -> None:
    cfg = small("round=1", "until=labelling")
    train(cfg)
    maker, _ = parts(tmp_path)
    maker.bring(1, "labelling")
    ours, theirs = maker.run.round(1), RunDir(Path(cfg.paths.outputs) / "run").round(1)
    for name in ("candidates", "verdicts", "pairs"):
        one, other = (folder.path / f"{name}.jsonl" for folder in (ours, theirs))
        assert one.read_text() == other.read_text(), name
    assert maker.run.line(0) is None, "nothing was evaluated"


@pytest.mark.slow
def test_a_training_loop_of_ones_own(tmp_path: Path) -> None:
    maker, module = parts(tmp_path)
    data = maker.ensure_round(1, draws=4)
    assert data.errors is not None and data.errors.shape == (4, 2)
    assert {row.prompt for row in data.rows} <= data.texts.keys()
    with torch.no_grad():
        next(iter(module.trained().values())).mul_(1.01)
    maker.close_round(1)
    base, line = maker.run.lines()
    assert line["policy"] != base["policy"]
    folder = maker.run.round(1)
    assert folder.fingerprint() == line["policy"]
    assert maker.policies.weights(1) is not None
    assert "round 1" in (folder.policy / "README.md").read_text()


class FakeTrainer:
    """As much of a trainer as the rounds ask of it."""

    def __init__(self, **more: Any) -> None:
        self.global_rank, self.world_size, self.num_devices = 0, 1, 1
        self.is_global_zero, self.global_step, self.precision = True, 7, "bf16-mixed"
        self.precision_plugin = SimpleNamespace(forward_context=nullcontext)
        self.strategy = SimpleNamespace(
            barrier=lambda: None,
            broadcast=lambda value: value,
            reduce_boolean_decision=lambda decision, all: decision,
            root_device=torch.device("cpu"),
        )
        self.should_stop = False
        self.loggers: list[Any] = []
        self.callbacks: list[Any] = []
        vars(self).update(more)


def test_a_runtime_is_the_trainers() -> None:
    runtime = runtime_of(cast(Any, FakeTrainer()), parallel_prompts=3)
    assert (runtime.precision, runtime.workers.threads) == ("bf16-mixed", 3)
    assert runtime.autocast is nullcontext and runtime.device.type == "cpu"
    gpu = SimpleNamespace(barrier=None, broadcast=None, root_device=torch.device("cuda", 1))
    runtime = runtime_of(cast(Any, FakeTrainer(strategy=gpu)))
    assert (runtime.device, runtime.workers.threads) == (torch.device("cuda", 1), 1)


def test_a_trainer_that_keeps_its_loader_is_refused(tmp_path: Path) -> None:
    callback, module = IterationCallback(RunDir(tmp_path), [TrainingStage()]), L.LightningModule()

    def set_up(**settings: Any) -> None:
        quiet: Any = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
        callback.setup(L.Trainer(**quiet, **settings), module, "fit")

    set_up(max_epochs=3, reload_dataloaders_every_n_epochs=1)
    set_up(max_epochs=1)
    with pytest.raises(InputError, match="reload_dataloaders_every_n_epochs=1"):
        set_up(max_epochs=3)


def test_a_datamodule_finds_what_makes_rounds(tmp_path: Path) -> None:
    callback = IterationCallback(RunDir(tmp_path), [TrainingStage()])
    datamodule = PreferenceDataModule(Store(tmp_path), batch_size=1, optimizer_steps=1)
    datamodule.trainer = cast(Any, FakeTrainer(callbacks=[L.Callback(), callback]))
    assert datamodule._source() is callback
    mine = IterationCallback(RunDir(tmp_path), [TrainingStage()])
    own = PreferenceDataModule(Store(tmp_path), batch_size=1, optimizer_steps=1, source=mine)
    own.trainer = datamodule.trainer
    assert own._source() is mine


def test_a_finished_round_is_announced(tmp_path: Path) -> None:
    run, logged, told = RunDir(tmp_path), list[Any](), list[Any]()
    line = {"round": 1, "score": 0.5, "win_rate": None, "gauges": {"motion": 2.0},
            "dims": {"colour": 0.1}, "train": {"beta": 3.0}}  # fmt: skip
    run.append(line)
    logger = SimpleNamespace(log_metrics=lambda values, step: logged.append((values, step)))
    listener = SimpleNamespace(on_round_end=lambda *said: told.append(said))
    trainer = cast(Any, FakeTrainer(loggers=[logger], callbacks=[L.Callback(), listener]))
    announce(trainer, run, 1)
    figures = {"round/score": 0.5, "round/gauge/motion": 2.0, "round/dims/colour": 0.1,
               "round/beta": 3.0}  # fmt: skip
    assert round_figures(line) == figures
    assert logged == [({**figures, "round": 1}, 7)]
    assert told == [(trainer, 1, tmp_path / "round_1")]
