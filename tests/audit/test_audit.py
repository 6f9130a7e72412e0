"""audit.py: critics of known habits against simulated people, whose truth is known."""

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from app.audit_settings import SETTINGS
from audit import audit
from ipo_lightning.audit.asking import Answer, Ledger, Shelf
from ipo_lightning.audit.findings import Rules, Table, findings
from ipo_lightning.audit.page import disagreements
from ipo_lightning.audit.verdict import TRUST, grade, sentences
from ipo_lightning.audit.votes import (
    Compared,
    Vote,
    calibration,
    drawn,
    gather,
    ratings,
    repeats,
)
from ipo_lightning.critics.people.annotations import Annotation, read_annotations, write_annotations
from ipo_lightning.errors import InputError
from ipo_lightning.shapes.annotators import annotate
from ipo_lightning.shapes.critic import ShapesCritic
from ipo_lightning.storage.store import read_jsonl
from ipo_lightning.video import read_video
from tests.conftest import composed
from tests.helpers import audited
from tests.helpers.commands import command

Found = dict[str, Any]
DIMS = "dims={VQ:[consistent,clear],MQ:smooth,TA:[colour,shape,motion]}"


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs that three of eight simulated annotators have labelled."""
    folder = tmp_path_factory.mktemp("crowd")
    annotate(folder, pairs=96, split="select", source="renderer", candidates=4, labels=3)
    return folder / "pairs.jsonl"


@pytest.fixture(scope="module")
def exact(crowd: Path) -> Path:
    """The same pairs, labelled once and without noise by the rules of `critic=shapes`."""
    critic, rows = ShapesCritic(), []
    for row in {one.pair_id: one for one in read_annotations(crowd)}.values():
        clips = [read_video(crowd.parent / path) for path in (row.path_A, row.path_B)]
        a, b = (one.score for one in critic.rate(clips, [row.prompt] * 2))
        assert a is not None and b is not None
        rows.append(replace(row, labels={"Overall": "A" if a > b else "B"}, annotator="rules"))
    write_annotations(crowd.parent / "exact.jsonl", rows)
    return crowd.parent / "exact.jsonl"


@pytest.fixture
def audit_of(tmp_path: Path) -> Callable[..., Found]:
    """An audit: ``audit_of("Biased", file, "n=10")``; a shipped critic by its lower-case name."""

    def run(critic: str, pairs: Path, *words: str) -> Found:
        chosen = (
            f"critic={critic}"
            if critic.islower()
            else f"+critic._target_=tests.helpers.audited.{critic}"
        )
        cfg = composed("audit", chosen, f"pairs={pairs}", f"paths.outputs={tmp_path}", "name=a",
                       "trainer.accelerator=cpu", *words)  # fmt: skip
        found = audit(cfg)
        return {} if found is None else found

    return run


# ---------------------------------------------------------------- critics of known habits


@pytest.mark.slow
def test_a_critic_that_is_always_right(audit_of: Callable[..., Found], exact: Path) -> None:
    found = audit_of("shapes", exact)
    overall = found["dims"]["Overall"]
    # Wilson's 24 / (24 + 2.069^2), of 24 prompts that are all right; 2.069 is Student's.
    exact_low = pytest.approx(24 / (24 + 2.0687**2), abs=1e-4)
    assert overall["accuracy"] == {"value": 1, "low": exact_low, "high": 1, "n": 96}
    assert overall["accuracy_ties"]["value"] == overall["kappa"]["value"] == 1
    assert overall["people"] is None and found["grade"] == "above chance"
    assert found["adapter"]["scale"] > 10 and found["adapter"]["ties"] == 1
    assert found["answered"] == {"share": overall["accuracy"], "faults": {}}
    assert found["place"] is None and found["again"] is None


@pytest.mark.slow
def test_spellings_of_a_prompt_are_one_prompt(audit_of: Callable[..., Found], exact: Path) -> None:
    """As two, one could choose the calibration that the other is counted by."""
    rows = read_annotations(exact)
    spelt = [replace(row, prompt=f"{row.prompt} " if n % 2 else f"\ufeff{row.prompt}")
             for n, row in enumerate(rows)]  # fmt: skip
    write_annotations(exact.parent / "spelt.jsonl", spelt)
    plain, mixed = (
        audit_of("shapes", exact.parent / f"{name}.jsonl", f"name={name}")
        for name in ("exact", "spelt")
    )
    assert mixed["counts"] == plain["counts"] and mixed["dims"] == plain["dims"]


def test_a_critic_without_any_verdict_ends_in_a_page(
    audit_of: Callable[..., Found], exact: Path, tmp_path: Path
) -> None:
    """Nobody has answered yet: what was asked of it is not lost to an error."""
    found = audit_of("human", exact, f"critic.answers={tmp_path / 'nobody'}")
    assert found["grade"] == "unknown" and found["answered"]["faults"]
    assert found["calibration"]["own"] is found["calibration"]["fitted"] is None
    assert "does not determine them" in found["use"]
    assert (tmp_path / "audits" / "a" / "audit.html").is_file()


@pytest.mark.slow
def test_the_rules_and_people_who_see_by_them(audit_of: Callable[..., Found], crowd: Path) -> None:
    """People have noise of their own, so the rules agree with them more than they do."""
    found = audit_of("shapes", crowd, DIMS)
    overall = found["dims"]["Overall"]
    assert 0.7 < overall["accuracy"]["low"] < overall["accuracy"]["high"] < 1
    assert overall["people"]["critic"]["value"] > overall["people"]["accuracy"]["value"] > 0.6
    assert found["grade"] in ("like people", "above people")
    assert set(found["dims"]) == {"Overall", "VQ", "MQ", "TA"} and found["unmatched"] == []
    assert found["counts"] | {"ties": 0, "preferred": 0, "divided": 0, "videos": 0} == {
        "pairs": 96, "prompts": 24, "votes": 288, "annotators": 8, "calibration": 28,
        "ties": 0, "preferred": 0, "divided": 0, "videos": 0,
    }  # fmt: skip


@pytest.mark.slow
def test_dimensions_without_a_match_are_told(audit_of: Callable[..., Found], crowd: Path) -> None:
    assert sorted(audit_of("shapes", crowd)["unmatched"]) == ["MQ", "TA", "VQ"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("dims={VG:clear}", "dims.VG: people were asked about MQ, TA, VQ"),
        ("dims={VQ:[clear,clean]}", "dims.VQ=clean: the critic's dimensions are "),
        ("dims={Overall:clear}", "dims.Overall: it is compared with the critic's overall"),
    ],
)
def test_unknown_dimensions_are_refused(
    audit_of: Callable[..., Found], crowd: Path, word: str, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        audit_of("shapes", crowd, word, "n=8")
    assert message in str(caught.value)


def test_a_critic_without_dimensions_stands_for_none(
    audit_of: Callable[..., Found], crowd: Path
) -> None:
    with pytest.raises(InputError, match="dims.VQ=clear: the critic has no dimensions"):
        audit_of("Guessing", crowd, "dims={VQ:clear}", "n=8")


def test_names_that_no_file_can_have_are_missing(tmp_path: Path) -> None:
    find = files(tmp_path, "a")
    with pytest.raises(InputError, match="1 videos are missing"):
        gather([row("a", "x" * 300, "A")], find)


@pytest.mark.slow
def test_a_guess_is_not_trusted(audit_of: Callable[..., Found], crowd: Path) -> None:
    found = audit_of("Guessing", crowd)
    accuracy = found["dims"]["Overall"]["accuracy"]
    assert accuracy["low"] < 0.5 < accuracy["high"]
    assert found["grade"] == "chance" and "do not use it" in " ".join(found["sentences"])
    assert 0.3 < found["place"]["flips"]["value"] < 0.7, "a coin flips half of the time"
    assert found["place"]["first"]["low"] < 0.5 < found["place"]["first"]["high"]
    assert found["dims"]["Overall"]["abstained"]["value"] == pytest.approx(
        found["place"]["flips"]["value"], abs=0.1
    ), "where the orders disagree it takes no side"
    assert found["dims"]["Overall"]["kappa"]["low"] < 0


@pytest.mark.slow
def test_a_lean_to_the_first_place_is_found(audit_of: Callable[..., Found], crowd: Path) -> None:
    found = audit_of("Biased", crowd)
    assert found["place"]["first"]["low"] > 0.6
    assert found["place"]["flips"]["value"] == pytest.approx(0.5, abs=0.15)
    assert "position bias to the first video" in " ".join(found["sentences"])
    with pytest.raises(InputError, match=r"audits/a holds the audit of .* give another name=NAME"):
        audit_of("Comparer", crowd, "n=24")
    fair = audit_of("Comparer", crowd, "n=24", "name=fair")["place"]
    assert fair["first"]["value"] == 0.5 and fair["flips"]["value"] == 0


@pytest.mark.slow
def test_a_name_is_of_one_content(
    audit_of: Callable[..., Found], crowd: Path, tmp_path: Path
) -> None:
    """Whatever the file is called, and wherever it lies."""
    copied = shutil.copytree(crowd.parent, tmp_path / "copied")
    words = ["n=24", "name=same"]
    found = audit_of("Comparer", crowd, *words)
    file = copied / crowd.name
    assert audit_of("Comparer", file, *words)["counts"] == found["counts"]
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match=f"other contents of {file.name}: give another name=NAME"):
        audit_of("Comparer", file, *words)


@pytest.mark.slow
def test_faults_are_neither_right_nor_wrong(
    audit_of: Callable[..., Found], exact: Path, tmp_path: Path
) -> None:
    """Of a critic that is right whenever it answers."""
    found = audit_of("Faulty", exact)
    overall, faults = found["dims"]["Overall"], found["answered"]["faults"]
    missing = sum(faults.values())
    assert set(faults) == {"timeout", "unreadable"} and 20 < missing < 50  # 1 - 0.8 ** 2 of 96
    assert overall["accuracy"]["value"] == 1 and overall["accuracy"]["n"] == 96 - missing
    assert overall["accuracy_all"]["value"] == pytest.approx(1 - missing / 96)
    assert found["answered"]["share"]["value"] == pytest.approx(1 - missing / 96)
    assert overall["accuracy_ties"]["n"] < 96 - 28
    assert f"no verdict on {100 * missing / 96:.1f} %" in " ".join(found["sentences"])
    rows = read_jsonl(tmp_path / "audits/a/pairs.jsonl")
    assert sum(row["margin"] is None for row in rows) == missing
    assert all(bool(row["fault"]) == (row["margin"] is None) for row in rows)


@pytest.mark.slow
def test_a_rating_critic_without_all_scores(audit_of: Callable[..., Found], exact: Path) -> None:
    found = audit_of("Blind", exact)
    assert set(found["answered"]["faults"]) == {"no score"}
    assert found["dims"]["Overall"]["accuracy"]["value"] == 1


@pytest.mark.slow
def test_asking_again_tells_moods(audit_of: Callable[..., Found], crowd: Path) -> None:
    steady = audit_of("Comparer", crowd, "n=12", "repeats=3", "repeat_pairs=10")["again"]
    assert steady["alike"]["value"] == 1 and (steady["times"], steady["pairs"]) == (3, 10)
    moody = audit_of("Moody", crowd, "name=moody", "n=40", "repeats=3", "repeat_pairs=40")["again"]
    assert moody["alike"]["high"] < 0.8


@pytest.mark.slow
def test_own_probabilities_are_held_against_people(
    audit_of: Callable[..., Found], exact: Path
) -> None:
    """It says 0.9 and is always right."""
    found = audit_of("Comparer", exact, "n=48")
    (only,) = found["calibration"]["own"]["bins"]
    assert only["confidence"] == pytest.approx(0.9) and only["accuracy"]["value"] == 1
    assert found["calibration"]["own"]["ece"] == pytest.approx(0.1)
    assert found["calibration"]["own"]["brier"]["value"] == pytest.approx(0.01)
    assert found["adapter"]["scale"] > 1 and "underconfident" in found["use"]
    assert found["calibration"]["fitted"]["ece"] < 0.1


def test_recorded_verdicts_are_looked_up(audit_of: Callable[..., Found], exact: Path) -> None:
    """Those of somebody who has seen every second pair."""
    found = audit_of("Remembered", exact, f"+critic.file={exact}")
    assert found["answered"]["faults"] == {"not among its verdicts": 48}
    accuracy = found["dims"]["Overall"]["accuracy"]
    assert accuracy["value"] == 1 and accuracy["n"] == 48
    assert found["kind"] == "recorded" and found["cost"]["calls"] == 0


def test_a_critic_that_is_gone_is_told(audit_of: Callable[..., Found], exact: Path) -> None:
    with pytest.raises(InputError, match="the line is dead; what was answered is kept"):
        audit_of("Gone", exact)


# ---------------------------------------------------------------- the store


@pytest.mark.slow
def test_a_second_audit_asks_nothing(
    audit_of: Callable[..., Found], crowd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = audited.Comparer.asked
    first = audit_of("Comparer", crowd, "n=20")
    assert audited.Comparer.asked - before == 40, "both orders of every pair, once"
    again = audit_of("Comparer", crowd, "n=20", "batch_size=3")
    assert audited.Comparer.asked - before == 40
    assert again == first, "and costs are still known"
    assert "0 of them to ask: nothing is asked" in capsys.readouterr().out
    audit_of("Comparer", crowd, "n=21")
    assert audited.Comparer.asked - before == 42


@pytest.mark.slow
def test_an_interrupted_audit_goes_on(
    audit_of: Callable[..., Found], crowd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, before = audited.Comparer.one, audited.Comparer.asked

    def dies(self: audited.Comparer, *question: Any) -> Any:
        if audited.Comparer.asked > before + 16:
            raise KeyboardInterrupt
        return one(self, *question)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(audited.Comparer, "one", dies)
        audit_of("Comparer", crowd, "n=20")
    audit_of("Comparer", crowd, "n=20")
    assert audited.Comparer.asked - before == 40 + 8, "but for the call that was cut off"


@pytest.mark.slow
def test_the_plan_knows_the_price(
    audit_of: Callable[..., Found], crowd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = audited.Comparer.asked
    assert audit_of("Comparer", crowd, "dry_run=true") == {}
    assert "192 comparisons, 192 of them to ask; no answer was timed" in capsys.readouterr().out
    assert audited.Comparer.asked == before
    cost = audit_of("Comparer", crowd, "n=10")["cost"]
    assert cost["calls"] == 20 and cost["calls_a_pair"] == 2 and cost["seconds_a_thousand"] > 0
    capsys.readouterr()
    audit_of("Comparer", crowd, "dry_run=true")
    assert "going by 20 answers" in capsys.readouterr().out


def test_costs_add_up(tmp_path: Path) -> None:
    ledger = Ledger(Shelf(tmp_path), "critic", "cpu")
    ledger.add(2, 1.5, {"tokens": 10})
    ledger.add(1, 0.5, {"tokens": 5, "requests": 1})
    assert ledger.read() == {
        "calls": 3, "seconds": 2.0, "spent": {"tokens": 15, "requests": 1},
    }  # fmt: skip
    assert Ledger(Shelf(tmp_path), "critic", "cuda").read()["calls"] == 0


def test_videos_stay_where_they_are(
    audit_of: Callable[..., Found], crowd: Path, tmp_path: Path
) -> None:
    audit_of("shapes", crowd, "n=10")
    assert not (tmp_path / "store/videos").exists()


# ---------------------------------------------------------------- what is written


@pytest.mark.slow
def test_files_and_scalars(audit_of: Callable[..., Found], crowd: Path, tmp_path: Path) -> None:
    found = audit_of("shapes", crowd)
    found = audit_of("shapes", crowd)
    folder = tmp_path / "audits/a"
    assert json.loads((folder / "audit.json").read_text()) == found
    (events,) = (folder / "tensorboard").iterdir()
    log = EventAccumulator(str(events))
    log.Reload()
    logged = log.Scalars("dims/Overall/accuracy")[0].value
    assert logged == pytest.approx(found["dims"]["Overall"]["accuracy"]["value"])
    assert log.Tags()["tensors"] == ["audit/text_summary"]


@pytest.mark.slow
def test_the_page_is_one_file_with_escaped_words(
    audit_of: Callable[..., Found], crowd: Path, tmp_path: Path
) -> None:
    rows = read_annotations(crowd)
    flipped = {"A": "B", "B": "A", "same": "same", "invalid": "invalid"}
    wrong = [replace(r, labels={"Overall": flipped[r.labels["Overall"]]}) for r in rows]
    write_annotations(crowd.parent / "wrong.jsonl", wrong)
    found = audit_of("Comparer", crowd.parent / "wrong.jsonl", "examples=2", "n=48")
    assert found["grade"] == "worse than chance"
    page = (tmp_path / "audits/a/audit.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "&lt;b&gt;of&lt;/b&gt;" in page and "<b>of</b>" not in page
    assert page.count('class="pair"') == 2 and page.count("data:image/webp") >= 4
    assert "left one shown first" in page and "90 % sure" in page
    assert all(escape(text) in page for text in found["sentences"])


def test_worst_disagreements_by_hand() -> None:
    def row(first: int, tie: int, second: int, margin: float | None) -> Mapping[str, Any]:
        return {"people": {"first": first, "tie": tie, "second": second}, "margin": margin}

    rows = [
        row(3, 0, 0, -0.2), row(1, 0, 0, -0.9), row(0, 0, 2, 0.8),
        row(2, 0, 1, -1), row(0, 3, 0, 1), row(3, 0, 0, 0.5), row(3, 0, 0, None),
    ]  # fmt: skip
    assert disagreements(rows) == [rows[2], rows[0], rows[1]]


@pytest.mark.slow
def test_the_commands_of_the_pages(tmp_path: Path) -> None:
    make = ["--out", str(tmp_path), "--pairs", "24", "--source", "renderer", "--split", "select",
            "--candidates", "2"]  # fmt: skip
    assert command("ipo_lightning.shapes.annotators", *make).returncode == 0
    words = ["critic=shapes", f"pairs={tmp_path}/pairs.jsonl", f"paths.outputs={tmp_path}/out"]
    done = command("audit.py", *words)
    assert done.returncode == 0
    assert "shapes-rules@1 agrees with people on" in done.stdout
    (page,) = (tmp_path / "out/audits").glob("shapes-rules-1-pairs-*/audit.html")
    assert f"page: {page}" in done.stdout
    wrong = command("audit.py", "critic=shapes", "pair=x")
    assert wrong.returncode == 1 and "did you mean 'pairs'" in wrong.stderr
    assert "Traceback" not in wrong.stderr


# ---------------------------------------------------------------- people's votes


def row(a: str, b: str, overall: Any, annotator: str = "", **more: Any) -> Annotation:
    return Annotation(
        "", "a red ring growing", a, b, {"Overall": overall}, annotator=annotator, **more
    )


def files(folder: Path, *names: str) -> Callable[[Annotation], tuple[Path, Path]]:
    for name in names:
        (folder / name).write_bytes(name.encode())
    return lambda one: (folder / one.path_A, folder / one.path_B)


def test_a_pair_is_one_in_whatever_order(tmp_path: Path) -> None:
    find = files(tmp_path, "a", "b")
    rows = [row("a", "b", "A", "x"), row("b", "a", "A", "y"), row("b", "a", "same", "z"),
            row("b", "a", "B", "x", shown_left="B")]  # fmt: skip
    (pair,) = gather(rows, find).pairs
    assert [vote.value for vote in pair.votes["Overall"]] == [1, -1, 0, 1]
    assert ratings([pair], "Overall").tolist() == [[1], [-1], [0]], "x is asked twice, counts once"
    again, places = repeats([pair], "Overall")
    assert again.tolist() == [[1], [1]] and places.tolist() == [0]
    assert pair.votes["Overall"][3].left == 1


def test_two_downloads_of_one_page_are_no_repeats(tmp_path: Path) -> None:
    """Two of four hidden repeats are answered alike: 0.5, however often the file was downloaded."""
    find = files(tmp_path, *"abcdefgh")
    page = []
    for k, pair in enumerate(("ab", "cd", "ef", "gh")):
        for time, said in enumerate(("A", "A" if k % 2 else "B")):
            page.append(replace(row(*pair, said, "x", timestamp=f"2026-01-0{time + 1}"),
                                pair_id=f"{pair}-{time}", source="page 1"))  # fmt: skip
    page[-1] = replace(page[-1], timestamp="2026-01-03")  # answered anew after the first download
    first = [*page[:-1], replace(page[-1], labels={"Overall": "B"}, timestamp="2026-01-02")]

    def alike(rows: Sequence[Annotation]) -> list[bool]:
        again, _ = repeats(gather(rows, find).pairs, "Overall")
        assert again.shape == (2, 4)
        return [bool(a == b) for a, b in again.T]

    assert alike(page) == [False, True, False, True]
    assert alike([*first, *page]) == alike([*page, *first]) == alike(page)
    assert gather([*first, *page], find).left_out == {"answered anew later": 8}
    assert alike(first) == [False, True, False, False]


def test_rows_without_a_name_are_votes_each(tmp_path: Path) -> None:
    find = files(tmp_path, "a", "b")
    (pair,) = gather([row("a", "b", "A")] * 3, find).pairs
    assert ratings([pair], "Overall").tolist() == [[1], [1], [1]]


def test_videos_that_only_the_store_may_hold_are_told_by_their_row(
    audit_of: Callable[..., Found], tmp_path: Path
) -> None:
    one = Annotation("1", "x", "", "", {"Overall": "A"}, video_A="0" * 64, video_B="1" * 64)
    write_annotations(tmp_path / "answers.jsonl", [one])
    with pytest.raises(InputError) as caught:
        audit_of("shapes", tmp_path / "answers.jsonl")
    place = f"{tmp_path}/store/videos/00/{'0' * 64}.mp4 (of {tmp_path}/answers.jsonl:1)"
    assert place in str(caught.value) and "paths.store=DIR" in str(caught.value)


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    find = files(tmp_path, "a", "b", "c")
    rows = [row("a", "b", "A"), row("a", "a", "A"), row("b", "c", "invalid"), row("a", "gone", "B")]
    with pytest.raises(InputError, match="1 videos are missing: .*gone"):
        gather(rows, find)
    found = gather(rows, find, skip_missing=True)
    assert len(found.pairs) == 1
    assert found.left_out == {
        "a video against itself": 1, "called invalid": 1, "without a verdict": 1,
        "a video is missing": 1,
    }  # fmt: skip
    with pytest.raises(InputError, match="no pair has a verdict"):
        gather(rows[1:3], find)


def pairs_of(count: int, each: int = 1) -> list[Compared]:
    return [Compared(f"prompt {i // each}", Path(f"{i}a"), Path(f"{i}b")) for i in range(count)]


def test_splits_are_by_prompt_and_of_the_seed() -> None:
    pairs = pairs_of(60, each=3)
    chosen = calibration(pairs, 0.3, 0)
    assert int(chosen.sum()) == 18
    assert all(len({bool(c) for c in chosen[i : i + 3]}) == 1 for i in range(0, 60, 3))
    assert torch.equal(chosen, calibration(pairs, 0.3, 0))
    assert not torch.equal(chosen, calibration(pairs, 0.3, 1))
    some = drawn(pairs, 6, 0)
    assert len(some) == 6 and len({one.prompt for one in some}) == 2
    assert drawn(pairs, None, 0) == pairs and drawn(pairs, 99, 0) == pairs
    assert int(calibration(pairs[:6], 0.01, 0).sum()) == 3, "at least one prompt"
    assert int(calibration(pairs[:6], 0.99, 0).sum()) == 3, "and not all"


@pytest.mark.slow
def test_rated_videos_correlate(
    tmp_path: Path, audit_of: Callable[..., Found], crowd: Path
) -> None:
    """VideoFeedback's columns: ratings become pairs, and ranks are compared as well."""
    names = ("visual quality", "temporal consistency", "dynamic degree", "text-to-video alignment",
             "factual consistency")  # fmt: skip
    critic, rows = ShapesCritic(), {}
    for one in read_annotations(crowd)[::3]:
        for path in (one.path_A, one.path_B):
            score = critic.rate([read_video(crowd.parent / path)], [one.prompt])[0].score
            assert score is not None
            rows[path] = {"text prompt": one.prompt, "video link": path,
                          **dict.fromkeys(names, 1 + round(3 * score))}  # fmt: skip
    file = crowd.parent / "feedback.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    found = audit_of("shapes", file)
    overall = found["dims"]["Overall"]
    assert overall["scores"]["spearman"] > 0.8 and overall["scores"]["kendall"] > 0.7
    assert overall["accuracy"]["value"] == 1


