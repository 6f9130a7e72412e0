"""Rounds whose candidates are drafted: their files, counts, resumption and damage."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from omegaconf import DictConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.assembly import assemble, make_sampling
from app.entry import determining
from app.planning.rollouts import told, videos_of
from ipo_lightning.critics.protocols import Rating
from ipo_lightning.errors import InputError
from ipo_lightning.labelling import Labelling, best_versus_worst
from ipo_lightning.policy import LORA_FILE, trained_weights
from ipo_lightning.report.costs import round_costs
from ipo_lightning.report.labels import counts_part
from ipo_lightning.report.run import read_round
from ipo_lightning.rounds.drafts import FinalsStage
from ipo_lightning.rounds.labels import LabellingStage, label_counts
from ipo_lightning.sampling import Sampler
from ipo_lightning.storage.layout import RoundDir, RunDir, drafts_in
from ipo_lightning.storage.records import Candidate, Verdict
from ipo_lightning.storage.store import Store
from tests.conftest import SMALL, ComposeTrain
from tests.helpers.ranks import ranks
from tests.rounds.test_rounds import Killed
from tests.rounds.test_stages import a_round
from train import train

DRAFTED = ("rollout.n=4", "rollout.draft.steps=2", "round=1")
FILES = ("drafts", "draft_verdicts", "candidates", "verdicts", "pairs")
EVALUATIONS = 3 * (4 * 2 + 2 * 3)
"""3 prompts, each with 4 drafts of 2 steps and 2 finals of 3."""

Drafted = Callable[..., DictConfig]


@pytest.fixture
def drafted(compose_train: ComposeTrain) -> Drafted:
    """``drafted(outputs, *overrides)``: a small run whose candidates are drafted."""
    return lambda outputs, *more: compose_train(*SMALL, *DRAFTED, *more, outputs=Path(outputs))


@pytest.fixture(scope="module")
def labelled_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run lies that was stopped after its labelling, once a test has made it."""
    return tmp_path_factory.mktemp("labelled")


@pytest.fixture
def labelled(labelled_once: Path, drafted: Drafted, tmp_path: Path) -> DictConfig:
    """A copy of a run that was stopped after its labelling."""
    if not (labelled_once / "run").exists():
        train(drafted(labelled_once, "until=labelling"))
    shutil.copytree(labelled_once, tmp_path / "copy")
    return drafted(tmp_path / "copy", "until=labelling")


def folder_of(cfg: DictConfig) -> RoundDir:
    return RunDir(f"{cfg.paths.outputs}/{cfg.name}").round(1)


def files_of(cfg: DictConfig) -> dict[str, bytes]:
    """The round's files of rows, by name."""
    folder = folder_of(cfg).path
    return {name: (folder / f"{name}.jsonl").read_bytes() for name in FILES}


def stop_at(patch: pytest.MonkeyPatch, owner: type, name: str) -> None:
    def fail(*arguments: Any, **named: Any) -> None:
        raise Killed

    patch.setattr(owner, name, fail)


# -------------------------------------------------------------------- settings


def test_candidates_without_guidance_evaluated_with_it(small: ComposeTrain) -> None:
    """Both evaluations are guided, the candidates are not; runs of before do not name it."""
    assert "guidance_scale" not in determining(small())["evaluation"]
    cfg = small("evaluation.guidance_scale=3", "evaluation.split=final", "evaluation.choice_n=1")
    assert determining(cfg)["evaluation"]["guidance_scale"] == 3
    parts = assemble(cfg)
    assert parts.choice is not None
    evaluated = {one.sampler.sampling.guidance_scale for one in (parts.evaluation, parts.choice)}
    assert evaluated == {3.0}
    assert make_sampling(cfg).guidance_scale == 1
    with pytest.raises(InputError, match=r"evaluation\.guidance_scale=0\.5"):
        train(small("evaluation.guidance_scale=0.5", "evaluation.choice_n=0"))


