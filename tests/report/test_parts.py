"""What the page says, checked by hand: verdict, intervals, habits of critics, costs, size."""

import json
from pathlib import Path
from typing import Any

import pytest

from ipo_lightning.report import clips, write_report
from ipo_lightning.report.costs import Cost, duration, round_costs
from ipo_lightning.report.labels import first_place, statistics
from ipo_lightning.report.pairing import by_prompt, mean_change, paired, record, share_won
from ipo_lightning.report.player import as_json, chosen, player
from ipo_lightning.report.plots import draw, figures, write_plots
from ipo_lightning.report.run import Asked, find_videos, read_asked, read_run
from ipo_lightning.report.summary import markdown, plain
from ipo_lightning.report.tables import rounds_rows
from ipo_lightning.report.verdict import answers, best_number, headline
from ipo_lightning.storage.store import write_jsonl
from tests.report.runs import HOSTILE, line, write_run


def gained(*gains: float) -> list[dict[str, Any]]:
    """Lines of rounds with these gains, each with an interval of 0.02."""
    found = [{"round": 0, "gain": interval_of(0.0, 0.0)}]
    return found + [{"round": k, "gain": interval_of(gain)} for k, gain in enumerate(gains, 1)]


def interval_of(mean: float, half: float = 0.01) -> dict[str, float]:
    """A gain with its interval."""
    return {"mean": mean, "low": mean - half, "high": mean + half}


# --- The verdict ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gains", "best", "said"),
    [
        ((), None, "No trained round is finished yet."),
        ((0.1,), 1, "Round 1 is better than the base model: it changes the held-out judge's score "
                    "by +0.100 [+0.090, +0.110]."),
        ((0.1, 0.05), 1, "It is the best round; round 2, the last one, changes"),
        ((0.005,), 1, "Round 1 shows no clear difference"),
        ((-0.1, -0.05), 0, "no round is better than the base model: keep the base."),
        ((-0.1,), 0, "Round 1 is worse than the base model"),
    ],
)  # fmt: skip
def test_the_verdict_names_the_best_round_or_the_base(
    gains: tuple[float, ...], best: int | None, said: str
) -> None:
    lines = gained(*gains)
    assert best_number(lines) == best
    assert said in headline(lines)


def test_the_base_is_marked_where_no_round_has_gained(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    lines = [line(0), line(1) | {"gain": interval_of(-0.1)}]
    write_jsonl(run / "rounds.jsonl", lines)
    (row,) = write_report(run).read_text().split('<tr class="marked">')[1:]
    assert row.startswith("<td>0<span")


def test_rounds_are_chosen_by_the_other_prompts_where_there_are_such() -> None:
    lines = gained(0.1)
    lines[1]["choice"] = {"split": "select", "prompts": 9, "gain": interval_of(-0.1)}
    assert best_number(lines) == 0


def test_fields_of_newer_runs_have_columns_and_others_none() -> None:
    lines = gained(0.1)
    assert not {"agreement", "started from", "gain, choosing"} & rounds_rows(lines)[1].keys()
    lines[1] |= {"agreement": {"pairs": 9, "share": 0.75, "ci": [0.5, 0.9]},
                 "start": {"round": 0, "lr_scale": 0.5},
                 "choice": {"split": "select", "gain": interval_of(0.2, 0.1)}}  # fmt: skip
    rows = rounds_rows(lines)
    assert rows[1]["agreement"] == "0.75 [0.50, 0.90]"
    assert rows[1]["started from"] == "round 0, step x 0.500" and rows[0]["started from"] == "-"
    assert rows[1]["gain, choosing"] == "+0.200 [+0.100, +0.300]"


def test_answers_say_what_rose_what_fell_and_on_what(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, prompts=9))
    said = {one.question: one.text for one in answers(run)}
    assert said["Better at"] == "shape +0.02"
    assert (
        '6 of 18 videos lost; 3 of 9 prompts ("a blue ring moving left, number 2" -0.10,'
        in (said["Worse at"])
    )
    assert "9 prompts, 18 pairs of videos" in said["Tested on"]


# --- Pairs ---------------------------------------------------------------------------------------


