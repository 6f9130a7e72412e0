"""Preference data of others: each format's columns, by hand, and what is refused."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ipo_lightning.critics.people.annotations import Annotation, read_annotations, write_annotations
from ipo_lightning.errors import InputError
from ipo_lightning.exchange import (
    FORMATS,
    label_studio,
    read_any,
    read_preferences,
    video_file,
    video_place,
    videoalign,
)
from ipo_lightning.exchange.names import video_path


def table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Rows as the file that the path's ending says."""
    if path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


BENCH = {
    "path_A": "videos/0.mp4", "path_B": "videos/1.mp4", "A_model": "kling", "B_model": "luma",
    "prompt": "a dog, running", "VQ": "A", "MQ": "B", "TA": "same", "Overall": "A",
    "fps_A": "24.0", "num_frames_A": "120", "fps_B": "8.0", "num_frames_B": "49",
}  # fmt: skip
VOTE = {
    "prompt": "a cat", "left_model": "svd", "left_video": "https://host/files/l.mp4?download=1",
    "right_model": "t2v", "right_video": "right.mp4", "vote_type": "rightvote",
}  # fmt: skip
RATED = {
    "id": "p1", "images": ["p1_00.jpg"], "text prompt": "a cat",
    "video link": "https://host/datasets/some/repo/resolve/main/p/p1.mp4",
    "visual quality": 3, "temporal consistency": 2, "dynamic degree": 3,
    "text-to-video alignment": 4, "factual consistency": 1, "conversations": [],
}  # fmt: skip


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_videogen_rewardbench(tmp_path: Path, ending: str) -> None:
    (one,) = read_preferences(table(tmp_path / f"bench.{ending}", [BENCH]))
    assert (one.prompt, one.path_A, one.path_B) == (
        "a dog, running",
        *("videos/0.mp4", "videos/1.mp4"),
    )
    assert one.labels == {"VQ": "A", "MQ": "B", "TA": "same", "Overall": "A"}
    assert one.extra["A_model"] == "kling"


def test_videoalign_without_overall_takes_what_more_dimensions_say(tmp_path: Path) -> None:
    labels = [
        ("A", "A", "B"),
        ("B", "same", "same"),
        ("A", "B", "same"),
        ("invalid", "", "invalid"),
    ]
    rows = [
        {
            "path_A": "a",
            "path_B": "b",
            "prompt": "x",
            **dict(zip(("VQ", "MQ", "TA"), three, strict=True)),
        }
        for three in labels
    ]
    found = read_preferences(table(tmp_path / "train.csv", rows))
    assert [one.labels["Overall"] for one in found] == ["A", "B", "same", "invalid"]
    assert "MQ" not in found[3].labels  # an empty cell was not asked
    assert [one.pair_id for one in found] == ["train-1", "train-2", "train-3", "train-4"]


def test_videoalign_survives_a_round_trip(tmp_path: Path) -> None:
    (one,) = read_preferences(table(tmp_path / "bench.csv", [BENCH]))
    videoalign.write(tmp_path / "again.csv", [one])
    (again,) = read_preferences(tmp_path / "again.csv")
    assert (again.labels, again.prompt, again.path_A) == (one.labels, one.prompt, one.path_A)
    assert again.extra == one.extra == {
        "A_model": "kling", "B_model": "luma", "fps_A": 24.0, "num_frames_A": 120,
        "fps_B": 8.0, "num_frames_B": 49,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("vote", "label"),
    [("leftvote", "A"), ("rightvote", "B"), ("tievote", "same"), ("bothbad_vote", "same")],
)
def test_genai_bench(tmp_path: Path, vote: str, label: str) -> None:
    (one,) = read_preferences(table(tmp_path / "votes.jsonl", [VOTE | {"vote_type": vote}]))
    assert one.labels == {"Overall": label} and one.extra["vote_type"] == vote
    assert (one.path_A, one.path_B) == ("files/l.mp4", "right.mp4")


