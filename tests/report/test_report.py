"""The report: tables, charts, escaping, and a page from a whole or an unfinished run."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ipo_lightning.errors import InputError
from ipo_lightning.report import rounds_table, table, thumbnail, write_report
from ipo_lightning.report.charts import ticks
from ipo_lightning.report.markup import Html, tag
from ipo_lightning.report.parts import choice, train_command
from ipo_lightning.report.run import read_run
from ipo_lightning.report.tables import number, plus_minus, relative
from ipo_lightning.storage.store import Store, write_jsonl
from ipo_lightning.video import Clip, encode_video

HOSTILE = "a red <script>alert('x')</script> & \"square\""
ESCAPED = "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;"
COLOURS = torch.tensor([[230, 60, 50], [60, 160, 240], [70, 200, 110], [240, 200, 60]])


def square(colour: int, step: int) -> Tensor:
    """A square that moves ``step`` px a frame: uint8 (9, 32, 32, 3)."""
    frames = torch.full((9, 32, 32, 3), 12, dtype=torch.uint8)
    for t in range(9):
        left = 2 + step * t
        frames[t, 11:21, left : left + 10] = COLOURS[colour % 4].to(torch.uint8)
    return frames


def line(number_: int) -> dict[str, Any]:
    """One line of rounds.jsonl."""
    gain = number_ / (number_ + 1)
    train = {"loss": 0.69 - 0.2 * gain, "accuracy": 0.5 + 0.3 * gain}
    return {
        "round": number_,
        "score": 0.41 + 0.3 * gain,
        "score_se": 0.021,
        "eval_score": 0.39 + 0.2 * gain,
        "eval_score_se": 0.03,
        "win_rate": 0.5 + 0.25 * gain,
        "win_rate_ci": [0.5 + 0.2 * gain, 0.5 + 0.3 * gain],
        "n_pairs": 40 * number_,
        "seconds": {"rollout": 31.0, "critique": 4.0, "training": 60.0},
        "gauges": {"travel": 9.0 - 3 * gain, "motion": 4.0, "flicker": 1.0 + gain, "blank": 0.0,
                   "real_error": 0.2 * (1 + 0.02 * number_)},
        "dims": {"colour": 0.5 + 0.2 * gain, "shape": 0.6, "motion": 0.3 + 0.4 * gain},
        "train": {**train, "margin": 0.01 * gain, "error_win_change": -0.004 * gain}
        if number_
        else None,
        "labelling": {"kept": 40, "dropped": {"tie": 7, "<b>blank": 2}},
        "gain": {"mean": 0.2 * gain, "low": 0.15 * gain, "high": 0.25 * gain},
        "guards": [],
        "checks": {"labels": f"the round was trained on {40 * number_} labels"} if number_ else {},
    }  # fmt: skip


def write_run(root: Path, rounds: int = 2, prompts: int = 3) -> Path:
    """A finished run on disk, with videos in the store beside it."""
    run, store = root / "squares", Store(root / "store")
    lines = [line(k) for k in range(rounds + 1)]
    write_jsonl(run / "rounds.jsonl", lines)
    (run / "config.yaml").write_text(
        "name: squares\nseed: 7\nround: 2\n"
        "loss:\n  _target_: ipo_lightning.losses.dpo_loss\n  beta: 50.0\n"
    )
    texts = [HOSTILE, *(f"a blue ring moving left, number {i}" for i in range(1, prompts))]

    def put(colour: int, step: int) -> str:
        clip = Clip(square(colour, step), 8.0)
        return store.put_blob("videos", encode_video(clip, lossless=True), ".mp4")

    for k in range(rounds + 1):
        evaluation = [
            {"prompt_index": i, "prompt": text, "candidate": c, "seed": 1, "video": put(i, k),
             "score": 0.4 + 0.1 * k, "dims": {}, "eval_score": 0.4, "eval_dims": {}, "gauges": {}}
            for i, text in enumerate(texts) for c in range(2)
        ]  # fmt: skip
        write_jsonl(run / f"round_{k}" / "evaluation.jsonl", evaluation)
        if k:
            write_labels(run / f"round_{k}", texts, put)
    return run


def write_labels(folder: Path, texts: list[str], put: Any) -> None:
    """Candidates, verdicts and pairs of a round."""
    candidates, verdicts, pairs = [], [], []
    for i, text in enumerate(texts):
        videos = [put(i, 2), put(i + 1, 0)]
        for c, video in enumerate(videos):
            place = {"prompt_index": i, "candidate": c, "video": video}
            candidates.append({**place, "prompt": text, "seed": c, "latents": "00", "gauges": {}})
            verdicts.append({**place, "critic": "eye", "score": 0.8 - 0.5 * c, "certainty": 1.0,
                             "dims": {"colour": 1.0 - c}, "raw": f"says {HOSTILE}"})  # fmt: skip
        pairs.append({"pair": i, "prompt_index": i, "prompt": text, "winner": 0, "loser": 1,
                      "winner_latents": "00", "loser_latents": "00", "winner_video": videos[0],
                      "loser_video": videos[1], "weight": 1.0, "margin": 0.5})  # fmt: skip
    write_jsonl(folder / "candidates.jsonl", candidates)
    write_jsonl(folder / "verdicts.jsonl", verdicts)
    write_jsonl(folder / "pairs.jsonl", pairs)


# --- Text ----------------------------------------------------------------------------------------


def test_table_aligns_numbers_right_and_words_left() -> None:
    text = table([{"name": "a", "value": 1}, {"name": "long", "value": 23.456}], ["name", "value"])
    assert text.splitlines() == [
        "name  value",
        "----  -----",
        "a         1",
        "long   23.5",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.123"), (12.345, "12.3"), (1234.5, "1234"), (3, "3"), (0.0, "0.00"),
     (1.5e-7, "1.50e-07"), (-0.5, "-0.500"), (None, "-"), (math.nan, "-"), (math.inf, "-")],
)  # fmt: skip
def test_number(value: Any, text: str) -> None:
    assert number(value) == text


def test_plus_minus_rounds_to_the_error() -> None:
    assert plus_minus(0.41234, 0.0123) == "0.412 +- 0.012"
    assert plus_minus(41.234, 2.5) == "41.2 +- 2.5"
    assert plus_minus(0.4, None) == "0.400"
    assert plus_minus(None, 0.1) == "-"


def test_rounds_table_of_a_run() -> None:
    text = rounds_table([line(0), line(1)]).splitlines()
    assert (
        " ".join(text[0].split()) == "round score held-out gain win rate pairs travel drift minutes"
    )
    assert "0.410 +- 0.021" in text[2]
    assert "0.62 [0.60, 0.65]" in text[3]
    assert "+2.0 %" in text[3]
    assert text[3].endswith("1.6")


def test_rounds_table_survives_missing_values() -> None:
    bare = {"round": 0, "score": None, "win_rate": math.nan, "gauges": None, "train": None}
    assert rounds_table([bare]).splitlines()[-1].split() == [
        "0",
        "-",
        "-",
        "-",
        "-",
        "-",
        "-",
        "-",
        "0.0",
    ]
    assert rounds_table([]) == "no finished round yet"


def test_relative_needs_a_base_that_is_not_zero() -> None:
    assert relative({"a": 3.0}, {"a": 2.0}, "a") == 1.5
    assert relative({"a": 3.0}, {"a": 0.0}, "a") is None
    assert relative({}, {"a": 2.0}, "a") is None


def test_alarms_of_guards_stand_above_everything_and_in_their_table(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    page = write_report(run).read_text()
    assert "Guards, round" not in page and "labels: the round was trained on 80 labels" not in page
    assert page.count("the round was trained on 80 labels") == 1, "in the table"
    lines = [line(k) for k in range(3)]
    reason = lines[2]["checks"]["labels"]
    lines[2]["guards"] = [{"guard": "labels", "action": "watch", "reason": reason}]
    write_jsonl(run / "rounds.jsonl", lines)
    page = write_report(run).read_text()
    told = "Guards, round 2: labels: the round was trained on 80 labels."
    assert page.index(told) < page.index("ALARM: the round") < page.index("Same prompt, same seed")


def test_ticks_are_round() -> None:
    assert ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0.37, 0.71) == [0.4, 0.5, 0.6, 0.7]
    assert ticks(-0.003, 0.004)[0] == -0.002


# --- Markup --------------------------------------------------------------------------------------


def test_tag_escapes_text_and_attributes_but_not_markup() -> None:
    made = tag("p", "<b>", Html("<i>x</i>"), title='"&', class_="a", aria_label="l")
    assert made == '<p title="&quot;&amp;" class="a" aria-label="l">&lt;b&gt;<i>x</i></p>'


def test_choice_names_what_a_group_builds() -> None:
    assert (
        choice({"_target_": "a.b.dpo_loss", "_partial_": True, "beta": 50.0})
        == "dpo_loss (beta 50.0)"
    )
    assert choice([1, 2]) == ""


# --- Pages ---------------------------------------------------------------------------------------


def test_page_of_a_finished_run(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    path = write_report(run)
    text = path.read_text()
    assert path == run / "report.html"
    assert "<script" not in text
    assert text.count(ESCAPED) >= 3  # comparison, pair, critic's words
    assert "kept: 40" in text and "&lt;b&gt;blank: 2" in text
    assert "data:image/webp;base64," in text
    assert "dpo_loss (beta 50.0)" in text
    assert "python sample.py ckpt=" in text
    assert "missing" not in text.split("</style>")[1]
    assert list(run.glob(".*")) == []


def test_page_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    text = write_report(write_run(tmp_path)).read_text()
    assert "http" not in text
    assert "url(" not in text
    assert all(part.startswith("data:") for part in text.split('src="')[1:])


@pytest.mark.slow
def test_page_is_a_function_of_the_files(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    assert write_report(run).read_bytes() == write_report(run, tmp_path / "again.html").read_bytes()


def test_page_of_an_empty_run_says_so(tmp_path: Path) -> None:
    run = tmp_path / "new"
    run.mkdir()
    text = write_report(run).read_text()
    for words in ("No finished round yet", "No evaluation videos yet", "config.yaml is missing"):
        assert words in text


def test_page_of_an_unfinished_round_names_what_is_missing(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    lines = [json.loads(text) for text in (run / "rounds.jsonl").read_text().splitlines()]
    write_jsonl(run / "rounds.jsonl", lines[:-1])
    (run / "round_2" / "evaluation.jsonl").unlink()
    (run / "round_2" / "pairs.jsonl").unlink()
    assert "Not finished: labelling, training, evaluation." in write_report(run).read_text()


def test_page_without_videos_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    text = write_report(run, videos=lambda name: tmp_path / "nowhere" / name).read_text()
    assert "video missing" in text
    assert "<img" not in text


def test_videos_of_a_store_elsewhere(tmp_path: Path) -> None:
    run = write_run(tmp_path / "outputs")
    (tmp_path / "outputs" / "store").rename(tmp_path / "disk")
    assert "video missing" in write_report(run).read_text()
    with (run / "config.yaml").open("a") as file:
        file.write(f"paths:\n  store: {tmp_path / 'disk'}\n")
    assert "video missing" not in write_report(run).read_text()


def test_page_shows_points(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    (run / "round_1" / "pairs.jsonl").unlink()
    candidates = read_run(run).rounds[0].evaluation
    points = [
        {"point": i, "prompt_index": 0, "prompt": HOSTILE, "candidate": i, "latents": "00",
         "video": candidates[0]["video"], "desirable": not i, "weight": 1.0}
        for i in range(2)
    ]  # fmt: skip
    write_jsonl(run / "round_1" / "points.jsonl", points)
    text = write_report(run).read_text()
    assert "undesirable 0.300" in text
    assert "2 labelled videos" in text


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    (run / "rounds.jsonl").write_text('{"round": 0}\n{"rou')
    with pytest.raises(InputError, match=r"rounds\.jsonl is damaged"):
        write_report(run)


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run folder"):
        write_report(tmp_path / "none")


def test_command_from_hydras_record(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    known = "python train.py name=squares seed=7 round=2"
    assert train_command(read_run(run)).startswith(known)
    (run / ".hydra").mkdir()
    (run / ".hydra" / "overrides.yaml").write_text("- loss=kto\n- 'name=a b'\n")
    assert train_command(read_run(run)) == "python train.py loss=kto 'name=a b'"


def test_thumbnail_keeps_duration_and_shape() -> None:
    clip = thumbnail(Clip(torch.zeros(49, 480, 720, 3, dtype=torch.uint8), 8.0))
    assert clip.frames.shape == (25, 192, 288, 3)
    assert len(clip.frames) / clip.fps == pytest.approx(49 / 8)
    small = torch.randint(0, 256, (9, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(thumbnail(Clip(small, 8.0)).frames, small)