def test_a_run_without_drafts_is_the_run_that_it_was(small: ComposeTrain) -> None:
    """Its settings do not name them, so that runs of before go on."""
    assert "draft" not in determining(small())["rollout"]
    assert "draft" not in determining(small("rollout.draft=null"))["rollout"]
    assert determining(small("rollout=drafted"))["rollout"]["draft"]["steps"] == 3
    assert assemble(small()).drafter is None


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["rollout.draft.steps=3"], "a draft takes 3 network evaluations"),
        (["rollout.draft.steps=0"], r"rollout\.draft\.steps=0"),
        (["rollout.draft.guidance_scale=0.5"], r"rollout\.draft\.guidance_scale=0\.5"),
        (["rollout.draft.scheduler=unipc", "rollout.draft.steps=2"], "scheduler=unipc"),
        (["rollout.draft.steps=2", "rollout.shared=0.4"], "shared=0.4"),
        (["rollout.draft.cache={_target_: diffusers.Nothing}"], r"rollout\.draft\.cache"),
        (["rollout.draft.steps=2", "loss=kto", "labelling.middle=keep"], "middle=drop"),
        (["rollout.draft=3"], r"rollout\.draft=3"),
        (["rollout.draft.prune_at=2"], r"rollout\.draft\.prune_at=2"),
        (["rollout.draft.margin=1"], r"rollout\.draft\.margin=1: there are no drafts"),
        (["rollout.draft.steps=2", "rollout.draft.margin=1", "loss=kto"], "points are made by"),
        (
            [
                "rollout.draft.steps=2",
                "rollout.draft.critic=${critic}",
                "loss=kto",
                "labelling.bounds=score",
            ],
            "units of the critic of the finals",
        ),
        (["rollout.draft.steps=2", "rollout.draft.margin=-1"], "margin=-1"),
        (["critic={_target_: tests.rounds.test_drafted.Brightness}"], "among drafts alone"),
        (["rollout=pruned", "rollout.draft.scheduler=dpm"], r"rollout\.draft\.scheduler=dpm"),
        (
            ["rollout.draft.lora=nowhere", "rollout.draft.steps=2"],
            r"rollout\.draft\.lora=nowhere: there is no such file",
        ),
        (["rollout.draft.attention=sage", "rollout.draft.steps=2"], "attention=sage: .*install"),
        (["rollout.draft.weights=int4"], r"rollout\.draft\.weights=int4"),
        (["rollout.draft.weights=int8", "rollout.draft.compile=true"], "compile=true"),
    ],
)
def test_drafts_that_cannot_work_are_refused(
    small: ComposeTrain, words: list[str], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        train(small(*words))


def test_a_draft_takes_the_settings_of_the_finals_but_its_own(small: ComposeTrain) -> None:
    words = ("rollout.guidance_scale=3", "rollout.dynamic_guidance=true", "rollout.draft.steps=2")
    drafter = assemble(small(*words)).drafter
    assert drafter is not None and drafter.sampler.sampling.steps == 2
    assert (
        drafter.sampler.sampling.guidance_scale == 3 and drafter.sampler.sampling.dynamic_guidance
    )
    drafter = assemble(small(*words, "rollout.draft.guidance_scale=1")).drafter
    assert (
        drafter is not None and drafter.sampler.sampling.evaluations(1) == 2
    )  # no guidance, one forward


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["rollout=shapes"], "3 steps each: 36 network evaluations"),  # 3 x 4 x 3
        (["rollout.draft.steps=2"],
         "drafts of 2 steps, then at most 2 finals a prompt of 3 steps: "
         f"at most {EVALUATIONS} network evaluations"),
        (["rollout.draft.prune_at=0.34"],
         "foreseen after 1 of 3 steps, then at most 2 finals a prompt of 2 steps: "
         "at most 24 network evaluations"),
    ],
)  # fmt: skip
def test_the_plan_counts_evaluations(small: ComposeTrain, words: list[str], sentence: str) -> None:
    cfg = small("rollout.n=4", *words)
    assert told(videos_of(assemble(cfg), cfg), 3) == sentence


