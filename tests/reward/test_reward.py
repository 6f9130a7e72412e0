"""Training a critic: figures, data, runs that are killed and go on, the critic that comes out."""

import functools
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import nan, tensor

from app import critic_assembly
from app.checks import check_critic
from app.entry import task_of
from data.critic_datamodule import CriticDataModule, Order, Sample, collate, read_samples
from ipo_lightning.critics.people.annotations import Annotation, read_annotations, write_annotations
from ipo_lightning.critics.protocols import PointCritic
from ipo_lightning.errors import InputError
from ipo_lightning.exchange import read_any
from ipo_lightning.metrics.agreement import spearman
from ipo_lightning.reward.losses import RewardScale
from ipo_lightning.reward.module import measure_scale, pair_figures, point_figures
from ipo_lightning.reward.trained import TrainedCritic
from ipo_lightning.shapes import world
from ipo_lightning.shapes.annotators import (
    PAIRS_FILE,
    annotate,
)
from ipo_lightning.shapes.build import to_pixels
from ipo_lightning.shapes.prompts import combinations, prompts
from ipo_lightning.shapes.reward_encoder import (
    MAX_WORDS,
    WORDS,
    ShapesReward,
    tokens,
)
from ipo_lightning.shapes.spoiling import CORRUPTIONS, Spoilt, spoil
from ipo_lightning.storage.store import Store
from ipo_lightning.video import Clip, read_video
from tests import conftest
from train import train_critic

DIMS = ("VQ", "MQ", "TA", "Overall")
TINY = ("network.steps=0", "network.clips=64", "network.width=8", "data.optimizer_steps=3",
        "data.batch_size=4", "stopping.epochs=4", "trainer.accelerator=cpu", "logger=none",
        "trainer.enable_progress_bar=false", "name=run")  # fmt: skip


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    annotate(folder, pairs=40, source="renderer", candidates=2)
    return folder / PAIRS_FILE


