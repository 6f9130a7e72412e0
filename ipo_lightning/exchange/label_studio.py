"""Label Studio: a labelling configuration, tasks to import, and its JSON export read back.

The configuration has ``Choices`` for each dimension (left, same, right, cannot say), since the
``Pairwise`` tag has no tie; results of ``Pairwise`` in other configurations are read too.
Sources: Label Studio's pages on the task format and on the tags Choices, Pairwise and Video.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ipo_lightning.critics.people.annotations import (
    NO_DIMS,
    OVERALL,
    Annotation,
    Choice,
    annotations_of,
)
from ipo_lightning.errors import InputError
from ipo_lightning.exchange.columns import numbered, shown, text, with_overall
from ipo_lightning.exchange.names import video_path
from ipo_lightning.storage.store import write_atomically
from ipo_lightning.storage.tables import Placed

CONFIG, TASKS = "label_studio.xml", "label_studio_tasks.json"
SIDES: Mapping[str, Choice] = {
    "left": "A", "right": "B", "same": "same", "cannot say": "invalid"
}  # fmt: skip
DATA = ("pair_id", "video_A", "video_B", "round", "source")
"""Fields of an annotation that a task keeps."""


def is_export(rows: Sequence[Placed]) -> bool:
    """Whether a table is tasks of Label Studio, annotated or not."""
    return bool(rows) and {"data", "annotations"} <= set(rows[0][1])


def read(path: Path, rows: Sequence[Placed]) -> list[Annotation]:
    """The annotations of an export, without those that were skipped.

    Raises:
        InputError: names the task and what is wrong with it.
    """
    found = []
    for number, (place, task) in enumerate(rows, 1):
        data = task.get("data")
        if not isinstance(data, Mapping):
            raise InputError(f"{place}: a task has data and annotations, got {shown(task)}")
        for one in _objects(task, "annotations", place):
            results = [] if one.get("was_cancelled") else _objects(one, "result", place)
            labels = _labels(results, place)
            if labels:
                found.append(_annotation(data, one, labels, place, numbered(path, number)))
    return found


def _objects(row: Mapping[str, Any], name: str, place: str) -> list[Mapping[str, Any]]:
    """A list of objects, empty where there is none."""
    value = row.get(name) or []
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise InputError(f"{place}: {name!r} must be a list of objects, got {shown(value)}")
    return value


def _annotation(
    data: Mapping[str, Any],
    one: Mapping[str, Any],
    labels: dict[str, Choice],
    place: str,
    name: str,
) -> Annotation:
    by = one.get("completed_by")
    row = {
        "pair_id": name,
        **{key: data[key] for key in DATA if data.get(key) not in (None, "")},
        "prompt": text(data, "prompt", place),
        "path_A": data.get("path_A") or video_path(text(data, "left", place)),
        "path_B": data.get("path_B") or video_path(text(data, "right", place)),
        "annotator": by.get("email") or by.get("id") if isinstance(by, Mapping) else by,
        "shown_left": "A",
        "seconds": one.get("lead_time"),
        "timestamp": one.get("created_at"),
    }
    return annotations_of([(place, {**row, **with_overall(labels)})])[0]


def _labels(results: Sequence[Mapping[str, Any]], place: str) -> dict[str, Choice]:
    """The choices of one annotation, by dimension; a `Pairwise` result is `OVERALL`."""
    found: dict[str, Choice] = {}
    for result in results:
        value = result.get("value")
        if not isinstance(value, Mapping):
            continue  # a relation between regions, or a rejection, is no label of the videos
        if result.get("type") == "pairwise":
            name, said = OVERALL, str(value.get("selected"))
        elif result.get("type") == "choices":
            chosen = value.get("choices")
            name = str(result.get("from_name"))
            said = str(chosen[0] if isinstance(chosen, list) and chosen else chosen)
        else:
            continue
        if name in NO_DIMS:
            raise InputError(f"{place}: {name!r} is the name of a field: rename that control tag")
        if said not in SIDES:
            raise InputError(
                f"{place}: {name!r} must be one of {', '.join(SIDES)}, got {shown(said)}"
            )
        found[name] = SIDES[said]
    return found


def write(folder: Path, rows: Sequence[Annotation], files_at: str = "") -> tuple[Path, Path]:
    """Write the configuration and the tasks.

    The dimensions of the first row are asked, and `OVERALL`. Labels are left out: annotators must
    not see them.

    Args:
        files_at: prefix of a video's path in a task: the address at which Label Studio finds the
            folder, ``/data/local-files/?d=`` for its local storage.
    """
    dims = sorted({name for one in rows for name in one.labels} - {OVERALL})
    tasks = [_task(one, files_at) for one in rows]
    write_atomically(folder / CONFIG, config((*dims, OVERALL)).encode())
    write_atomically(folder / TASKS, json.dumps(tasks, indent=1).encode())
    return folder / CONFIG, folder / TASKS


def _task(one: Annotation, files_at: str) -> dict[str, Any]:
    named = {key: getattr(one, key) for key in DATA}
    return {
        "data": {
            **{key: value for key, value in named.items() if value not in (None, "")},
            "prompt": one.prompt,
            "path_A": one.path_A,
            "path_B": one.path_B,
            "left": files_at + one.path_A,
            "right": files_at + one.path_B,
        }
    }


def config(dims: Sequence[str]) -> str:
    """The labelling configuration: the prompt, two videos, one question a dimension."""
    questions = [
        f'  <Header value="{escape(name)}"/>\n'
        f'  <Choices name="{escape(name)}" toName="left" choice="single" required="true" '
        'showInline="true">\n'
        + "".join(f'    <Choice value="{escape(side)}"/>\n' for side in SIDES)
        + "  </Choices>"
        for name in dims
    ]
    return (
        "<View>\n"
        '  <Text name="prompt" value="$prompt"/>\n'
        '  <View style="display: grid; grid-template: auto/1fr 1fr; column-gap: 8px">\n'
        '    <Video name="left" value="$left"/>\n'
        '    <Video name="right" value="$right"/>\n'
        "  </View>\n" + "\n".join(questions) + "\n</View>\n"
    )
