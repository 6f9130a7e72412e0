"""VBench's scores, by the figures that it publishes, and its result files."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from ipo_lightning.errors import InputError
from ipo_lightning.vbench.__main__ import main
from ipo_lightning.vbench.results import read_results, scores_of, summary_of
from ipo_lightning.vbench.scores import DIMENSIONS, QUALITY, SEMANTIC, scaled, totals, weighted_mean

# Rows of VBench's leaderboard, in percent, by DIMENSIONS; then quality, semantic and total.
COGVIDEOX = {
    "2B": (
        [96.78, 96.63, 98.89, 97.73, 59.86, 60.82, 61.68,
         83.37, 62.63, 98.00, 79.41, 69.90, 51.14, 24.80, 24.36, 26.66],
        (82.18, 75.83, 80.91),
    ),
    "5B": (
        [96.23, 96.52, 98.66, 96.92, 70.97, 61.98, 62.90,
         85.23, 62.11, 99.40, 82.81, 66.35, 53.20, 24.91, 25.38, 27.59],
        (82.75, 77.04, 81.61),
    ),
}  # fmt: skip
VALUES = {name: value / 100 for name, value in zip(DIMENSIONS, COGVIDEOX["2B"][0], strict=True)}


@pytest.mark.parametrize("model", COGVIDEOX)
def test_totals_are_those_of_the_leaderboard(model: str) -> None:
    """To the rounding of the row: its values have two digits after the point."""
    row, published = COGVIDEOX[model]
    values = {name: value / 100 for name, value in zip(DIMENSIONS, row, strict=True)}
    assert [100 * one for one in totals(values)] == pytest.approx(published, abs=0.0075)


def test_a_partial_mean_is_no_total() -> None:
    some = {"subject_consistency": 1.0, "dynamic_degree": 0.0}
    assert weighted_mean(some) == pytest.approx(1 / 1.5)
    assert weighted_mean(VALUES, QUALITY) == totals(VALUES).quality
    assert scaled("scene", 0.4111) == pytest.approx(0.5)
    with pytest.raises(InputError, match="14 are missing: background_consistency, "):
        totals(some)
    with pytest.raises(InputError, match="no dimension of object_class"):
        weighted_mean(some, SEMANTIC)
    said = summary_of(some)
    assert "no total: 14 of 16" in said
    assert "partial mean, none of VBench's scores: 2 of 7" in said
    assert "semantic" not in said.partition("\n")[2]


def save(file: Path, values: Mapping[str, object]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values))
    return file


def test_results_of_several_runs_are_joined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """VBench writes one file a run: a list of the value and the videos' values by dimension."""
    for number, name in enumerate(reversed(list(VALUES))):
        video = {"video_path": "a-0.mp4", "video_results": True}
        save(tmp_path / f"run{number}_eval_results.json", {name: [VALUES[name], [video]]})
    values = read_results([tmp_path])
    assert list(values) == list(DIMENSIONS)
    assert scores_of(values) == totals(VALUES)
    out = tmp_path / "scores.json"
    assert main(["import", str(tmp_path), f"out={out}"]) == 0
    assert "quality 82.18, semantic 75.83, total 80.91" in capsys.readouterr().out
    assert json.loads(out.read_text())["total"] == pytest.approx(0.8091, abs=1e-4)


def test_some_dimensions_have_no_total(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = save(tmp_path / "a.json", {"subject consistency": [0.9, []], "color": 0.5})
    out = tmp_path / "scores.json"
    assert main(["import", str(file), f"out={out}"]) == 0
    assert "no total: 14 of 16 dimensions are missing" in capsys.readouterr().out
    assert list(json.loads(out.read_text())) == ["dimensions"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"color": [82.0, []]}, "color is 82.0; expected a number from 0 to 1"),
        ({"color": float("nan")}, "color is nan"),
        ({"color": []}, "expected a number"),
        ({"Human_Anatomy": [0.8, []]}, "Human_Anatomy is no dimension of VBench"),
        ({}, "expected VBench's results"),
        ([1], "expected VBench's results"),
    ],
)
def test_other_files_are_refused(
    content: object, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    assert main(["import", str(file)]) == 1
    assert told in capsys.readouterr().err


def test_files_that_disagree_are_refused(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{n}.json", {"color": 0.5 + n / 10}) for n in range(2)]
    with pytest.raises(InputError, match=r"color is 0\.5 in .* and 0\.6 in"):
        read_results(files)
    with pytest.raises(InputError, match="in this folder"):
        read_results([tmp_path])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        read_results([tmp_path / "broken.json"])