# ---------------------------------------------------------------- the verdict


def table(votes: Sequence[Sequence[float]], margins: Sequence[float]) -> Table:
    pairs = [
        replace(pair, votes={"Overall": [Vote(f"person {i}", v) for i, v in enumerate(row)]})
        for pair, row in zip(pairs_of(len(votes)), votes, strict=True)
    ]
    return Table(pairs, [Answer(margin) for margin in margins], Rules())


def verdict(votes: Sequence[Sequence[float]], margins: Sequence[float]) -> tuple[str, Found]:
    found = {**findings(table(votes, margins)), "critic": "c", "kind": "pointwise"}
    assert sentences(found)[1].startswith(TRUST[grade(found)].partition("{")[0])
    return grade(found), found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("expected", "wrong"),
    [("below people", 0.3), ("like people", 0.1), ("above people", 0.0), ("chance", 0.5),
     ("worse than chance", 1.0)],
)  # fmt: skip
def test_grades(expected: str, wrong: float) -> None:
    """Two people are always right, and a third on nine pairs of ten."""
    draws = torch.rand(2, 200, generator=torch.Generator().manual_seed(0))
    third, critic = (torch.where(d < w, -1.0, 1.0).tolist() for d, w in zip(draws, (0.1, wrong),
                                                                          strict=True))  # fmt: skip
    assert verdict([[1.0, 1.0, one] for one in third], critic)[0] == expected
    alone = "above chance" if wrong < 0.5 else expected
    assert verdict([[1.0]] * 200, critic)[0] == alone