@pytest.fixture
def composed(labels: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    """The settings of ``python train.py task=critic OVERRIDES...``, a training of seconds."""

    def compose_critic(*overrides: str, outputs: str = "outputs") -> DictConfig:
        words = (f"data.path={labels}", *TINY, *overrides)
        return conftest.composed("train_critic", *words, outputs=tmp_path / outputs)

    return compose_critic


# ---------------------------------------------------------------- figures


def test_accuracies_by_hand() -> None:
    """Four pairs of four prompts. Without ties three count: right, wrong, half for equal rewards.
    With ties each half of the prompts is read by the other's threshold: see the comments."""
    margin = tensor([[2.0], [-1.0], [0.0], [0.1]])
    labels = tensor([[1.0], [1.0], [-1.0], [0.0]])
    found = pair_figures(margin, labels, torch.arange(4), ["VQ"])
    assert found["accuracy/VQ"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert 0 <= found["accuracy_low/VQ"] < 0.5 < found["accuracy_high/VQ"] <= 1
    # Prompts 0 and 2: best threshold 0 (right, wrong). 1 and 3: 0.1 (wrong, right).
    # So 0: |2| > 0.1, right. 2: 0 is a tie, wrong. 1: wrong. 3: |0.1| > 0, wrong.
    assert found["accuracy_with_ties/VQ"] == pytest.approx(1 / 4)


def test_a_critic_that_may_be_guessing_is_said_to() -> None:
    """Ten prompts of four pairs: nearly all right in one dimension, half of them in the other."""
    margin = torch.ones(40, 2)
    labels = torch.ones(40, 2)
    labels[:2, 0] = labels[::2, 1] = -1
    found = pair_figures(margin, labels, torch.arange(40) // 4, ["VQ", "MQ"])
    figures = {f"valid/{name}": value for name, value in found.items()}
    figures |= {"valid/loss": 0.5, "training": 9, "validation": 40}
    shown = critic_assembly.table(figures, ["VQ", "MQ"])
    assert "VQ                0.950 [0.72, 0.99]" in shown and "0.500 [0.3" in shown
    assert "no better than chance, as far as these labels tell: MQ;" in shown
    assert "chance" not in critic_assembly.table(figures, ["VQ"])


def test_a_dimension_without_labels_has_no_accuracy_and_does_not_count() -> None:
    margin = tensor([[1.0, 1.0], [1.0, -1.0]])
    found = pair_figures(margin, tensor([[1.0, nan], [1.0, nan]]), torch.arange(2), ["VQ", "MQ"])
    assert found["accuracy/VQ"] == found["accuracy/mean"] == 1
    assert math.isnan(found["accuracy/MQ"])


def test_rated_videos_are_ranked() -> None:
    rewards = tensor([[1.0], [2.0], [3.0], [9.0]])
    found = point_figures(rewards, tensor([[0.1], [0.2], [0.9], [nan]]), torch.arange(4), ["VQ"])
    assert found["spearman/VQ"] == pytest.approx(1)


def test_the_scale_is_that_of_the_rewards() -> None:
    class Sum(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x.sum(1), torch.zeros(len(x))], 1)

    batches = [{"x": tensor([[1.0, 0.0], [2.0, 1.0]])}, {"x": tensor([[2.0, 3.0]])}]
    scale = measure_scale(Sum(), batches, torch.device("cpu"))
    assert scale.mean == pytest.approx((3, 0)) and scale.std == pytest.approx((2, 1))
    assert scale.scores(tensor([[5.0, 0.0]])).tolist() == [[1.0, 0.0]]


# ---------------------------------------------------------------- data


def test_every_pass_takes_each_sample_once_and_ranks_share_it() -> None:
    """Epochs of 4 places on each of 2 ranks over 5 samples: 10 epochs are 16 passes."""
    drawn: list[int] = []
    for epoch in range(10):
        ranks = []
        for rank in (0, 1):
            order = Order(5, 4, seed=3, rank=rank, world=2)
            order.set_epoch(epoch)
            ranks.append(list(order))
        drawn += [one for step in zip(*ranks, strict=True) for one in step]
    passes = [drawn[i : i + 5] for i in range(0, 80, 5)]
    assert all(sorted(one) == list(range(5)) for one in passes)
    assert len({tuple(one) for one in passes}) > 8
    alone = Order(5, 8, seed=3)
    assert list(alone) == drawn[:8], "as one process would draw them"


def made(labels: Path, **settings: Any) -> CriticDataModule:
    family = ShapesReward(steps=0)
    return CriticDataModule(DIMS, family.inputs, "pairwise", path=str(labels), **settings)


def test_no_prompt_is_on_both_sides_and_none_is_lost(labels: Path) -> None:
    data = made(labels, validation=0.3)
    sides = [{one.prompt for one in part} for part in (data.train, data.valid)]
    assert not sides[0] & sides[1]
    assert len(data.train) + len(data.valid) == 40
    held = {one.prompt for one in made(labels, validation=0.5).valid}
    assert sides[1] <= held, "a prompt's place is its own"


def test_spellings_of_a_prompt_are_on_one_side(labels: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").symlink_to(labels.parent / "videos")
    spelt = [replace(row, prompt=f" {row.prompt.replace(' ', '  ')}\u200b")
             for row in read_annotations(labels)]  # fmt: skip
    write_annotations(tmp_path / "pairs.jsonl", [*read_annotations(labels), *spelt])
    plain, mixed = made(labels, validation=0.3), made(tmp_path / "pairs.jsonl", validation=0.3)
    for one, other in ((plain.train, mixed.train), (plain.valid, mixed.valid)):
        assert {sample.prompt for sample in one} == {sample.prompt for sample in other}


def test_both_videos_of_a_pair_are_in_one_batch(labels: Path) -> None:
    data = made(labels)
    batch = data.collate(data.train[:3])
    rows = {row.path_A: row for row in read_annotations(labels)}
    for number, sample in enumerate(data.train[:3]):
        frames = batch.inputs["frames"]
        assert frames[number].equal(read_video(sample.videos[0]).frames)
        assert frames[number + 3].equal(read_video(sample.videos[1]).frames)
        row = rows[f"videos/{sample.videos[0].name}"]
        values = {"A": 1.0, "B": -1.0, "same": 0.0}
        assert batch.labels[number].tolist() == [values[row.labels[dim]] for dim in DIMS]
    assert batch.inputs["words"][:3].equal(batch.inputs["words"][3:])


def test_invalid_labels_are_missing(labels: Path, tmp_path: Path) -> None:
    row = read_annotations(labels)[0]
    (tmp_path / "videos").symlink_to(labels.parent / "videos")
    given = [
        {"VQ": "invalid", "MQ": "same", "Overall": "A"},
        {"VQ": "invalid", "Overall": "invalid"},
    ]
    file = tmp_path / "pairs.jsonl"
    write_annotations(file, [Annotation(str(n), row.prompt, row.path_A, row.path_B, one)
                             for n, one in enumerate(given)])  # type: ignore[arg-type] # fmt: skip
    (only,) = read_samples(read_any(file), "pairwise", ("MQ", "Overall"))
    assert only.labels == (0.0, 1.0)
    with pytest.raises(InputError, match="no row of .* has a label 'VQ'; it has MQ, Overall"):
        read_samples(read_any(file), "pairwise", ("VQ", "Overall"))


def by_hash(labels: Path, answers: Path, store: Store) -> None:
    """The labels as the annotation page has them: hashes, of videos that the store holds."""
    rows = []
    for row in read_annotations(labels):
        files = (labels.parent / path for path in (row.path_A, row.path_B))
        a, b = (store.put_blob("videos", file.read_bytes(), ".mp4") for file in files)
        rows.append(replace(row, path_A="", path_B="", video_A=a, video_B=b))
    write_annotations(answers, rows)


@pytest.mark.slow
def test_answers_of_the_page_find_their_videos_in_the_store(
    composed: Callable[..., DictConfig], labels: Path, tmp_path: Path
) -> None:
    answers, store = tmp_path / "answers.jsonl", Store(tmp_path / "shared")
    by_hash(labels, answers, store)
    known, beside = made(answers, store=store), made(labels)
    assert [one.labels for one in known.train] == [one.labels for one in beside.train]
    for one, other in zip(known.train, beside.train, strict=True):
        assert [v.read_bytes() for v in one.videos] == [v.read_bytes() for v in other.videos]
    words = (f"data.path={answers}", f"paths.store={store.root}", "stopping.epochs=1")
    assert train_critic(composed(*words)) is not None

    name = read_annotations(answers)[2].video_B
    store.path("videos", name, ".mp4").unlink()
    with pytest.raises(InputError) as caught:
        train_critic(composed(*words, "name=other"))
    assert str(caught.value) == (
        f"{answers}:3: the video of sha256 {name} has no path, and it is not in the store "
        f"{store.root}; give paths.store=DIR of the run that made it, or add path_A and path_B to "
        "the rows"
    )


def test_two_downloads_are_trained_on_once(labels: Path, tmp_path: Path) -> None:
    rows = [replace(row, timestamp="2026-01-01") for row in read_annotations(labels)]
    turned = {**rows[0].labels, "Overall": "same"}
    again = [replace(rows[0], labels=turned, timestamp="2026-01-02")]
    file = tmp_path / "pairs.jsonl"
    write_annotations(file, [*rows, *rows, *again])
    (tmp_path / "videos").symlink_to(labels.parent / "videos")
    data = made(file)
    assert len(data.train) + len(data.valid) == 40
    (first,) = (one for one in (*data.train, *data.valid)
                if one.videos[0].name == Path(rows[0].path_A).name
                and one.videos[1].name == Path(rows[0].path_B).name)  # fmt: skip
    assert first.labels[-1] == 0


def test_paths_may_start_in_another_folder(labels: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    write_annotations(file, read_annotations(labels))
    with pytest.raises(InputError, match=r"pairs.jsonl:1: there is no video videos/.* in "):
        made(file)
    assert made(file, videos=str(labels.parent)).content == made(labels).content
    with pytest.raises(InputError, match="^videos=none: there is no such folder"):
        made(file, videos="none")


def test_rated_videos_train_by_regression_alone(labels: Path, tmp_path: Path) -> None:
    rows = read_annotations(labels)[:6]
    heads = ["visual quality", "temporal consistency", "dynamic degree",
             "text-to-video alignment", "factual consistency"]  # fmt: skip
    file = tmp_path / "rated.jsonl"
    (tmp_path / "videos").symlink_to(labels.parent / "videos")
    lines = [
        {"id": str(n), "text prompt": row.prompt, "video link": row.path_A}
        | {head: 1 + (n + i) % 4 for i, head in enumerate(heads)}
        for n, row in enumerate(rows)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_samples(read_any(file), "pointwise", ("dynamic degree", "Overall"))
    assert [one.labels[0] for one in found] == [3.0, 4.0, 1.0, 2.0, 3.0, 4.0]
    assert all(len(one.videos) == 1 for one in found)
    with pytest.raises(InputError, match="learns from rated videos, the file holds pairs"):
        read_samples(read_any(labels), "pointwise", DIMS)


def test_rated_videos_in_a_batch() -> None:
    clip = Clip(world.clean_clips(["a red ring moving left"], 1)[0], 8.0)
    inputs: Callable[..., dict[str, torch.Tensor]] = ShapesReward(steps=0).inputs
    sample = Sample("a red ring moving left", (Path("x"),), (3.5, nan))
    batch = collate([sample], inputs=inputs, read=lambda _: clip, numbers={sample.prompt: 4})
    assert batch.inputs["frames"].shape == (1, 9, 32, 32, 3) and batch.prompts.tolist() == [4]
    assert batch.labels[0, 0] == 3.5 and batch.labels[0, 1].isnan()


# ---------------------------------------------------------------- the encoder and its critic


def test_words_of_the_world_are_known_and_others_are_not() -> None:
    asked = [*prompts("train"), *prompts("final")]
    assert all(
        (row > 0).sum() == len(p.split()) for row, p in zip(tokens(asked), asked, strict=True)
    )
    assert tokens(["a dancing ring"])[0, :4].tolist() == [
        1 + WORDS.index("a"), 0, 1 + WORDS.index("ring"), 0
    ]  # fmt: skip
    assert tokens(["ring " * 50]).shape == (1, MAX_WORDS)


@functools.cache
def spoilt(count: int = 256) -> tuple[torch.Tensor, Spoilt]:
    """Clips of one grey each, of which their only word is as true as they are bright."""
    greys = torch.linspace(0.1, 0.9, count)
    pixels = greys[:, None, None, None, None].expand(-1, 3, 9, 32, 32).contiguous()
    return greys, spoil(pixels, greys[:, None], torch.Generator().manual_seed(0))


def test_what_is_left_alone_is_as_it_was_and_corruptions_are_as_frequent_as_said() -> None:
    greys, found = spoilt()
    alone = found.strengths.eq(0).all(1)
    assert alone.sum() > 3
    assert ((found.pixels - greys[:, None, None, None, None])[alone].abs() < 1e-5).all()
    assert found.held[alone, 0].equal(greys[alone])
    often = dict(zip(CORRUPTIONS, found.strengths.gt(0).float().mean(0).tolist(), strict=True))
    wanted = dict.fromkeys(CORRUPTIONS, 0.3) | {"overlay": 0.2}
    assert often == pytest.approx(wanted, abs=0.1)
    assert found.strengths.max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["join", "overlay"])
def test_captions_of_mixed_clips_are_as_true_as_their_share_is_large(name: str) -> None:
    """Shaking and melting leave a grey clip as it is; what changes its grey is left out."""
    greys, found = spoilt()
    changed = [CORRUPTIONS.index(one) for one in ("flicker", "drift", "noise")]
    rows = found.strengths[:, CORRUPTIONS.index(name)].gt(0)
    rows &= found.strengths[:, changed].eq(0).all(1)
    assert rows.sum() > 10
    seen = found.pixels[rows].mean((1, 3, 4))
    assert seen.mean(1).sub(found.held[rows, 0]).abs().max() < 1e-5
    assert (found.held[rows, 0] != greys[rows]).any()
    steady = seen.sub(seen[:, :1]).abs().amax(1) < 1e-5
    assert steady.all() if name == "overlay" else not steady.all()


@pytest.fixture(scope="module")
def moving() -> tuple[torch.Tensor, Spoilt]:
    """One clip that moves, 1000 times, and what is made of it."""
    scene = world.Scene(combinations("train")[0])
    clips = to_pixels(world.render([scene] * 1000, 1))
    return clips, spoil(clips, torch.zeros(1000, 1), torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.parametrize("name", CORRUPTIONS[:6])
def test_corruptions_are_as_strong_as_they_say(
    moving: tuple[torch.Tensor, Spoilt], name: str
) -> None:
    """Each alone, on clips that move: the stronger, the further from the clip as it was."""
    clips, found = moving
    place = CORRUPTIONS.index(name)
    others = [k for k in range(len(CORRUPTIONS)) if k != place]
    rows = found.strengths[:, others].eq(0).all(1) & found.strengths[:, place].gt(0)
    distance = (found.pixels - clips)[rows].square().mean((1, 2, 3, 4)).sqrt()
    assert rows.sum() > 15
    assert spearman(found.strengths[rows, place], distance) > 0.6


@pytest.mark.slow
def test_an_encoder_learns_to_see_and_is_kept(tmp_path: Path) -> None:
    """In a few steps: the loss on words falls. The second build reads the first one's file."""
    family = ShapesReward(steps=12, clips=96, width=16, cache=str(tmp_path))
    first = family.build()
    (file,) = tmp_path.glob("*.safetensors")
    stamp = file.stat().st_mtime_ns
    second = family.build()
    assert file.stat().st_mtime_ns == stamp
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert one.equal(other)
    trained = [name for name, p in first.named_parameters() if p.requires_grad]
    assert trained == ["head.weight"]
    plain = ShapesReward(steps=0, clips=96, width=16).build()
    assert any((a != b).any() for a, b in zip(first.parameters(), plain.parameters(), strict=True))


def test_the_whole_network_can_be_tuned() -> None:
    network = ShapesReward(steps=0, clips=64, tuned=True).build()
    assert all(p.requires_grad for p in network.parameters())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A critic whose head is drawn at random."""
    family = ShapesReward(steps=0, clips=64, width=8)
    network = family.build()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        network.head.weight.normal_(generator=generator)  # type: ignore[union-attr,operator]
    path = tmp_path_factory.mktemp("critic")
    family.export(network, path, RewardScale((1.0, 0.0, 0.0, -2.0), (2.0, 1.0, 1.0, 0.5)))
    return path


def rate(critic: TrainedCritic, clips: Sequence[Clip], asked: Sequence[str]) -> list[float]:
    critic.load("cpu")
    found = [float(rating.score or 0) for rating in critic.rate(clips, asked)]
    critic.release()
    return found


def test_batch_and_order_do_not_change_a_score(folder: Path) -> None:
    critic = TrainedCritic(str(folder), ShapesReward())
    assert isinstance(critic, PointCritic)
    asked = prompts("select")[:5]
    clips = [Clip(clip, 8.0) for clip in world.clean_clips(asked, 3)]
    together = rate(critic, clips, asked)
    assert [rate(critic, [c], [p])[0] for c, p in zip(clips, asked, strict=True)] == together
    assert rate(critic, clips[::-1], asked[::-1])[::-1] == together
    assert len(set(together)) == 5


def test_a_score_is_the_normalised_reward_and_the_raw_one_is_kept(folder: Path) -> None:
    critic = TrainedCritic(str(folder), ShapesReward())
    critic.load("cpu")
    clip = Clip(world.clean_clips(["a red ring moving left"], 2)[0], 8.0)
    (rating,) = critic.rate([clip], ["a red ring moving left"])
    raw = json.loads(rating.raw.removeprefix("rewards "))
    assert rating.dims["VQ"] == pytest.approx((raw[0] - 1) / 2, abs=1e-5)
    assert rating.score == rating.dims["Overall"] == pytest.approx((raw[3] + 2) / 0.5, abs=1e-5)
    weighted = TrainedCritic(str(folder), ShapesReward(), {"VQ": 1, "TA": 2})
    weighted.load("cpu")
    score = weighted.rate([clip], ["a red ring moving left"])[0].score
    assert score == pytest.approx(rating.dims["VQ"] + 2 * rating.dims["TA"])
    assert weighted.identity != critic.identity


def test_folders_that_are_no_critic_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        TrainedCritic(str(tmp_path / "none"), ShapesReward())
    with pytest.raises(InputError, match="no reward network"):
        TrainedCritic(str(tmp_path), ShapesReward())
    for name in ("model.safetensors", "network.json"):
        shutil.copy(folder / name, tmp_path / name)
    label_kind = json.loads((folder / "network.json").read_text())
    (tmp_path / "network.json").write_text(json.dumps({**label_kind, "recipe": 1}))
    with pytest.raises(InputError, match="recipe 1 of the encoder.*train it again"):
        TrainedCritic(str(tmp_path), ShapesReward())
    (tmp_path / "network.json").write_text("[1]")
    with pytest.raises(InputError, match="no reward network"):
        TrainedCritic(str(tmp_path), ShapesReward())
    with pytest.raises(InputError, match="give weights of VQ, MQ, TA, Overall"):
        TrainedCritic(str(folder), ShapesReward(), {"wit": 1})


# ---------------------------------------------------------------- runs


@pytest.mark.slow
def test_a_critic_is_trained_and_rates(
    composed: Callable[..., DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = composed()
    figures = train_critic(cfg)
    shown = capsys.readouterr().out
    folder = Path(cfg.paths.outputs) / "run/critic"
    assert f"next: python train.py critic=trained critic.path={folder}" in shown
    assert {f"valid/accuracy/{dim}" for dim in DIMS} <= figures.keys()
    assert sorted(path.name for path in folder.iterdir()) == [
        "figures.json", "model.safetensors", "network.json"
    ]  # fmt: skip
    head = load_file(folder / "model.safetensors")["head.weight"]
    assert head.abs().sum(1).gt(0).all(), "every dimension has learnt something"
    assert TrainedCritic(str(folder), ShapesReward()).dims == DIMS
    stamp = (folder / "figures.json").stat().st_mtime_ns
    assert train_critic(cfg) == figures
    assert (folder / "figures.json").stat().st_mtime_ns == stamp, "it was finished"


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_bits(
    composed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = composed(outputs="whole")
    train_critic(whole)
    cut = composed(outputs="cut")

    class Killed(Exception):
        pass

    step, steps = critic_assembly.RewardModule.training_step, [0]

    @functools.wraps(step)
    def dies(*arguments: Any) -> Any:
        steps[0] += 1
        if steps[0] == 8:  # in the third epoch
            raise Killed
        return step(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(critic_assembly.RewardModule, "training_step", dies)
        with pytest.raises(Killed):
            train_critic(cut)
    assert not (tmp_path / "cut/run/critic").exists()
    train_critic(cut)
    names = ("model.safetensors", "network.json", "figures.json")
    for name in names:
        one, other = (tmp_path / kind / "run/critic" / name for kind in ("whole", "cut"))
        assert one.read_bytes() == other.read_bytes(), name


@pytest.mark.slow
def test_a_checkpoint_is_small_and_of_its_network(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    train_critic(composed("stopping.epochs=1"))
    file = tmp_path / "outputs/run/checkpoints/last.ckpt"
    state = torch.load(file, weights_only=True)
    assert "network.head.weight" in state["state_dict"]
    assert not any("encoder" in name for name in state["state_dict"])
    with pytest.raises(InputError, match="holds a run of other settings"):
        train_critic(composed("network.seed=7"))


@pytest.mark.slow
def test_other_labels_under_the_same_name_are_refused(
    composed: Callable[..., DictConfig], labels: Path, tmp_path: Path
) -> None:
    """Else the critic of the old labels would stand for the new ones."""
    copy = tmp_path / "copy.jsonl"
    at = (f"data.path={copy}", "stopping.epochs=1")
    rows = read_annotations(labels)
    (tmp_path / "videos").symlink_to(labels.parent / "videos")
    write_annotations(copy, rows)
    figures = train_critic(composed(*at))
    assert train_critic(composed(*at)) == figures
    turned = {"A": "B", "B": "A"}
    write_annotations(copy, [
        replace(row, labels={name: turned.get(said, said) for name, said in row.labels.items()})
        for row in rows
    ])  # fmt: skip
    with pytest.raises(InputError, match=f"begun with other contents of {copy}: restore"):
        train_critic(composed(*at))
    (tmp_path / "outputs/run/identity.json").unlink()  # as in runs of before
    with pytest.raises(InputError, match="the labels are not those that"):
        train_critic(composed(*at))


def test_a_plan_trains_nothing(
    composed: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_critic(composed("dry_run=true")) is None
    shown = capsys.readouterr().out
    assert "pairs to train on (labels: " in shown and "held out" in shown
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_wrong_settings_are_refused_in_a_sentence(composed: Callable[..., DictConfig]) -> None:
    for words, message in {
        ("data.path=nowhere.jsonl",): "data.path=nowhere.jsonl: there is no such file",
        ("reward_loss.ties=1",): "reward_loss.ties=1: give a number above 1",
        ("optim.ema=0.9",): "optim.ema=0.9: a critic keeps",
        ("data.validation=1.5",): "data.validation=1.5: give a number, above 0 and below 1",
        ("data.validation=1e-9",): "no validation prompt",
        ("reward_loss=regression",): "learns from rated videos",
        ("trainer.precision=16-mixed",): "float16 overflows",
        ("trainer=fsdp",): "trainer=fsdp: the network of a critic is never sharded",
        ("network.dims=[wit]",): "has a label 'wit'",
    }.items():
        with pytest.raises(InputError, match=message):
            train_critic(composed(*words))


def test_what_is_trained_beside_bfloat16_needs_mixed_precision(labels: Path) -> None:
    words = [f"data.path={labels}", "network=multimodal", "network.merger=true"]
    check_critic(conftest.composed("train_critic", *words, "trainer.precision=bf16-mixed"))
    check_critic(conftest.composed("train_critic", *words, "network.dtype=float32"))
    with pytest.raises(InputError, match="choose bf16-mixed, or network.dtype=float32"):
        check_critic(conftest.composed("train_critic", *words))


def test_the_task_is_read_off_the_command_line() -> None:
    assert task_of(["loss=dpo"]) == task_of(["task=policy"]) == "policy"
    assert task_of(["-m", "task=critic", "seed=1"]) == "critic"
    with pytest.raises(InputError, match="task=critc: choose one of policy, critic; did you mean"):
        task_of(["task=critc"])