def test_pairs_are_of_the_same_draw(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    pairs = paired(read_run(run), 2)
    assert record(pairs) == (2, 2, 2) and share_won(pairs).value == 0.5
    assert mean_change(pairs).value == pytest.approx(0.0, abs=1e-12)
    assert [len(own) for own in by_prompt(pairs).values()] == [2, 2, 2]
    rows = read_run(run).rounds[2].evaluation
    write_jsonl(run / "round_2/evaluation.jsonl", [row | {"seed": 2} for row in rows])
    assert paired(read_run(run), 2) == []
    assert "not evaluated" in write_report(run).read_text()


# --- Labels and costs ----------------------------------------------------------------------------


def test_first_place_counts_both_orders_and_ties_half() -> None:
    shown = [[0.7, 0.1, 0.2], [0.6, 0.0, 0.4]], [[0.3, 0.4, 0.3], [0.1, 0.0, 0.9]]
    rows = [{"prompt_index": i, "shown": one} for i, one in enumerate(shown)]
    assert first_place(rows).value == (1 + 1 + 0.5 + 0) / 4
    assert first_place([{"prompt_index": 0, "shown": [[1, 0, 0], None]}]).value != 0  # NaN: one


def test_statistics_of_labels(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    found = statistics(read_run(run).rounds[1])
    assert found["videos"] == "6" and found["labels"] == "3" and found["dropped"] == "9"
    assert found["ties"] == "-" and found["no verdict"] == "0 %"


@pytest.mark.parametrize(
    ("rollout", "expected"),
    [
        ({"steps": 10}, 60),
        ({"steps": 10, "guidance_scale": 6.0}, 120),
        ({"steps": 10, "shared": 0.5}, 5 * 3 + 6 * 5),
        ({"steps": "ten"}, None),
        (None, None),
    ],
)
def test_network_evaluations_of_a_rollout(
    tmp_path: Path, rollout: Any, expected: int | None
) -> None:
    one = read_run(write_run(tmp_path)).rounds[1]
    found = round_costs(one, line(1), {"rollout": rollout})
    assert found["rollout"] == Cost(31.0, expected, None)
    assert found["critique"].calls == 6 and found["training"].evaluations is None
    drafted = round_costs(one, line(1) | {"evaluations": 7}, {"rollout": rollout})
    assert drafted["rollout"].evaluations == 7


@pytest.mark.parametrize(("passes", "trained"), [(None, 20 * 8 * 2), (2, 1 * 8 * 2)])
def test_network_evaluations_of_a_training(
    tmp_path: Path, passes: int | None, trained: int
) -> None:
    one = read_run(write_run(tmp_path)).rounds[1]
    config = {"data": {"batch_size": 4, "optimizer_steps": 20, "max_passes": passes},
              "trainer": {"accumulate_grad_batches": 2, "devices": 1, "num_nodes": 1}}  # fmt: skip
    assert round_costs(one, line(1), config)["training"].evaluations == trained
    config["trainer"]["devices"] = -1
    assert round_costs(one, line(1), config)["training"].evaluations is None


def test_durations() -> None:
    told = [duration(seconds) for seconds in (0.046, 9.6, 163, 11_100)]
    assert told == ["0.05 s", "10 s", "2 min 43 s", "3 h 05 min"]


# --- What the entry point wrote down -------------------------------------------------------------


def test_what_was_asked_is_shown_and_damage_is_none(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    asked = Asked(("python train.py loss=kto",), (("loss", "dpo", HOSTILE),))
    asked.write(run)
    assert read_asked(run) == asked
    text = write_report(run).read_text()
    assert "$ python train.py loss=kto" in text and "<td>dpo</td>" in text
    (run / "report" / "asked.json").write_text('{"commands": 3')
    assert read_asked(run) == Asked()


# --- Size ----------------------------------------------------------------------------------------


def test_a_page_without_room_has_less_detail_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = read_run(write_run(tmp_path, prompts=5))
    find = find_videos(run.path)
    whole = sum(len(clips.clip_of(find(str(row["video"])), clips.Detail())[0])  # type: ignore[index]
                for one in run.rounds for row in one.evaluation[::2])  # fmt: skip
    monkeypatch.setattr(clips.embedded, "__defaults__", (whole // 2,))
    controls, data = player(run, find)
    assert "To keep the page small: 1 video a prompt" in controls
    assert "For " in controls and "there was no room" in controls
    assert len(data["rows"]) == 5 and data["clips"]  # every prompt is there all the same
    assert sum(map(len, data["clips"])) * 3 / 4 <= whole // 2


def test_the_base_the_best_and_the_last_round_stay() -> None:
    rounds = {number: {} for number in range(9)}
    assert list(chosen(rounds, clips.Detail(rounds=4), [0, 3, 8])) == [0, 1, 3, 8]
    assert list(chosen(rounds, clips.Detail(rounds=3), [0, 3, 8])) == [0, 3, 8]


def test_half_a_surrogate_pair_ends_no_report(tmp_path: Path) -> None:
    run = write_run(tmp_path, rounds=1)
    for file in run.glob("round_*/evaluation.jsonl"):
        file.write_text(file.read_text().replace("number 2", "\\ud800"))
    assert "moving left, ?" in write_report(run).read_text()


def test_data_cannot_close_its_element() -> None:
    text = as_json({"prompt": "</script><!--<script>&"})
    assert not set("<>&") & set(text) and json.loads(text)["prompt"] == "</script><!--<script>&"


# --- Files for papers ----------------------------------------------------------------------------


@pytest.mark.slow
def test_plots_are_a_function_of_the_figures(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path))
    files = write_plots(run, tmp_path / "a")
    assert [one.name for one in files] == [
        f"{name}.{kind}" for name in ("rounds", "dimensions", "training") for kind in ("png", "svg")
    ]
    for one, other in zip(files, draw(figures(run)["rounds"], tmp_path / "rounds"), strict=False):
        assert one.read_bytes() == other.read_bytes()
    assert "![rounds](rounds.png)" in markdown(run, tmp_path / "a")
    assert "![" not in markdown(run, tmp_path / "nowhere")


def test_markdown_formats_nothing_of_others() -> None:
    assert plain("a *b* <i> [x](y) | # `c`\n# d") == (
        r"a \*b\* \<i\> \[x\](y) \| \# \`c\` \# d"
    )  # fmt: skip