def test_the_ceiling_by_hand() -> None:
    """(1, 1, -1): the first two have (1, -1) for others, a tie; the third is wrong of two."""
    found = verdict([[1.0, 1.0, -1.0], [1.0, 1.0, 1.0]], [0.5, math.nan])[1]
    people = found["dims"]["Overall"]["people"]
    assert people["accuracy"]["value"] == 0 and people["critic"]["value"] == 1
    assert people["accuracy"]["n"] == 1, "where the critic has no verdict neither is counted"


# ---------------------------------------------------------------- wrong input


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["n=1"], "n=1: give a whole number"),
        (["calibration=1"], "calibration=1: give a number, above 0 and below 1"),
        (["calibration=0"], "calibration=0: give a number, above 0"),
        (["repeats=0"], "repeats=0"),
        (["batch_size=0"], "batch_size=0"),
        (["dry_run=maybe"], "dry_run=maybe"),
        (["name=../up"], "name=../up"),
        (["videos=/nowhere"], "videos=/nowhere: there is no such folder"),
        (["pairs=/nowhere"], "pairs=/nowhere: there is no such file"),
        ([f"pairs={'x' * 300}"], "x: there is no such file"),
        (["dims={MQ:[]}"], "dims.MQ=[]: give the names"),
        (["dims=3"], "dims=3: give"),
        (["format=csv"], "format=csv: choose"),
        (["~critic"], "critic: none was given"),
    ],
)
def test_a_wrong_setting_is_named(
    words: list[str], named: str, audit_of: Callable[..., Found], exact: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=re.escape(named)):
        audit_of("shapes", exact, *words)
    assert not (tmp_path / "audits").exists()