def test_videofeedback_becomes_pairs_of_one_prompt(tmp_path: Path) -> None:
    """Means 2.6, 2.6 and 3.4; the fourth is alone with its prompt."""
    rows = [
        RATED,
        RATED | {"video link": "b.mp4", "visual quality": 2, "factual consistency": 2},
        RATED | {"video link": "c.mp4", "visual quality": 4, "factual consistency": 4},
        RATED | {"text prompt": "another"},
    ]
    found = read_any(table(tmp_path / "feedback.json", rows))
    assert (found.format, len(found.points)) == ("videofeedback", 4)
    assert found.points[0].path == "p/p1.mp4" and found.points[0].scores["Overall"] == 2.6
    pairs = read_preferences(tmp_path / "feedback.json")
    assert [(p.path_A, p.path_B, p.labels["Overall"]) for p in pairs] == [
        ("p/p1.mp4", "b.mp4", "same"), ("p/p1.mp4", "c.mp4", "B"), ("b.mp4", "c.mp4", "B"),
    ]  # fmt: skip
    assert pairs[0].labels["visual quality"] == "A"
    assert pairs[0].labels["factual consistency"] == "B"
    assert pairs[0].labels["dynamic degree"] == "same"


def test_trl_pairs_as_files_and_as_columns(tmp_path: Path) -> None:
    on_disk = {
        "prompt": "x",
        "chosen_file_name": "a.mp4",
        "rejected_file_name": "b.mp4",
        "round": 2,
    }
    loaded = {"prompt": "x", "chosen": "a.mp4", "rejected": "b.mp4"}
    for name, row in (("metadata.jsonl", on_disk), ("loaded.csv", loaded)):
        (one,) = read_preferences(table(tmp_path / name, [row]))
        assert (one.path_A, one.path_B, one.labels) == ("a.mp4", "b.mp4", {"Overall": "A"})
    assert read_any(tmp_path).path.name == "metadata.jsonl"  # a folder is its table


def test_trl_points(tmp_path: Path) -> None:
    rows = [
        {"prompt": "x", "completion_file_name": f"{n}.mp4", "label": label}
        for n, label in enumerate((True, "false", 1))
    ]
    found = read_any(table(tmp_path / "metadata.jsonl", rows))
    assert [point.desirable for point in found.points] == [True, False, True]
    pairs = read_preferences(tmp_path / "metadata.jsonl")
    assert [pair.labels["Overall"] for pair in pairs] == ["A", "same", "B"]


TASK = {"prompt": "x", "left": "a.mp4", "right": "b.mp4"}
CHOSEN = {"from_name": "MQ", "type": "choices", "value": {"choices": ["left"]}}
CANONICAL = Annotation(
    "7", "a <b>dog</b>\u2028runs", "a.mp4", "b.mp4", {"Overall": "B", "MQ": "same"},
    video_A="0" * 64, annotator="ann", shown_left="B", seconds=3.5, round=2, source="run",
)  # fmt: skip


def test_canonical(tmp_path: Path) -> None:
    write_annotations(tmp_path / "rows.jsonl", [CANONICAL])
    assert read_preferences(tmp_path / "rows.jsonl") == [CANONICAL]
    assert read_annotations(tmp_path / "rows.jsonl") == [CANONICAL]


def test_what_is_extra_does_not_come_back_as_a_label(tmp_path: Path) -> None:
    """A model may be called A; files of before there was ``extra`` have it beside the labels."""
    extra = {"A_model": "A", "B_model": "same", "margin": 0.5, "note": "B"}
    one = replace(CANONICAL, extra=extra)
    write_annotations(tmp_path / "rows.jsonl", [one, CANONICAL])
    assert read_annotations(tmp_path / "rows.jsonl") == [one, CANONICAL]
    beside = {name: extra[name] for name in ("A_model", "B_model", "margin")}
    (old,) = read_annotations(table(tmp_path / "old.jsonl", [CANONICAL.row() | beside]))
    assert old == replace(CANONICAL, extra=beside)
    videoalign.write(tmp_path / "again.csv", [one])
    (again,) = read_preferences(tmp_path / "again.csv")
    assert again.extra == {"A_model": "A", "B_model": "same"}
    assert again.labels == {"Overall": "B", "MQ": "same"}


def test_a_column_with_a_choice_in_any_row_is_a_dimension(tmp_path: Path) -> None:
    rows = [CANONICAL.row() | {"wit": said, "note": "fine"} for said in ("A", "", None, "invalid")]
    found = read_annotations(table(tmp_path / "rows.jsonl", rows))
    assert [one.labels.get("wit") for one in found] == ["A", None, None, "invalid"]
    assert all(one.extra == {"note": "fine"} for one in found)
    rows.append(CANONICAL.row() | {"wit": "left"})
    with pytest.raises(InputError) as caught:
        read_annotations(table(tmp_path / "rows.jsonl", rows))
    assert str(caught.value) == (
        f"{tmp_path}/rows.jsonl:5: wit='left': give one of A, B, same, invalid, or nothing; if "
        "wit is not a dimension, put it under extra: {...}"
    )