@pytest.mark.slow
def test_drafts_of_another_network_leave_the_finals_the_policys_own(
    drafted: Drafted, tmp_path: Path
) -> None:
    """A LoRA over the policy, rounded weights and other attention are of drafts alone; the run is
    held to the LoRA's content."""
    with_adapter = assemble(drafted(tmp_path / "lora", "experiment=shapes_lora")).policy
    network = with_adapter.build()
    for weight in trained_weights(network).values():
        torch.nn.init.normal_(weight, std=0.1)
    with_adapter.export(network, tmp_path)
    file = tmp_path / LORA_FILE
    own = (f"rollout.draft.lora={file}", "rollout.draft.weights=int8", "until=critique",
           "rollout.draft.attention=native")  # fmt: skip
    plain, other = drafted(tmp_path, "name=plain", "until=critique"), drafted(tmp_path, *own)
    train(plain)
    train(other)
    made = [drafts_in(folder_of(cfg)).candidates() for cfg in (plain, other)]
    assert not {one.latents for one in made[0]} & {one.latents for one in made[1]}
    finals = [
        {(one.prompt_index, one.candidate): one.latents for one in folder_of(cfg).candidates()}
        for cfg in (plain, other)
    ]
    both = finals[0].keys() & finals[1].keys()
    whole = [p for p in {p for p, _ in both} if chosen_of(finals[0], p) == chosen_of(finals[1], p)]
    assert all(finals[0][p, k] == finals[1][p, k] for p in whole for k in chosen_of(finals[0], p))
    with safe_open(file, "pt") as old:
        settings = old.metadata()
    save_file({name: 2 * one for name, one in load_file(file).items()}, file, settings)
    with pytest.raises(InputError, match=f"other contents of .*{LORA_FILE}"):
        train(drafted(tmp_path, *own))


def chosen_of(finals: dict[tuple[int, int], str], prompt: int) -> list[int]:
    """Numbers of a prompt's finals, which are made as one batch."""
    return sorted(number for index, number in finals if index == prompt)


# -------------------------------------------------------------------- a round


def test_turned_pairs_are_dropped_and_counted(tmp_path: Path) -> None:
    """Of three prompts one keeps its order, one turns, and the drafts of one are too close."""
    current, rules = a_round(RunDir(tmp_path)), Labelling(partial(best_versus_worst, margin=0.1))
    drafts = {0: [0.9, 0.5, 0.1], 1: [0.2, 0.5, 0.8], 2: [0.5, 0.5, 0.5]}
    finals = {0: {0: 0.7, 2: 0.3}, 1: {0: 0.6, 2: 0.4}}
    write_scored(drafts_in(current.folder), {p: dict(enumerate(s)) for p, s in drafts.items()})
    write_scored(current.folder, finals)
    LabellingStage(rules, drafted=rules).run(current)
    (pair,) = current.folder.pairs()
    assert (pair.prompt_index, pair.winner, pair.loser) == (0, 0, 2)
    assert label_counts(current) == {
        "kept": 1,
        "dropped": {"turned": 1},
        "figures": {"prompts": 3, "prompts_labelled": 1},
        "drafts": {"finals": 4, "dropped": {"score margin too small": 1}},
    }
    shown = str(counts_part(label_counts(current)))
    assert "turned: 1" in shown and "drafts, score margin too small: 1" in shown


def write_scored(folder: RoundDir, scores: dict[int, dict[int, float]]) -> None:
    """Videos and their ratings, by prompt and number."""
    gauges = {"motion": 5.0, "blank": 0.0}
    rows = [(p, k, score) for p, own in scores.items() for k, score in own.items()]
    folder.write(
        folder.candidates_file,
        [Candidate(p, "p", k, k, f"l{p}{k}", f"v{p}{k}", gauges) for p, k, _ in rows],
    )
    folder.write(folder.verdicts_file,
                 [Verdict(p, k, f"v{p}{k}", "critic", score) for p, k, score in rows])  # fmt: skip


