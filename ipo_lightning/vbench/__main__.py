"""Command line: make the videos of the official VBench suites, read what they say of them.

python -m ipo_lightning.vbench export ckpt=outputs/NAME info=VBench_full_info.json out=DIR
python -m ipo_lightning.vbench import RESULTS.json
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ipo_lightning.commands import run
from ipo_lightning.errors import InputError, pipe_may_close
from ipo_lightning.report import table
from ipo_lightning.storage.store import write_atomically
from ipo_lightning.vbench.names import check_names, video_name
from ipo_lightning.vbench.results import read_results, rows_of, scores_of, summary_of
from ipo_lightning.vbench.suites import (
    SUITES,
    Entry,
    Suite,
    by_number,
    link_folders,
    of_dimensions,
    part_of,
    read_info,
    read_rewritten,
    videos_of,
)

SAMPLE = Path(__file__).resolve().parents[2] / "sample.py"
"""The clone's program that makes videos; an installed library comes without it."""
EXPORT: Mapping[str, str | None] = {
    "ckpt": None, "suite": "vbench", "info": "", "out": "outputs/vbench", "dimensions": "",
    "shard": "1/1", "rewritten": "",
}  # fmt: skip
OF_EXPORT = (
    "prompts",
    "prompt",
    "n",
    "naming",
    "export",
    "names",
    "paths.outputs",
    "log",
    "-m",
    "--multirun",
)
"""Settings of sample.py that the export gives itself."""
HELP = f"""settings:
  export  ckpt=PATH           as of sample.py: a run, a round, a pipeline, a LoRA, a hub id
          suite={"|".join(SUITES)}
          info=FILE           the suite's prompts: VBench_full_info.json, VBench2_full_info.json
          out=FOLDER          default outputs/vbench
          dimensions=A,B      prompts of these dimensions only
          shard=I/N           prompts of the I-th of N machines
          rewritten=FILE      longer texts to sample in place of the prompts, a line for each entry
                              of info: VBench's prompts/augmented_prompts
          any other KEY=VALUE of sample.py: seed=, rollout=, precision=, trainer.devices=, ...
  import  RESULTS.json ...    files that VBench wrote, or folders of them
          out=FILE.json       write values and scores
"""


def export(words: Sequence[str]) -> str:
    """Make a suite's videos by sample.py; those that are there already are kept.

    Raises:
        InputError: a setting is wrong, or there is no sample.py.
        subprocess.CalledProcessError: sample.py failed, and said why.
    """
    settings, others = export_settings(words)
    suite, out = SUITES[settings["suite"]], Path(settings["out"])
    entries, texts = prompts_of(settings, suite)
    wanted = part_of(videos_of(entries, suite), *shard_of(settings["shard"]))
    check_export(wanted, suite.naming)
    given = [f"ckpt={settings['ckpt']}", f"naming={suite.naming}", f"paths.outputs={out}", *others]
    if texts:
        table_of_names = out / f"{settings['suite']}-names.jsonl"
        rows = [{"prompt": text, "name": prompt} for prompt, text in texts.items()]
        given.append(f"names={write_rows(table_of_names, rows)}")
    files: list[Path] = []
    for number, prompts in by_number(wanted).items():
        place = out / f"{settings['suite']}-{number}-{settings['shard'].replace('/', '-of-')}.jsonl"
        rows = [{"prompt": texts.get(prompt, prompt)} for prompt in prompts]
        files += sampled([*given, f"prompts={write_rows(place, rows)}", f"n={number}"])
    folder = checked_folder(files, wanted, suite.naming)
    link_folders(folder, entries, {
        prompt: [video_name(prompt, k, suite.naming) for k in range(number)]
        for prompt, number in wanted.items()
    })  # fmt: skip
    return (
        f"{folder}: {len(files)} videos of {len(wanted)} prompts; give this folder as videos_path, "
        f"or {folder}-by-dimension to scripts that want one for each dimension (docs/vbench.md)"
    )


