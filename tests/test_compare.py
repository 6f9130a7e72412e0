"""compare.py: two checkpoints on the same prompts and noise, by a judge or by people."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.compare_settings import found, judge_of
from compare import Side, compare
from ipo_lightning.comparison.figures import Sides, figures, level_of, people, video_rows
from ipo_lightning.comparison.page import SHOWN, largest, page, text
from ipo_lightning.critics.people.annotations import Annotation
from ipo_lightning.critics.people.answers import Answers
from ipo_lightning.errors import InputError
from ipo_lightning.evaluation import EvaluatedVideo, compared
from ipo_lightning.metrics.intervals import detectable, prompts_to_show
from ipo_lightning.report.videos import Videos
from ipo_lightning.storage.layout import RunDir
from tests.conftest import SMALL, composed
from tests.critics.people.test_human_round import answer_all, pages
from tests.helpers.commands import command
from train import train

Compare = Callable[..., dict[str, Any] | None]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs with a run of one round."""
    folder = tmp_path_factory.mktemp("outputs")
    train(composed("train", *SMALL, "evaluation.n=2", "round=1", outputs=folder))
    return folder


@pytest.fixture
def run(outputs: Path) -> Compare:
    """``run("a=run/base", "b=run/round_1")``, with paths below the outputs."""

    def compare_them(*words: str) -> dict[str, Any] | None:
        placed = [word.replace("=run", f"={outputs}/run") for word in words]
        return compare(composed("compare", *placed, "trainer.accelerator=cpu", outputs=outputs))

    return compare_them


# -------------------------------------------------------------------- runs