@pytest.mark.slow
def test_a_drafted_round(labelled: DictConfig, drafted: Drafted) -> None:
    folder = folder_of(labelled)
    drafts, finals = drafts_in(folder).candidates(), folder.candidates()
    assert Counter(one.prompt_index for one in drafts).most_common() == [
        (index, 4) for index in sorted({one.prompt_index for one in drafts})
    ]
    by_place = {(one.prompt_index, one.candidate): one for one in drafts}
    for one in finals:
        draft = by_place[one.prompt_index, one.candidate]
        assert one.seed == draft.seed and one.latents != draft.latents
    scores = {(one.prompt_index, one.candidate): one.score  # type: ignore[union-attr]
              for one in drafts_in(folder).verdicts()}  # fmt: skip
    for prompt in {one.prompt_index for one in finals}:
        own = {place: score for place, score in scores.items() if place[0] == prompt}
        ends = {max(own, key=own.__getitem__), min(own, key=own.__getitem__)}
        assert {p for p in by_place if p in {(o.prompt_index, o.candidate) for o in finals}
                and p[0] == prompt} == ends  # fmt: skip
    latents = {one.latents for one in finals}
    for pair in folder.pairs():
        assert {pair.winner_latents, pair.loser_latents} <= latents
        winner, loser = ((pair.prompt_index, one) for one in (pair.winner, pair.loser))
        assert scores[winner] > scores[loser]
    said = json.loads(folder.labelling_file.read_text())
    assert said["drafts"] == {"finals": len(finals), "dropped": {}}
    assert said["figures"]["prompts"] == 3
    assert said["kept"] + sum(said["dropped"].values()) == 3

    line = train(drafted(Path(labelled.paths.outputs)))
    assert line is not None and len(finals) == 6 and line["evaluations"] == EVALUATIONS
    assert {"drafts", "draft critique", "rollout", "critique"} <= line["seconds"].keys()
    base = RunDir(f"{labelled.paths.outputs}/run").line(0)
    assert base is not None and base["evaluations"] is None
    costs = round_costs(read_round(folder, line), line, {})
    assert costs["rollout"].evaluations == EVALUATIONS
    assert costs["draft critique"].calls == 12 and costs["critique"].calls == 6


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before the finals", "before their second prompt is kept"])
def test_a_kill_between_drafts_and_finals(
    labelled: DictConfig, drafted: Drafted, tmp_path: Path, moment: str
) -> None:
    cfg = drafted(tmp_path / "killed", "until=labelling")
    with pytest.MonkeyPatch.context() as patch:
        if moment == "before the finals":
            stop_at(patch, FinalsStage, "run")
        else:
            kept: list[Any] = []
            keep = Sampler._keep

            def once(self: Sampler, made: Any, calls: Any) -> Any:
                kept.append(made)
                if sum(bool(one.item.numbers) for one in kept) > 1:
                    raise Killed
                return keep(self, made, calls)

            patch.setattr(Sampler, "_keep", once)
        with pytest.raises(Killed):
            train(cfg)
    assert not folder_of(cfg).candidates_file.exists()
    made: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        keep = Sampler._keep

        def seen(self: Sampler, one: Any, calls: Any) -> Any:
            made.append(one)
            return keep(self, one, calls)

        patch.setattr(Sampler, "_keep", seen)
        train(cfg)
    assert files_of(cfg) == files_of(labelled)
    assert all(one.item.numbers for one in made)  # no draft was made again


@pytest.mark.slow
@pytest.mark.parametrize("name", ["drafts", "candidates", "draft_verdicts"])
@pytest.mark.filterwarnings("ignore:.*made anew:UserWarning")
def test_damaged_files_are_made_anew(labelled: DictConfig, name: str) -> None:
    before, file = files_of(labelled), folder_of(labelled).path / f"{name}.jsonl"
    if name == "draft_verdicts":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-20])
    train(labelled)
    assert files_of(labelled) == before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*made anew:UserWarning")
def test_edited_verdicts_on_drafts_choose_other_finals(labelled: DictConfig) -> None:
    folder = folder_of(labelled)
    file, before = drafts_in(folder).verdicts_file, folder.candidates()
    rows = [json.loads(row) for row in file.read_text().splitlines()]
    place = (before[0].prompt_index, before[0].candidate)
    scores = [row["score"] for row in rows if row["prompt_index"] == place[0]]
    middle = sorted(scores)[1]
    for row in rows:  # the first final's draft becomes like one in the middle
        if (row["prompt_index"], row["candidate"]) == place:
            row["score"] = middle + 1e-9
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(UserWarning, match="edited by hand"):
        train(labelled)
    after = {(one.prompt_index, one.candidate) for one in folder.candidates()}
    assert place not in after and len(after) == len(before)


@pytest.mark.slow
def test_until_rollout_has_finals_and_no_verdicts_on_them(
    labelled: DictConfig, drafted: Drafted, tmp_path: Path
) -> None:
    cfg = drafted(tmp_path / "short", "until=rollout")
    shutil.copytree(Path(labelled.paths.outputs) / "store", cfg.paths.store)
    train(cfg)
    folder = folder_of(cfg)
    assert folder.candidates() == folder_of(labelled).candidates()
    assert drafts_in(folder).verdicts_file.exists() and not folder.verdicts_file.exists()