def test_a_file_that_is_wrong_is_named(audit_of: Callable[..., Found], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "p", "Overall": "A"\n')
    with pytest.raises(InputError, match="broken.jsonl"):
        audit_of("shapes", broken)
    write_annotations(broken, [row("a.mp4", "b.mp4", "A")])
    with pytest.raises(InputError, match=r"2 videos are missing: .*a.mp4.*b.mp4[\s\S]*videos=DIR"):
        audit_of("shapes", broken)
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(f"no video, {name}".encode())
    with pytest.raises(InputError, match="all pairs are of one prompt"):
        audit_of("shapes", broken)
    other = replace(row("a.mp4", "b.mp4", "A"), prompt="a blue ring growing")
    write_annotations(broken, [row("a.mp4", "b.mp4", "A"), other])
    with pytest.raises(InputError, match=r"a.mp4: cannot be decoded"):
        audit_of("shapes", broken)


def test_what_is_no_critic_is_refused(audit_of: Callable[..., Found], exact: Path) -> None:
    with pytest.raises(InputError, match="Mute is not a critic: it has no method rate"):
        audit_of("shapes", exact, "critic._target_=tests.helpers.audited.Mute")


def test_every_checked_setting_is_one() -> None:
    cfg = composed("audit", "critic=shapes", "pairs=x")
    assert all(OmegaConf.select(cfg, key, default=cfg) is not cfg for key in SETTINGS)