def test_label_studio_tasks_come_back_as_annotations(tmp_path: Path) -> None:
    """What a person would export after answering the tasks that were written."""
    config, tasks = label_studio.write(tmp_path, [CANONICAL], "/data/local-files/?d=set/")
    xml = config.read_text()
    assert xml.count("<Video") == 2 and 'name="MQ"' in xml and 'name="Overall"' in xml
    (task,) = json.loads(tasks.read_text())
    assert task["data"]["left"] == "/data/local-files/?d=set/a.mp4"
    assert "Overall" not in task["data"]  # the annotators shall not see the labels
    said = {"Overall": "right", "MQ": "cannot say"}
    result = [
        {"from_name": name, "to_name": "left", "type": "choices", "value": {"choices": [side]}}
        for name, side in said.items()
    ]
    done = {"result": result, "completed_by": 10, "lead_time": 4.288, "was_cancelled": False,
            "created_at": "2021-03-09T22:16:08.728353Z"}  # fmt: skip
    skipped = {"result": [], "completed_by": 11, "was_cancelled": True}
    export = table(tmp_path / "export.json", [task | {"id": 1, "annotations": [done, skipped]}])
    (one,) = read_preferences(export)
    assert one.labels == {"Overall": "B", "MQ": "invalid"}
    assert (one.annotator, one.seconds, one.round) == ("10", 4.288, 2)
    assert (one.prompt, one.path_A, one.video_A) == (CANONICAL.prompt, "a.mp4", "0" * 64)