@pytest.mark.slow
def test_pruned_candidates_go_on_from_where_they_stopped(
    labelled: DictConfig, drafted: Drafted, tmp_path: Path
) -> None:
    """Their videos are those of plain rollouts but for rounding; a kill in between loses nothing,
    and a draft that is lost is made again."""
    pruned = ("rollout=pruned", "rollout.draft.steps=null", "rollout.draft.prune_at=0.34")
    cfg = drafted(tmp_path, *pruned, "until=labelling")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, FinalsStage, "run")
        with pytest.raises(Killed):
            train(cfg)
    folder, store = folder_of(cfg), Store(cfg.paths.store)
    for draft in drafts_in(folder).candidates()[:4]:
        store.path("latents", draft.latents, ".safetensors").unlink()
    train(cfg)
    finals = folder.candidates()
    plain = drafted(tmp_path / "plain", "rollout.draft=null", "until=rollout")
    train(plain)
    whole = {(one.prompt_index, one.candidate): one.latents
             for one in folder_of(plain).candidates()}  # fmt: skip
    others = Store(plain.paths.store)
    assert len(finals) == 6
    for one in finals:
        own = store.get_tensors("latents", one.latents)["latents"]
        same = others.get_tensors("latents", whole[one.prompt_index, one.candidate])["latents"]
        assert torch.allclose(own, same, atol=1e-4)


class Brightness:
    """A critic of foreseen latents: their mean, which the noise level makes comparable to none."""

    identity = "brightness@1"
    levels: ClassVar[set[float]] = set()

    def load(self, device: str) -> None: ...

    def release(self) -> None: ...

    def rate_latents(
        self, latents: Tensor, noise_level: float, prompts: Sequence[str]
    ) -> list[Rating]:
        self.levels.add(noise_level)
        return [Rating(float(one.mean()) * 1000) for one in latents]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*made anew:UserWarning")
def test_a_critic_of_latents_chooses_among_drafts_that_are_not_decoded(
    drafted: Drafted, tmp_path: Path
) -> None:
    named = "rollout.draft.critic={_target_: tests.rounds.test_drafted.Brightness}"
    pruned = ("rollout.draft.steps=null", "rollout.draft.prune_at=0.34", "rollout.draft.margin=0")
    cfg = drafted(tmp_path, named, *pruned, "until=labelling")
    Brightness.levels.clear()
    train(cfg)
    folder, store = folder_of(cfg), Store(cfg.paths.store)
    drafts, finals = drafts_in(folder).candidates(), folder.candidates()
    assert {(one.video, len(one.gauges)) for one in drafts} == {("", 0)}
    assert all(one.video and one.gauges for one in finals) and len(finals) == 6
    assert len(Brightness.levels) == 1 and 0.9 < max(Brightness.levels) <= 1
    for prompt in {one.prompt_index for one in drafts}:
        mean = {
            one.candidate: float(store.get_tensors("latents", one.latents)["latents"].mean())
            for one in drafts
            if one.prompt_index == prompt
        }
        ends = {max(mean, key=mean.__getitem__), min(mean, key=mean.__getitem__)}
        assert {one.candidate for one in finals if one.prompt_index == prompt} == ends
    before = files_of(cfg)
    drafts_in(folder).verdicts_file.unlink()  # the answers are in the store
    Brightness.levels.clear()
    train(cfg)
    assert files_of(cfg) == before and not Brightness.levels


@pytest.mark.slow
@pytest.mark.parametrize("words", [("loss=kto",), ("critic=shapes_pairwise", "labelling=pairwise")])
def test_other_labels_and_critics(drafted: Drafted, tmp_path: Path, words: tuple[str, ...]) -> None:
    own = ("labelling.pair_rule.margin=0", "labelling.filters.motion_ratio=0")
    cfg = drafted(tmp_path, *words, *own, "until=labelling")
    train(cfg)
    folder = folder_of(cfg)
    file = folder.points_file if "loss=kto" in words else folder.pairs_file
    rows = [json.loads(row) for row in file.read_text().splitlines()]
    said = json.loads(folder.labelling_file.read_text())
    assert said["kept"] == len(rows) and said["drafts"]["finals"] == len(folder.candidates())
    assert len(folder.candidates()) < len(drafts_in(folder).candidates())
    finals = {one.latents for one in folder.candidates()}
    names = ("latents",) if "loss=kto" in words else ("winner_latents", "loser_latents")
    assert rows and all(row[name] in finals for row in rows for name in names)


@pytest.mark.slow
def test_two_ranks_make_the_same_files(
    labelled: DictConfig, drafted: Drafted, tmp_path: Path
) -> None:
    words = ("until=labelling", "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")
    cfg = drafted(tmp_path / "two", *words, "data.batch_size=1")
    assert ranks(train, cfg) == 0
    assert files_of(cfg) == files_of(labelled)
