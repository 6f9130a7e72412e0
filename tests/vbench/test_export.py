"""The videos of VBench's suites: prompts, numbers, names, folders; made, resumed and shared."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from app.entry import CONF, register_resolvers
from ipo_lightning.errors import InputError
from ipo_lightning.vbench import __main__ as console
from ipo_lightning.vbench.names import video_name
from ipo_lightning.vbench.suites import (
    SUITES,
    Entry,
    link_folders,
    of_dimensions,
    part_of,
    read_info,
    videos_of,
)
from sample import sample

SHIPPED = "ckpt=ipo_lightning/shapes/pipeline"
QUICK = ("steps=1", "trainer.accelerator=cpu")
ENTRIES = [
    Entry("a ring, moving", ("subject_consistency", "dynamic_degree", "motion_smoothness")),
    Entry("In a still frame, a cross", ("temporal_flickering",)),
    Entry("a ring, moving", ("appearance_style",)),
]


def save_info(file: Path, entries: Sequence[Entry] = ENTRIES) -> Path:
    rows = [{"prompt_en": one.prompt, "dimension": one.dimensions} for one in entries]
    file.write_text(json.dumps(rows))
    return file


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """sample.py runs in this process; the settings that it was given."""
    given: list[list[str]] = []

    def sampled(overrides: Sequence[str]) -> list[Path]:
        given.append(list(overrides))
        register_resolvers()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return sample(compose("sample", list(overrides)))

    monkeypatch.setattr(console, "sampled", sampled)
    return given


def test_numbers_of_videos() -> None:
    wanted = videos_of(ENTRIES, SUITES["vbench"])
    assert wanted == {"a ring, moving": 5, "In a still frame, a cross": 25}
    assert videos_of(ENTRIES, SUITES["vbench_long"]) == wanted
    of_2 = [Entry("x" * 200, ("Diversity",)), Entry("b", ("Material",))]
    assert videos_of(of_2, SUITES["vbench2"]) == {"x" * 200: 20, "b": 3}
    assert videos_of(of_dimensions(ENTRIES, ["dynamic_degree"]), SUITES["vbench"]) == {
        "a ring, moving": 5
    }


def test_parts_are_everything_once() -> None:
    wanted = {str(number): 5 for number in range(10)}
    parts = [part_of(wanted, part, 3) for part in (1, 2, 3)]
    assert sorted(prompt for part in parts for prompt in part) == sorted(wanted)


@pytest.mark.slow
def test_export_makes_names_and_folders_and_goes_on(
    tmp_path: Path,
    in_process: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fewer = SUITES["vbench"]._replace(videos=2, more={"temporal_flickering": 3})
    monkeypatch.setattr(console, "SUITES", {"vbench": fewer})
    info, out = save_info(tmp_path / "info.json"), tmp_path / "out"
    words = ["export", SHIPPED, f"info={info}", f"out={out}", *QUICK]
    assert console.main(words) == 0
    said = capsys.readouterr().out
    (folder,) = (one for one in (out / "samples").glob("vbench-*") if "-by-" not in one.name)
    wanted = {f"a ring, moving-{k}.mp4" for k in range(2)}
    still = {f"In a still frame, a cross-{k}.mp4" for k in range(3)}
    assert {file.name for file in folder.iterdir()} == wanted | still
    assert f"{folder}: 5 videos of 2 prompts" in said
    by_dimension = Path(f"{folder}-by-dimension")
    links = {
        place.name: {file.name for file in place.iterdir()} for place in by_dimension.iterdir()
    }
    assert links == {
        "subject_consistency": wanted, "dynamic_degree": wanted, "motion_smoothness": wanted,
        "appearance_style": wanted, "temporal_flickering": still,
    }  # fmt: skip
    assert all(file.is_file() for file in by_dimension.rglob("*.mp4"))
    lost = folder / "a ring, moving-1.mp4"
    lost.unlink()
    kept = {file: file.stat().st_mtime_ns for file in folder.glob("In a*")}
    assert console.main(words) == 0
    assert lost.is_file()
    assert kept == {file: file.stat().st_mtime_ns for file in kept}


@pytest.mark.slow
def test_rewritten_prompts_keep_the_names(tmp_path: Path, in_process: list[list[str]]) -> None:
    """Names are VBench's, and another text is another folder."""
    info = save_info(tmp_path / "info.json", ENTRIES[:1])
    (tmp_path / "longer.txt").write_text("a red ring that moves to the left\n")
    words = ["export", SHIPPED, f"info={info}", f"out={tmp_path / 'out'}", *QUICK]
    words.append(f"rewritten={tmp_path / 'longer.txt'}")
    assert console.main(words) == 0
    (given,) = in_process
    (prompts,) = (Path(word[8:]) for word in given if word.startswith("prompts="))
    assert json.loads(prompts.read_text()) == {"prompt": "a red ring that moves to the left"}
    (folder,) = {file.parent for file in (tmp_path / "out/samples").glob("vbench-*[!n]/*.mp4")}
    assert {file.name for file in folder.iterdir()} == {f"a ring, moving-{k}.mp4" for k in range(5)}
    (told,) = (tmp_path / "out/samples").glob("settings-*.json")
    assert "names" in json.loads(told.read_text())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["suite=vbench3"], "suite=vbench3: choose one of vbench, vbench_long, vbench2"),
        (["shard=3/2"], "shard=3/2: give I/N"),
        (["shard=3/3"], "this part has no prompts"),
        (["dimensions=dynamic_degre"], "there is no dynamic_degre; choose among subject_"),
        (["info=nowhere.json"], "get VBench_full_info.json from"),
        (["prompts=a.txt"], "prompts=a.txt: the suite decides it"),
        (["ckpt="], "ckpt has no default"),
        (["rewritten={info}"], "give a text for each of the 3 entries"),
    ],
)
def test_wrong_settings_are_refused(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = save_info(tmp_path / "info.json")
    asked = [word.format(info=info) for word in words]
    assert console.main(["export", SHIPPED, f"info={info}", f"out={tmp_path}", *asked]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("content", ['{"a": 1}', "[1]", '[{"prompt_en": "a"}]', "[]", "no"])
def test_other_files_are_no_info(content: str, tmp_path: Path) -> None:
    file = tmp_path / "info.json"
    file.write_text(content)
    with pytest.raises(InputError, match=r"info=.*info\.json: (expected|it has no)"):
        read_info(file)


def test_sample_runs_as_a_program_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it prints is its videos and other lines; its exit status is the command's."""
    script = tmp_path / "sample.py"
    monkeypatch.setattr(console, "SAMPLE", script)
    script.write_text(
        "import sys; print('a b-0.mp4', 'contact sheet: c.png', *sys.argv[1:], sep='\\n')"
    )
    assert console.sampled(["n=5"]) == [Path("a b-0.mp4")]
    words = ["export", SHIPPED, f"info={save_info(tmp_path / 'i.json')}", f"out={tmp_path}"]
    script.write_text("raise SystemExit(3)")
    assert console.main(words) == 3
    script.write_text("import os; os.kill(os.getpid(), 15)")
    assert console.main(words) == 143


@pytest.mark.parametrize(
    ("suite", "package", "reader", "dimension"),
    [
        ("vbench", "vbench", "VBench", "scene"),
        ("vbench2", "vbench2", "VBench2", "Diversity"),
    ],
)
def test_the_official_loader_finds_each_video(
    suite: str, package: str, reader: str, dimension: str, tmp_path: Path
) -> None:
    """Of all its prompts, on empty files of our names."""
    module = pytest.importorskip(package)
    chosen = SUITES[suite]
    info = Path(module.__file__).parent / chosen.info
    entries, folder = read_info(info), tmp_path / "videos"
    folder.mkdir()
    names = {
        prompt: [video_name(prompt, k, chosen.naming) for k in range(number)]
        for prompt, number in videos_of(entries, chosen).items()
    }
    for files in names.values():
        for name in files:
            (folder / name).touch()
    known = sorted({name for entry in entries for name in entry.dimensions})
    official = getattr(module, reader)("cpu", str(info), str(tmp_path / "out"))
    found = json.loads(Path(official.build_full_info_json(str(folder), "all", known)).read_text())
    assert len(found) == len(entries)
    for row in found:
        more = chosen.more.get(row["dimension"][0], 0) if suite == "vbench2" else 0
        assert len(row["video_list"]) == max(chosen.videos, more), row["prompt_en"]
    link_folders(folder, entries, names)
    place = tmp_path / "videos-by-dimension" / dimension
    part = json.loads(
        Path(official.build_full_info_json(str(place), "part", [dimension])).read_text()
    )
    assert part and all(len(row["video_list"]) >= chosen.videos for row in part)
