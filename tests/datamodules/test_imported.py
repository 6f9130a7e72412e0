"""A round's labels published, and trained on by somebody else: the whole way round, on shapes."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import DictConfig

from data.published import ImportedPreferences, prompts
from ipo_lightning.backbones.cogvideox import CogVideoX
from ipo_lightning.critics.people.annotations import Annotation, write_annotations
from ipo_lightning.errors import InputError
from ipo_lightning.exchange import Finder, read_any, videos_of
from ipo_lightning.exchange.__main__ import main
from ipo_lightning.exchange.labels import Carried, carried
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.report.run import find_videos
from ipo_lightning.storage.layout import RunDir
from ipo_lightning.storage.records import Pair, Point
from ipo_lightning.storage.store import Store, read_jsonl, write_jsonl
from ipo_lightning.video import Clip, read_video, write_video
from tests.helpers import tiny
from train import train

Compose = Callable[..., DictConfig]
CPU = torch.device("cpu")


def shapes(table: Path, *words: str) -> list[str]:
    """A run on imported labels that is evaluated on the embedded world's prompts."""
    ours = "data.prompts._target_=ipo_lightning.shapes.prompts.prompts"
    without = [f"~data.prompts.{key}" for key in ("path", "format", "select", "final")]
    return ["data=imported", f"data.imported.path={table}", ours, *without, "data.num_workers=0",
            "data.optimizer_steps=2", "evaluation.prompts=2", *words]  # fmt: skip


# ---------------------------------------------------------------- the way round


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the labelled round of a small shapes run is kept, by the loss's form."""
    return tmp_path_factory.mktemp("labelled")


@pytest.fixture
def run_of(small: Compose, labelled: Path) -> Callable[..., RunDir]:
    """A run whose first round is labelled, made once a loss and once a policy of labelling."""

    def made(loss: str, *words: str) -> RunDir:
        name = "-".join((loss, *words)).replace("=", "-")
        cfg = small(f"loss={loss}", "round=1", "until=labelling", f"name={name}",
                    f"paths.outputs={labelled}", *words)  # fmt: skip
        if not (labelled / name).exists():
            train(cfg)
        return RunDir(labelled / name)

    return made


def exported(run: RunDir, out: Path, format: str = "trl", *words: str) -> Path:
    assert main(["export", f"run={run.path}", f"format={format}", f"out={out}", *words]) == 0
    return out