def test_label_studio_pairwise(tmp_path: Path) -> None:
    result = [{"from_name": "pw", "to_name": ["v1", "v2"], "type": "pairwise",
               "value": {"selected": "left"}}]  # fmt: skip
    task = {"data": {"prompt": "x", "left": "/data/upload/1/a.mp4", "right": "b.mp4"},
            "annotations": [{"result": result, "completed_by": {"email": "a@b.c"}}]}  # fmt: skip
    (one,) = read_preferences(table(tmp_path / "export.json", [task]))
    assert (one.labels, one.annotator) == ({"Overall": "A"}, "a@b.c")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (BENCH | {"VQ": "C"}, "'VQ' must be A, B, same or invalid, got \"C\""),
        (BENCH | {"prompt": " "}, "'prompt' must be a text"),
        (BENCH | {"path_B": None}, "'path_B' must be a text"),
        (BENCH | dict.fromkeys(("VQ", "MQ", "TA", "Overall")), "there is no label under VQ, MQ"),
        (VOTE | {"vote_type": "left"}, "'vote_type' must be one of leftvote"),
        (RATED | {"dynamic degree": "high"}, "'dynamic degree' must be a number"),
        (RATED | {"dynamic degree": 5}, "must be from 1 to 4"),
        (RATED | {"dynamic degree": "nan"}, "must be a number"),
        (RATED | {"dynamic degree": 10**400}, "must be a number"),
        (RATED | {"dynamic degree": float("nan")}, "not JSON"),
        ({"prompt": "x", "completion": "a", "label": "maybe"}, "'label' must be true or false"),
        ({"prompt": "x", "chosen": "", "rejected": "b"}, "'chosen' must be a text"),
        ({"some": 1, "column": 2}, "unknown format"),
        ({"data": {"prompt": "x"}, "annotations": 3}, "'annotations' must be a list of objects"),
        ({"data": 3, "annotations": []}, "a task has data and annotations"),
        *(
            ({"data": TASK, "annotations": [one]}, message)
            for one, message in (
                (5, "'annotations' must be a list of objects"),
                ({"result": "left"}, "'result' must be a list of objects"),
                ({"result": [CHOSEN | {"from_name": "prompt"}]}, "'prompt' is the name of a field"),
                ({"result": [CHOSEN], "lead_time": "long"}, "seconds='long': give a number"),
                ({"result": [CHOSEN | {"value": {"choices": 3}}]}, "must be one of left"),
            )
        ),
        *(
            (CANONICAL.row() | row, message)
            for row, message in (
                ({"prompt": 5}, "prompt=5: give a text"),
                ({"prompt": ""}, "prompt is empty"),
                ({"video_A": "../../private"}, "video_A='../../private': give the sha256"),
                ({"video_A": 3}, "video_A=3: give a text"),
                ({"timestamp": 2026}, "timestamp=2026: give a text"),
                ({"prompt": " \t"}, "rows.jsonl:1: prompt is empty"),
                ({"VQ": "b"}, "rows.jsonl:1: VQ='b': give one of A, B, same, invalid, or nothing"),
                ({"TA": 1}, "TA=1: give one of A, B"),
                ({"Overall": "a"}, "Overall='a': give one of A, B"),
                ({"seconds": "fast"}, "seconds='fast': give a number"),
                ({"seconds": 10**400}, "give a number"),
                ({"round": 10**400}, "give a whole number"),
                ({"round": 1.5}, "round=1.5: give a whole number"),
                ({"round": "1.5"}, "round='1.5': give a whole number"),
                ({"round": "x"}, "round='x': give a whole number"),
                ({"seconds": float("inf")}, "not JSON"),
                ({"fps": float("nan")}, "not JSON"),
            )
        ),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match="rows.jsonl") as caught:
        read_any(table(tmp_path / "rows.jsonl", [row]))
    assert message in str(caught.value)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    wrong = {
        "no.jsonl": (None, "no such file"),
        "empty.jsonl": ("", "no rows"),
        "torn.jsonl": ('{"prompt": "x"', "torn.jsonl:1: not JSON"),
        "list.jsonl": ("[1]", "expected an object"),
        "object.json": ("{}", "expected a list"),
        "wide.csv": ("a,b\n1,2,3\n", "wide.csv:2: more cells than columns"),
        "kind.txt": ("x", "give a .csv"),
        "semi.csv": ("prompt;path_A;path_B;VQ\na, b;a;b;A\n", "semi.csv:1: .* by semicolons"),
        "tabs.csv": ("prompt\tpath_A\tpath_B\tVQ\nx\ta\tb\tA\n", "separated by tabs"),
        "blank.csv": ("prompt, path_A, path_B, VQ\nx,a,b,A\n", r"remove the blanks around ' VQ'"),
        "old.csv": ("prompt,path_A\ncaf\u00e9,a\n".encode("cp1252"), "not UTF-8 .*iconv -f cp1252"),
        "old.jsonl": ('{"prompt": "caf\u00e9"}'.encode("cp1252"), "not UTF-8"),
        "wide.jsonl": ('{"prompt": "x"}'.encode("utf-16"), "UTF-16.*; save it as UTF-8"),
        "bare.csv": ("prompt,path_A\n".encode("utf-16-le"), "read: UTF-16"),
    }
    for name, (content, message) in wrong.items():
        if isinstance(content, str):
            (tmp_path / name).write_text(content)
        elif content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_preferences(tmp_path / name)
    with pytest.raises(InputError, match="no metadata or annotations"):
        read_preferences(tmp_path)
    with pytest.raises(InputError, match="is not of format genai_bench"):
        read_any(table(tmp_path / "bench.csv", [BENCH]), "genai_bench")
    with pytest.raises(InputError, match="format=csv: choose auto"):
        read_any(tmp_path / "bench.csv", "csv")


def test_blank_rows_and_long_cells_of_a_csv(tmp_path: Path) -> None:
    """Spreadsheets leave the one behind; Python refuses cells of more than 131072 letters."""
    limit = csv.field_size_limit()
    long = BENCH | {"prompt": "a dog " * 30_000, "A_model": "\u00e9" * 140_000}
    file = table(tmp_path / "rows.csv", [BENCH, dict.fromkeys(BENCH, ""), long])
    with open(file, "a") as opened:
        opened.write(f"{','.join([' '] * len(BENCH))}\n{',' * 40}\n")
    found = read_any(file).pairs
    assert [one.prompt for one in found] == [BENCH["prompt"], long["prompt"]]
    assert csv.field_size_limit() == limit
    file.write_text(f'prompt,path_A\n"{"x" * 200_000}')  # a quote that is never closed
    with pytest.raises(InputError, match="rows.csv cannot be read: unexpected end of data"):
        read_any(file)
    assert csv.field_size_limit() == limit