@pytest.mark.slow
def test_rounds_of_a_run_are_compared_by_what_it_has(
    run: Compare, outputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("nothing is to be made, and no weights are read")

    monkeypatch.setattr(Side, "network", property(never))
    result = run("a=run/base", "b=run/round_1")
    line = RunDir(outputs / "run").line(1)
    assert result is not None and line is not None
    overall = result["overall"]
    gain = line["gain"]
    assert overall["gain"]["value"] == (gain["mean"] if isinstance(gain, dict) else gain)
    assert [overall["win_rate"][k] for k in ("low", "high")] == line["win_rate_ci"]
    assert result["dims"].keys() == line["eval_dims"].keys()
    told = capsys.readouterr().out
    assert told.count("4 videos, 0 to make") == 2 and "By shapes-judge@1, " in told
    (folder,) = (outputs / "comparisons").glob("run-base-run-round-1-*")
    assert json.loads((folder / "compare.json").read_text())["overall"] == overall
    shown = (folder / "compare.html").read_text()
    assert shown.count("data:image/webp") >= 4 and "video missing" not in shown
    few = run("a=run/round_0", "b=run/round_1/policy", "n=1", "prompts_count=1", "name=few")
    assert few is not None and few["overall"]["pairs"] == 1
    assert few["verdict"].startswith("unknown")
    with pytest.raises(InputError, match=r"few holds a comparison of other policies"):
        run("a=run/base", "b=run/round_1", "name=few")


@pytest.mark.slow
def test_the_same_policy_outside_of_its_run_ties(
    run: Compare, outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On fresh noise and prompts of a file with categories."""
    copied = shutil.copytree(outputs / "run/round_1/policy", tmp_path / "policy")
    table = tmp_path / "p.csv"
    table.write_text("prompt,category\na red ring growing,ring\na blue cross moving left,cross\n")
    words = ["a=run/round_1", f"b={copied}", f"prompts={table}", "seed=7", "n=1", "steps=2"]
    assert run(*words, "dry_run=true") is None
    assert capsys.readouterr().out.count("2 videos, 2 to make") == 2
    result = run(*words)
    assert result is not None and result["overall"]["ties"] == 1
    assert result["overall"]["gain"] == {"value": 0, "low": 0, "high": 0}
    assert result["categories"].keys() == {"ring", "cross"}
    assert "no clear difference" in result["verdict"] and result["seed"] == 7
    run(*words, "dry_run=true")
    assert capsys.readouterr().out.count("2 videos, 0 to make") == 2


@pytest.mark.slow
def test_people_are_the_judge(
    run: Compare, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["a=run/base", "b=run/round_1", "eval_critic=human", "eval_critic.annotators=2", "n=1",
             "prompts_count=2"]  # fmt: skip
    assert run(*words) is None
    assert "2 questions wait for people" in (told := capsys.readouterr().out)
    assert "then go on with: python" in told and "run/base" not in pages(outputs)[0].read_text()
    for one, likes in zip(pages(outputs), ("smaller", "larger"), strict=True):
        answer_all(one, likes)
    result = run(*words)
    assert result is not None and result["judge"].startswith("people@")
    assert result["overall"]["win_rate"]["value"] == 0.5 == result["overall"]["gain"]["value"] + 0.5
    assert result["people"]["annotators"] == 2 and result["people"]["alike"]["value"] == 0
    assert "annotator 1: " in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_line(outputs: Path) -> None:
    words = [
        f"a={outputs}/run/base",
        f"b={outputs}/run/round_1",
        f"paths.outputs={outputs}",
        "dry_run=true",
    ]
    done = command("compare.py", *words)
    assert done.returncode == 0 and done.stdout.count("0 to make") == 2
    done = command("compare.py", words[0], "c=x")
    assert done.returncode == 1 and "there is no setting 'c'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a=run/round_9", "b=run/round_1"], r"a=.*round_9: there is no such file or folder"),
        (["a=run/round_1", "b=run/base", "n=0"], "n=0: give a whole number"),
        (["a=run/round_1", "b=run/round_1", "looks=0"], "looks=0: give a whole number"),
        (["a=run/round_1", "b=run/round_1", "prompts_count=9"], "prompts_count=9: there are 2"),
        (["a=run/round_1", "b=run/round_1", "prompts=x.txt", "split=final"], "give one of the two"),
        (["a=run/round_1", "b=run/round_1", "eval_critic=shapes"], "eval_critic is the twin of c"),
        (["a=ipo_lightning/shapes/pipeline", "b=ipo_lightning/shapes/pipeline"],
         "eval_critic: neither|prompts: neither"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(run: Compare, words: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        run(*words)


EVIL = [
    ("eval_critic", {"_target_": "os.system"}, "names .'os.system'. give|none of this project's"),
    ("eval_critic", {"_target_": "ipo_lightning.shapes.judge.ShapesJudge", "_args_": ["x"]},
     "_args_, which is not plain data"),
    ("eval_critic", {"_target_": "ipo_lightning.critics.vlm.critics.Letters", "vlm":
     {"_target_": "ipo_lightning.critics.vlm.local.LocalVLM", "model": "a/b", "remote_code": True}},
     "remote_code=true"),
    ("eval_critic", {"_target_": "ipo_lightning.critics.vlm.critics.Letters", "vlm":
     {"_target_": "ipo_lightning.critics.vlm.endpoint.EndpointVLM", "model": "a"}}, "names .*Endp"),
    ("data", {"prompts": {"_target_": "builtins.open", "file": "x"}}, "data.prompts names"),
    ("data", {"prompts": 3}, "prompts: neither checkpoint"),
    ("evaluation", {"prompts": "x", "split": "select"}, "cannot be read"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("group", "value", "said"), EVIL, ids=range(len(EVIL)))
def test_a_runs_config_is_not_trusted(
    run: Compare, outputs: Path, tmp_path: Path, group: str, value: Any, said: str
) -> None:
    copied = Path(shutil.copytree(outputs / "run", tmp_path / "theirs"))
    config = yaml.safe_load((copied / "config.yaml").read_text())
    (copied / "config.yaml").write_text(yaml.safe_dump({**config, group: value}))
    with pytest.raises(InputError, match=said):
        run(f"a={copied}/base", f"b={copied}/round_1", "dry_run=true")


@pytest.mark.slow
def test_pages_of_people_are_written_where_this_command_says(outputs: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(outputs / "run", tmp_path / "theirs"))
    config = yaml.safe_load((copied / "config.yaml").read_text())
    human = {"_target_": "ipo_lightning.critics.people.human.HumanCritic", "answers": "/root/x"}
    (copied / "config.yaml").write_text(yaml.safe_dump({**config, "eval_critic": human}))
    one = found("a", f"{copied}/round_1")
    cfg = composed("compare", f"a={copied}", f"b={copied}", outputs=outputs)
    assert judge_of(cfg, (one, one), one)["answers"] == f"{outputs}/answers"


# -------------------------------------------------------------------- figures


def row(prompt: int, candidate: int, score: float | None, **dims: float) -> EvaluatedVideo:
    return EvaluatedVideo(prompt, f"prompt {prompt}", candidate, 0, f"{prompt}-{candidate}-{score}",
                          None, {}, score, dims, {})  # fmt: skip


def sides(changes: list[list[float | None]]) -> Sides:
    """Of a, whose scores are all 0, and b with these, a list a prompt."""
    every = [(p, k, one) for p, some in enumerate(changes) for k, one in enumerate(some)]
    a = [row(p, k, 0.0, x=0.0) for p, k, _ in every]
    return Sides(a, [row(p, k, one, x=-(one or 0.0)) for p, k, one in every])


def test_the_figures_by_hand() -> None:
    both = sides([[1.0, 2.0], [3.0, None], [0.0, 1.0]])
    result = figures(both, categories={"prompt 0": "one", "prompt 2": "two"}, looks=2)
    overall, level = result["overall"], 0.975
    assert level_of(1) == 0.95 and result["level"] == pytest.approx(level)
    assert (overall["pairs"], overall["prompts"], overall["missing"]) == (5, 3, 1)
    assert overall["gain"]["value"] == pytest.approx(7 / 5) and overall["ties"] == 0.2
    assert overall["win_rate"]["value"] == pytest.approx(4.5 / 5)
    exact = compared(both.b, both.a, result["level"])
    assert overall["gain"]["low"] == pytest.approx(exact.gain.low, abs=1e-6)
    assert result["dims"]["x"]["win_rate"]["value"] == pytest.approx(1 / 6, abs=1e-6)
    assert result["categories"]["one"]["gain"]["value"] == 1.5
    assert result["categories"]["two"]["gain"]["value"] == 0.5
    power = result["power"]
    assert power["detectable"] == pytest.approx(detectable(exact.gain, 3, level=level), abs=1e-5)
    assert power["prompts_to_show"] == prompts_to_show(exact.gain, 3, level=level)
    half = figures(both, difference=0.7)["power"]["prompts_to_show"]
    whole = figures(both, difference=1.4)["power"]["prompts_to_show"]
    assert half / whole == pytest.approx(4, rel=0.2)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ([[1.0], [1.1], [0.9]], "b is better than a"),
        ([[-1.0], [-1.1], [-0.9]], "b is worse than a"),
        ([[-1.0], [1.1]], "no clear difference"),
        ([[1.0, 2.0]], "unknown"),
        ([[None]], "unknown"),
    ],
)
def test_the_verdict_is_the_intervals(changes: list[list[float | None]], verdict: str) -> None:
    result = figures(sides(changes))
    assert result["verdict"].startswith(verdict)
    json.dumps(result, allow_nan=False)
    told = {**result, "a": "a", "b": "b", "judge": "j", "command": "c <b>"}
    assert "of b against a" in text(told)
    shown = page(told, video_rows(sides(changes)), Videos(Path))
    assert "c &lt;b&gt;" in shown and "<b>" not in shown


def test_a_judge_that_compares_has_half_for_a() -> None:
    both = sides([[0.9], [0.8]])
    alone = Sides([row(p, 0, 0.5) for p in range(2)], both.b)
    result = figures(alone)["dims"]["x"]
    assert result["gain"]["value"] == pytest.approx(-1.35)


def test_the_largest_changes_are_shown() -> None:
    rows = [{"change": float(k)} for k in range(100)]
    shown = [one["change"] for one in largest([*rows, {"change": None}])]
    assert len(shown) == SHOWN and shown[:2] == [99, 98] and shown[SHOWN // 2 :][:2] == [0, 1]
    assert [one["change"] for one in largest(rows[:3])] == [2, 1, 0]


def test_agreement_among_people_by_hand() -> None:
    both = sides([[1.0], [2.0]])
    pairs = list(zip(both.a, both.b, strict=True))
    said = [("A", "A", "B"), ("same", "same", "same")]

    def answer(place: int, name: str, choice: str) -> Annotation:
        one, other = pairs[place]
        return Annotation(f"{place}", one.prompt, "", "", {"Overall": choice},  # type: ignore[dict-item]
                          one.video, other.video, name)  # fmt: skip

    answers = Answers([
        answer(place, str(who), choice) for place, some in enumerate(said)
        for who, choice in enumerate(some)
    ])  # fmt: skip
    result = people(both, answers)
    assert result["couples"] == 6 and result["annotators"] == 3
    assert result["alike"]["value"] == pytest.approx(4 / 6, abs=1e-6)