@pytest.mark.slow
def test_published_pairs_are_trained_on(
    run_of: Callable[..., RunDir],
    small: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each video is encoded once, for both rounds; the same command again does nothing."""
    run = run_of("dpo")
    table = exported(run, tmp_path / "set")
    encoded: list[int] = []
    original = CogVideoX.encode

    def counting(self: CogVideoX, frames: torch.Tensor) -> torch.Tensor:
        encoded.append(len(frames))
        return original(self, frames)

    monkeypatch.setattr(CogVideoX, "encode", counting)
    words = shapes(table, "round=2", "evaluation.real_clips=null")
    line = train(small(*words))
    videos = {name for p in run.round(1).pairs() for name in (p.winner_video, p.loser_video)}
    assert sum(encoded) == len(videos)
    assert line is not None and line["round"] == 2
    assert line["train"]["loss"] > 0 and torch.isfinite(torch.tensor(line["train"]["loss"]))
    mine = RunDir(tmp_path / "outputs" / "run")
    for number in (1, 2):
        pairs = mine.round(number).pairs()
        assert [(p.prompt, p.weight) for p in pairs] == [
            (p.prompt, 1.0) for p in run.round(1).pairs()
        ]
    assert mine.line(1)["policy"] != line["policy"]  # type: ignore[index]
    before = {path: path.stat().st_mtime_ns for path in mine.path.rglob("*.jsonl")}
    encoded.clear()
    train(small(*words))
    assert not encoded
    assert before == {path: path.stat().st_mtime_ns for path in mine.path.rglob("*.jsonl")}


@pytest.mark.slow
@pytest.mark.parametrize("format", ["trl", "canonical"])
def test_weights_and_margins_survive(
    run_of: Callable[..., RunDir], small: Compose, tmp_path: Path, format: str
) -> None:
    weighted = run_of("dpo", "labelling=margin_weighted")
    table = exported(weighted, tmp_path / "set", format)
    table = table if format == "trl" else table / "annotations.jsonl"
    train(small(*shapes(table, "round=1", "until=labelling")))
    mine = RunDir(tmp_path / "outputs" / "run").round(1).pairs()
    theirs = weighted.round(1).pairs()
    assert len({one.weight for one in theirs}) > 1
    assert [(p.prompt, p.weight, p.margin) for p in mine] == [
        (p.prompt, p.weight, p.margin) for p in theirs
    ]


@pytest.mark.slow
def test_videos_survive_to_the_bit(run_of: Callable[..., RunDir], small: Compose,
                                   tmp_path: Path) -> None:  # fmt: skip
    """The clips that are trained on are the published ones: same size, same rate, every pixel."""
    run = run_of("dpo")
    table = exported(run, tmp_path / "set")
    train(small(*shapes(table, "round=1", "until=labelling")))
    mine = RunDir(tmp_path / "outputs" / "run").round(1)
    for old, new in zip(run.round(1).pairs(), mine.pairs(), strict=True):
        before = read_video(table / "videos" / f"{old.winner_video}.mp4").frames
        name = new.winner_video
        after = read_video(tmp_path / "outputs/store/videos" / name[:2] / f"{name}.mp4").frames
        assert torch.equal(before, after)


@pytest.mark.slow
def test_published_points_are_trained_on(
    run_of: Callable[..., RunDir], small: Compose, tmp_path: Path
) -> None:
    run = run_of("kto")
    table = exported(run, tmp_path / "set")
    assert read_any(table).format == "trl_points"
    words = shapes(table, "round=1", "loss=kto")
    line = train(small(*words))
    assert line is not None and line["n_pairs"] == len(run.round(1).points())
    mine = RunDir(tmp_path / "outputs" / "run").round(1).points()
    assert [one.desirable for one in mine] == [one.desirable for one in run.round(1).points()]


@pytest.mark.slow
def test_labels_that_changed_in_mid_round_are_refused(
    run_of: Callable[..., RunDir], small: Compose, tmp_path: Path
) -> None:
    table = exported(run_of("dpo"), tmp_path / "set")
    words = shapes(table, "round=1")
    train(small(*words, "until=labelling"))
    rows = read_jsonl(table / "metadata.jsonl")
    rows[0]["chosen_file_name"], rows[0]["rejected_file_name"] = (
        rows[0]["rejected_file_name"], rows[0]["chosen_file_name"]
    )  # fmt: skip
    write_jsonl(table / "metadata.jsonl", rows)
    with pytest.raises(
        InputError, match=r"begun with other contents of .*metadata\.jsonl: restore"
    ):
        train(small(*words))
    (tmp_path / "outputs/run/identity.json").unlink()  # as in runs of before
    with (
        pytest.warns(UserWarning, match="has no identity.json"),
        pytest.raises(InputError, match="not what they were when this round was begun"),
    ):
        train(small(*words))


@pytest.mark.slow
def test_later_rounds_may_roll_out(
    run_of: Callable[..., RunDir], small: Compose, tmp_path: Path
) -> None:
    table = exported(run_of("dpo"), tmp_path / "set")
    words = shapes(table, "data.imported.rounds=1", "round=2")
    line = train(small(*words, "until=labelling"))
    assert line is not None and line["round"] == 1
    mine = RunDir(tmp_path / "outputs" / "run")
    assert mine.round(1).verdicts()[0].critic == "trl of metadata.jsonl"
    assert mine.round(2).verdicts()[0].critic != "trl of metadata.jsonl"


# ---------------------------------------------------------------- what a dataset holds


@pytest.mark.parametrize("format", ["canonical", "videoalign", "label_studio"])
def test_other_formats_hold_the_same_pairs(
    run_of: Callable[..., RunDir], tmp_path: Path, format: str
) -> None:
    run = run_of("dpo")
    folder = exported(run, tmp_path / "set", format)
    pairs = run.round(1).pairs()
    if format == "label_studio":
        tasks = json.loads((folder / "label_studio_tasks.json").read_text())
        assert [task["data"]["prompt"] for task in tasks] == [pair.prompt for pair in pairs]
        assert "Overall" not in json.dumps(tasks)
        shape = read_video(folder / tasks[0]["data"]["path_A"]).frames.shape
        assert shape[1:3] == (256, 256)  # encoded for browsers
        return
    file = folder / {"canonical": "annotations.jsonl", "videoalign": "annotations.csv"}[format]
    found = read_any(file).pairs
    assert read_any(folder).pairs == found, "the folder is enough"
    assert [one.prompt for one in found] == [pair.prompt for pair in pairs]
    for one, pair in zip(found, pairs, strict=True):
        better = one.path_A if one.labels["Overall"] == "A" else one.path_B
        assert better == f"videos/{pair.winner_video}.mp4" and (folder / better).is_file()


def test_the_card_says_what_it_is(run_of: Callable[..., RunDir], tmp_path: Path) -> None:
    folder = exported(run_of("dpo"), tmp_path / "set")
    text = (folder / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    head = yaml.safe_load(front)
    assert head["license"] == "unknown" and "trl" in head["tags"]
    assert "Write the licence of these data here" in body
    assert "ShapesCritic" in body and "round 1" in body
    assert str(tmp_path) not in text and "/tmp" not in text


def test_the_command_line_refuses(
    run_of: Callable[..., RunDir], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of("dpo").path
    used = tmp_path / "used"
    used.mkdir()
    (used / "file").write_text("")
    new = f"out={tmp_path / 'new'}"
    wrong = {
        ("export", f"run={run}"): "out has no default",
        ("export", f"run={run}", new, "fromat=trl"): "did you mean format=",
        ("export", f"run={run}", new, "format=csv"): "choose one of trl, canonical",
        ("export", f"run={run}", new, "round=7"): "no such round",
        ("export", f"run={run}", new, "round=x"): "round=x: give a whole number",
        ("export", f"run={run}", new, "round=\u00b2"): "give a whole number",
        ("export", f"run={run}", f"out={used / 'file' / 'new'}"): "cannot be written",
        ("import", f"path={run}", f"out={used / 'file' / 'x.jsonl'}"): "no metadata",
        ("export", f"run={run}", new, "playable=1"): "give true or false",
        ("export", f"run={run}", f"out={used}"): "give a folder that is new or empty",
        ("export", f"run={tmp_path / 'none'}", new): "no such round",
        ("import", f"path={tmp_path / 'none'}", "out=x.jsonl"): "no such file",
        ("import", f"path={run}", "out=x.csv"): "give a .jsonl file",
    }
    for words, message in wrong.items():
        assert main(words) == 1
        assert message in capsys.readouterr().err


def test_an_export_is_there_whole_or_not_at_all(
    run_of: Callable[..., RunDir], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a video is gone the same command works once it is back: nothing is in its way."""
    run = run_of("dpo")
    video = find_videos(run.path)(run.round(1).pairs()[0].loser_video)
    content = video.read_bytes()
    video.unlink()
    words = ["export", f"run={run.path}", f"out={tmp_path / 'set'}"]
    assert main(words) == 1 and "no longer in the store" in capsys.readouterr().err
    assert list(tmp_path.glob("*set*")) == []
    video.write_bytes(content)
    (tmp_path / "set").mkdir()  # an empty folder is as good as none
    assert main(words) == 0
    assert (tmp_path / "set" / "README.md").is_file()


def test_an_export_may_go_where_one_stands(
    run_of: Callable[..., RunDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty folder stays the one it was: a shell in it sees the files."""
    run = run_of("dpo")
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path / "set")
    assert main(["export", f"run={run.path}", "out=.."]) == 1, "it is not empty: we are in it"
    assert main(["export", f"run={run.path}", "out=."]) == 0
    assert sorted(os.listdir(".")) == ["README.md", "metadata.jsonl", "videos"]
    assert os.listdir(tmp_path) == ["set"]


def test_an_import_knows_videos_by_their_hash(
    run_of: Callable[..., RunDir], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = exported(run_of("dpo"), tmp_path / "set")
    out = tmp_path / "rows.jsonl"
    assert main(["import", f"path={table}", f"out={out}"]) == 0
    (one, *_) = read_any(out).pairs
    assert one.path_A == f"set/videos/{one.video_A}.mp4"  # from the new file's folder
    (tmp_path / one.path_A).unlink()
    assert main(["import", f"path={table}", f"out={out}"]) == 0
    assert read_any(out).pairs[0].video_A == ""
    assert "both videos were found" in capsys.readouterr().out


def test_paths_of_an_import_lead_to_the_videos_or_it_says_where_they_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the file, above it (by ``..``), below it, and elsewhere."""
    folder = tmp_path / "set"
    for name in ("a.mp4", "deep/b.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    rows = [pair("a.mp4", "deep/b.mp4", prompt="x"), pair("a.mp4", "gone.mp4", prompt="y")]
    write_annotations(folder / "rows.jsonl", rows)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    beside, above, below = folder / "out.jsonl", Path("../out.jsonl"), folder / "deep/out.jsonl"
    for out, leads in {beside: True, above: True, below: False, Path("out.jsonl"): False}.items():
        assert main(["import", f"path={folder / 'rows.jsonl'}", f"out={out}"]) == 0
        shown, found = capsys.readouterr().out, read_any(out)
        assert (f"videos={folder}" in shown) is not leads
        finder = Finder(found.folder if leads else folder)
        places = [finder.place(one) for row in found.pairs for one in videos_of(row)]
        wanted = ["a.mp4", "deep/b.mp4", "a.mp4", "gone.mp4"]
        assert [place.resolve() for place in places] == [folder / name for name in wanted]


# ---------------------------------------------------------------- any file


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> CogVideoX:
    return CogVideoX(str(tiny.save_pipeline(tmp_path_factory.mktemp("pipeline"))))


def clip(path: Path, level: int, count: int = 9, size: tuple[int, int] = (16, 24)) -> str:
    """A clip at 8 frames a second whose brightness is its own."""
    levels = level + torch.arange(count, dtype=torch.uint8)[:, None, None, None]
    frames = levels.expand(count, *size, 3).contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, Clip(frames, 8.0), lossless=True)
    return path.name


def take(path: Path, policy: CogVideoX, label_kind: str = "pairwise", **settings: Any):
    source = ImportedPreferences(str(path), **settings)
    return source.prepare(label_kind, policy, Store(path.parent / "store"), Workers(), CPU)


def pair(first: str, second: str, said: Any = "A", by: str = "", prompt: str = "x") -> Annotation:
    return Annotation(
        f"{first}{second}{by}", prompt, first, second, {"Overall": said}, annotator=by
    )


def test_what_is_of_no_use_is_counted(tmp_path: Path, policy: CogVideoX) -> None:
    a, b = clip(tmp_path / "a.mp4", 10), clip(tmp_path / "b.mp4", 60)
    short = clip(tmp_path / "short.mp4", 90, count=4)
    (tmp_path / "torn.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:200])
    shutil.copy(tmp_path / "a.mp4", tmp_path / "twin.mp4")
    rows = [pair(a, b), pair(a, short), pair(b, "torn.mp4"), pair("gone.mp4", a),
            pair(a, "twin.mp4"), pair(b, a, "same", prompt="y"), pair(a, b, "invalid", prompt="z"),
            pair(a, b, prompt="kept back")]  # fmt: skip
    write_annotations(tmp_path / "rows.jsonl", rows)
    with pytest.warns(UserWarning) as warned:
        found = take(tmp_path / "rows.jsonl", policy, held_out={"kept back"})
    told = {str(one.message) for one in warned}
    assert any("1 of 6 videos" in one and "rows.jsonl:4: there is no video gone.mp4 in" in one
               for one in told)  # fmt: skip
    assert any("torn.mp4 is left out" in one for one in told)
    assert len(found.rows) == 1
    assert found.dropped == {
        "no verdict: cannot say": 1, "pair of one video": 1, "pair without one of its videos": 3,
        "prompt is held out": 1, "tie": 1, "video damaged": 1, "video missing": 1,
        "video too short": 1,
    }  # fmt: skip


def test_a_clip_of_another_size_is_cut_to_the_policys(tmp_path: Path, policy: CogVideoX) -> None:
    a = clip(tmp_path / "a.mp4", 10, count=20, size=(40, 80))
    b = clip(tmp_path / "b.mp4", 60, size=(16, 24))
    write_annotations(tmp_path / "rows.jsonl", [pair(a, b)])
    found = take(tmp_path / "rows.jsonl", policy)
    store = Store(tmp_path / "store")
    for one in found.candidates:
        assert store.get_tensors("latents", one.latents)["latents"].shape == tiny.LATENT_SHAPE
        shown = read_video(store.path("videos", one.video, ".mp4")).frames
        assert shown.shape == (tiny.FRAMES, tiny.HEIGHT, tiny.WIDTH, 3)
        assert one.gauges["motion"] > 0


def test_no_label_left_is_an_error_with_reasons(tmp_path: Path, policy: CogVideoX) -> None:
    write_annotations(tmp_path / "rows.jsonl", [pair("a.mp4", "b.mp4")])
    with (
        pytest.warns(UserWarning, match="2 of 2 videos"),
        pytest.raises(
            InputError, match=r"no label is left \(pair without one.*: 1, video missing: 2"
        ),
    ):
        take(tmp_path / "rows.jsonl", policy)


def test_several_annotators_make_a_weight(tmp_path: Path, policy: CogVideoX) -> None:
    a, b = clip(tmp_path / "a.mp4", 10), clip(tmp_path / "b.mp4", 60)
    rows = [pair(a, b, by="1"), pair(b, a, "B", by="2"), pair(a, b, "B", by="3")]
    write_annotations(tmp_path / "rows.jsonl", rows)
    (one,) = take(tmp_path / "rows.jsonl", policy).rows
    assert isinstance(one, Pair)
    assert (one.winner, one.loser) == (0, 1) and one.weight == pytest.approx(2 / 3)


def test_answers_of_the_page_find_their_videos_in_the_store(
    tmp_path: Path, policy: CogVideoX
) -> None:
    """A download knows no paths; a path, where the file has one, may be of elsewhere."""
    store = Store(tmp_path / "store")
    clips = [clip(tmp_path / "made" / f"{k}.mp4", 30 * k) for k in (1, 2)]
    a, b = (store.put_blob("videos", (tmp_path / "made" / one).read_bytes(), ".mp4")
            for one in clips)  # fmt: skip
    best = {"Overall": "A"}
    rows = [Annotation("1", "x", "", "", best, video_A=a, video_B=b),
            Annotation("2", "x", "old/a.mp4", "", best, video_A=a, video_B=b),
            Annotation("3", "y", "", "", best, video_A=a, video_B="0" * 64)]  # type: ignore[arg-type] # fmt: skip
    write_annotations(tmp_path / "answers.jsonl", rows)
    with pytest.warns(UserWarning, match="1 of 4 videos") as warned:
        found = take(tmp_path / "answers.jsonl", policy)
    text = str(warned[0].message)
    assert f"answers.jsonl:3: the video of sha256 {'0' * 64} has no path" in text
    assert f"not in the store {store.root}; give paths.store=DIR" in text
    assert [(row.winner, row.loser) for row in found.rows if isinstance(row, Pair)] == [(0, 1)]
    assert found.dropped == {"pair without one of its videos": 1, "video missing": 1}


def test_what_a_row_carries_counts_where_it_is_alone(tmp_path: Path, policy: CogVideoX) -> None:
    names = [clip(tmp_path / f"{name}.mp4", 20 * k) for k, name in enumerate("abcd", 1)]
    a, b, c, d = names
    rows = [replace(pair(a, b), extra={"weight": 3, "margin": 0.25}),
            replace(pair(d, c, "B"), extra={"weight": 0.0}), pair(b, d),
            *(replace(pair(a, c, by=one), extra={"weight": 9.0}) for one in "12")]  # fmt: skip
    write_annotations(tmp_path / "rows.jsonl", rows)
    found = take(tmp_path / "rows.jsonl", policy).rows
    assert [(p.weight, p.margin) for p in found if isinstance(p, Pair)] == [
        (3, 0.25), (0, 1), (1, 1), (1, 1),
    ]  # fmt: skip
    points = take(tmp_path / "rows.jsonl", policy, "pointwise").rows
    assert [p.weight for p in points if isinstance(p, Point)] == [2, 0.5], "a's and d's means"
    rated = [{"prompt": "x", "completion": a, "label": True, "weight": 2.5},
             {"prompt": "x", "completion": b, "label": False}]  # fmt: skip
    write_jsonl(tmp_path / "points.jsonl", rated)
    points = take(tmp_path / "points.jsonl", policy, "pointwise").rows
    assert [p.weight for p in points if isinstance(p, Point)] == [2.5, 1]


@pytest.mark.parametrize("nothing", [None, "", " "])
def test_rows_of_a_table_that_carry_no_weight_have_the_share(
    tmp_path: Path, policy: CogVideoX, nothing: Any
) -> None:
    """A table has the same columns in every row."""
    a, b = (clip(tmp_path / f"{name}.mp4", 20 * k) for k, name in enumerate("ab", 1))
    row = pair(a, b)
    write_annotations(tmp_path / "rows.jsonl", [replace(row, extra={"weight": nothing})])
    (found,) = take(tmp_path / "rows.jsonl", policy).rows
    assert isinstance(found, Pair) and (found.weight, found.margin) == (1, 1)
    assert carried(replace(row, extra={"weight": float("nan")})) == Carried()


@pytest.mark.parametrize("value", [-1, "nan", "inf", "heavy", -0.5, 10**400])
@pytest.mark.parametrize("name", ["weight", "margin"])
def test_weights_that_are_none_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    rows = [{"prompt": "x", "chosen": "a", "rejected": "b", name: value}]
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(InputError, match=f"rows.jsonl:1: '{name}' must be"):
        ImportedPreferences(str(tmp_path / "rows.jsonl"))


def test_pairs_serve_a_pointwise_loss(tmp_path: Path, policy: CogVideoX) -> None:
    """a beats b and c, b beats c: b is as often better as worse."""
    names = [clip(tmp_path / f"{name}.mp4", 20 * k) for k, name in enumerate("abc", 1)]
    a, b, c = names
    write_annotations(tmp_path / "rows.jsonl", [pair(a, b), pair(a, c), pair(b, c)])
    found = take(tmp_path / "rows.jsonl", policy, "pointwise")
    assert [(row.candidate, row.desirable) for row in found.rows if isinstance(row, Point)] == [
        (0, True), (2, False),
    ]  # fmt: skip
    assert found.dropped == {"as often better as worse": 1}
    assert [one.score for one in found.verdicts] == [1.0, 0.5, 0.0]


def test_ratings_serve_losses_of_both_forms(tmp_path: Path, policy: CogVideoX) -> None:
    """Means 1, 2 and 3; the median is dropped, and every two make a pair."""
    dims = ("visual quality", "temporal consistency", "dynamic degree", "text-to-video alignment",
            "factual consistency")  # fmt: skip
    rows = [
        {"text prompt": "x", "video link": clip(tmp_path / f"{k}.mp4", 30 * k),
         **dict.fromkeys(dims, k)}
        for k in (1, 2, 3)
    ]  # fmt: skip
    write_jsonl(tmp_path / "rows.jsonl", rows)
    points = take(tmp_path / "rows.jsonl", policy, "pointwise")
    assert [(p.candidate, p.desirable) for p in points.rows if isinstance(p, Point)] == [
        (0, False), (2, True),
    ]  # fmt: skip
    assert points.dropped == {"rated as the median": 1}
    pairs = take(tmp_path / "rows.jsonl", policy, "pairwise")
    assert [(p.winner, p.loser) for p in pairs.rows if isinstance(p, Pair)] == [
        (1, 0), (2, 0), (2, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("spelt", ["a dog ", " a  dog", "a\u00a0dog", "a dog\u2028", "\ufeffa dog"])
def test_a_held_out_prompt_does_not_leak_by_another_spelling(
    spelt: str, tmp_path: Path, policy: CogVideoX
) -> None:
    clip(tmp_path / "a.mp4", 10), clip(tmp_path / "b.mp4", 90)
    rows = [pair("a.mp4", "b.mp4", prompt=spelt), pair("a.mp4", "b.mp4", prompt="a cat")]
    write_annotations(tmp_path / "rows.jsonl", rows)
    for held in ("a dog", spelt):
        found = take(tmp_path / "rows.jsonl", policy, held_out={held})
        assert [row.prompt for row in found.rows] == ["a cat"]
        assert found.dropped["prompt is held out"] == 1
    assert prompts("train", path=str(tmp_path / "rows.jsonl"), select=0, final=0) == [
        "a dog", "a cat"
    ]  # fmt: skip


def test_splits_of_a_file_are_disjoint(tmp_path: Path) -> None:
    write_annotations(
        tmp_path / "rows.jsonl", [pair("a", "b", prompt=f"prompt {k}") for k in range(200)]
    )
    parts = [prompts(split, path=str(tmp_path / "rows.jsonl"))  # type: ignore[arg-type]
             for split in ("train", "select", "final")]  # fmt: skip
    assert sum(map(len, parts)) == 200 == len({one for part in parts for one in part})


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rounds": 0}, "rounds=0"), ({"videos": "none"}, "no such folder"),
     ({"format": "csv"}, "format=csv")],
)  # fmt: skip
def test_wrong_settings_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    write_annotations(tmp_path / "rows.jsonl", [pair("a", "b")])
    with pytest.raises(InputError, match=message):
        ImportedPreferences(str(tmp_path / "rows.jsonl"), **settings)