def prompts_of(settings: Mapping[str, str], suite: Suite) -> tuple[list[Entry], dict[str, str]]:
    """The suite's entries of the dimensions that are asked for, and the rewritten prompts.

    Raises:
        InputError: a file is missing, or is another.
    """
    info = Path(settings["info"] or suite.info)
    if not info.is_file():
        raise InputError(f"info={info}: there is no such file; get {suite.info} from "
                         "github.com/Vchitect/VBench and give info=FILE")  # fmt: skip
    entries, rewritten = read_info(info), settings["rewritten"]
    texts = read_rewritten(Path(rewritten), entries) if rewritten else {}
    asked = [name for name in settings["dimensions"].split(",") if name]
    return of_dimensions(entries, asked), texts


def check_export(wanted: Mapping[str, int], naming: str) -> None:
    """Refuse what sample.py would refuse after hours.

    Raises:
        InputError: a prompt cannot be a file name, there is none, or there is no sample.py.
    """
    if not wanted:
        raise InputError("shard: this part has no prompts; give fewer parts")
    if not SAMPLE.is_file():
        raise InputError("export runs sample.py, which only a clone of the repository has: run "
                         "this command there")  # fmt: skip
    for number, prompts in by_number(wanted).items():
        check_names(prompts, number, naming)


def write_rows(file: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    """A table for sample.py, which is returned."""
    write_atomically(file, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return file


def export_settings(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The export's own settings, and the words that are for sample.py.

    Raises:
        InputError: one is missing or wrong.
    """
    given: dict[str, str | None] = dict(EXPORT)
    others = []
    for word in words:
        key, equals, value = word.partition("=")
        if key.lstrip("+") in OF_EXPORT:
            raise InputError(f"{word}: the suite decides it; leave it out")
        if equals and key in EXPORT:
            given[key] = value
        else:
            others.append(word)
    if not given["ckpt"]:
        raise InputError("ckpt has no default: give ckpt=PATH")
    if given["suite"] not in SUITES:
        raise InputError(f"suite={given['suite']}: choose one of {', '.join(SUITES)}")
    return {key: str(value) for key, value in given.items()}, others


def shard_of(text: str) -> tuple[int, int]:
    """Part and parts of ``I/N``.

    Raises:
        InputError: it is something else.
    """
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise InputError(f"shard={text}: give I/N, as 1/4 to 4/4")
    return int(part), int(parts)


def sampled(overrides: Sequence[str]) -> list[Path]:
    """The videos that sample.py made or found there, as it names them."""
    command = [sys.executable, str(SAMPLE), *overrides]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [Path(line) for line in done.stdout.splitlines() if line.endswith(".mp4")]


def checked_folder(files: Sequence[Path], wanted: Mapping[str, int], naming: str) -> Path:
    """The folder of the videos, which holds all that are wanted.

    Raises:
        InputError: a video is missing.
    """
    names = {video_name(prompt, k, naming) for prompt, n in wanted.items() for k in range(n)}
    missing = sorted(names - {file.name for file in files if file.is_file()})
    folders = {file.parent for file in files}
    if missing or len(folders) != 1:
        raise InputError(f"{len(missing)} videos are missing in {', '.join(map(str, folders))}: "
                         f"{', '.join(missing[:3])}; the same command makes them")  # fmt: skip
    return folders.pop()


def import_(words: Sequence[str]) -> str:
    """The scores of VBench's result files.

    Raises:
        InputError: a file is of another kind.
    """
    outs = [word.removeprefix("out=") for word in words if word.startswith("out=")]
    paths = [Path(word) for word in words if not word.startswith("out=")]
    if not paths or len(outs) > 1:
        raise InputError("give the files that VBench wrote: import RESULTS.json ... [out=FILE]")
    values = read_results(paths)
    scores = scores_of(values)
    for out in outs:
        content = {"dimensions": values, **(scores._asdict() if scores else {})}
        write_atomically(Path(out), (json.dumps(content, indent=1) + "\n").encode())
    rows = rows_of(values)
    return f"{table(rows, list(rows[0]))}\n{summary_of(values)}"


COMMANDS = {"export": export, "import": import_}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    about = "Make the videos of VBench's suites, read its results."
    return run("vbench", about, HELP, COMMANDS, arguments, passes_on=True)


if __name__ == "__main__":
    with pipe_may_close():
        sys.exit(main())