def test_every_format_is_recognised_by_itself_alone(tmp_path: Path) -> None:
    rows = {
        "videoalign": ("a.csv", BENCH),
        "genai_bench": ("b.jsonl", VOTE),
        "videofeedback": ("c.jsonl", RATED),
        "canonical": ("d.jsonl", CANONICAL.row()),
        "trl": ("e.jsonl", {"prompt": "x", "chosen": "a", "rejected": "b"}),
        "trl_points": ("f.jsonl", {"prompt": "x", "completion": "a", "label": True}),
        "label_studio": ("g.json", {"data": {"prompt": "x"}, "annotations": []}),
    }
    assert set(rows) == set(FORMATS)
    for name, (file, row) in rows.items():
        assert read_any(table(tmp_path / file, [row])).format == name


def test_json_that_nests_too_deep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "deep.jsonl").write_text('{"prompt": ' + "[" * 200_000)
    with pytest.raises(InputError, match="deep.jsonl:1: not JSON"):
        read_any(tmp_path / "deep.jsonl")


def test_cells_of_a_canonical_csv_have_their_own_types(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("pair_id,prompt,path_A,path_B,Overall,VQ,seconds,round\n7,x,a,b,A,,3.5,2\n")
    (one,) = read_any(file).pairs
    assert (one.seconds, one.round, one.labels, one.extra) == (3.5, 2, {"Overall": "A"}, {})


@pytest.mark.parametrize("value", [2, 2.0, "2", "2.0"])
def test_a_round_is_a_whole_number_however_it_is_written(tmp_path: Path, value: Any) -> None:
    for ending in ("csv", "jsonl"):
        row = {**CANONICAL.row(), "round": value}
        (one,) = read_annotations(table(tmp_path / f"rows.{ending}", [row]))
        assert one.round == 2 and isinstance(one.round, int)


def test_names_that_no_file_can_have_are_no_files(tmp_path: Path) -> None:
    """Longer than a file system takes, or with a byte that it does not."""
    for path in ("x" * 300, "a/" * 3000 + "x.mp4", "nul\0.mp4"):
        with pytest.raises(InputError, match="there is no video"):
            video_file(tmp_path, path)
        video_place(tmp_path, path)
    for path in ("x" * 300, "nul\0.mp4"):
        with pytest.raises(InputError, match="no such file or folder"):
            read_any(path)


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("https://host/datasets/a/b/resolve/main/my%20set/a%20cat.mp4?x=%20", "my set/a cat.mp4"),
        ("https://host/files/a%20cat.mp4#t=1", "files/a cat.mp4"),
        ("https://host/a/b/resolve/main/100%25.mp4", "100%.mp4"),
        ("https://host/a/b/resolve/main/%2e%2e/private.mp4", "../private.mp4"),
        ("https://host/%2e%2e%2fprivate.mp4", "../private.mp4"),
        ("my%20own/a.mp4", "my%20own/a.mp4"),
    ],
)
def test_addresses_are_decoded_and_do_not_lead_out(tmp_path: Path, address: str, path: str) -> None:
    assert video_path(address) == path
    folder = tmp_path / "set"
    (tmp_path / "private.mp4").write_bytes(b"")
    assert video_place(folder, video_path(address)).resolve().is_relative_to(folder)


def test_an_annotator_without_a_name_is_not_called_none(tmp_path: Path) -> None:
    task = {"data": TASK, "annotations": [{"result": [CHOSEN], "completed_by": None}]}
    assert read_any(table(tmp_path / "a.json", [task])).pairs[0].annotator == ""


def test_a_path_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (tmp_path / "private.mp4").write_bytes(b"")
    for path in ("../private.mp4", str(tmp_path / "private.mp4"), "deep/../../private.mp4"):
        with pytest.raises(InputError, match="there is no video"):
            video_file(folder, path)
        assert video_place(folder, path) == folder / "private.mp4"
    (folder / "private.mp4").write_bytes(b"")
    assert video_file(folder, "../private.mp4") == folder / "private.mp4"
    assert video_file(folder, str(folder / "private.mp4")) == folder / "private.mp4"


def test_of_two_tables_none_is_chosen_silently(tmp_path: Path) -> None:
    for name in ("metadata.csv", "metadata.jsonl", "metadata.txt"):
        (tmp_path / name).write_text("")
    with pytest.raises(InputError, match="give one of the files"):
        read_any(tmp_path)


def test_a_video_is_found_where_it_was_moved_to(tmp_path: Path) -> None:
    (tmp_path / "b.mp4").write_bytes(b"")
    assert video_file(tmp_path, "deep/b.mp4") == tmp_path / "b.mp4"
    with pytest.raises(InputError, match="there is no video c.mp4"):
        video_file(tmp_path, "c.mp4")
