"""Two policies are compared on the same prompts and seeds, or not at all."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from callbacks.videos import evaluated as by_place
from ipo_lightning.errors import InputError
from ipo_lightning.evaluation import EvaluatedVideo, paired, summary
from ipo_lightning.storage.layout import RoundDir


def videos(*scores: float) -> list[EvaluatedVideo]:
    """Two videos of each prompt."""
    return [
        EvaluatedVideo(i // 2, f"prompt {i // 2}", i % 2, 7 * i, f"v{i}", 0.0, {}, one, {}, {})
        for i, one in enumerate(scores)
    ]


def test_pairs_do_not_depend_on_the_order_of_rows() -> None:
    rows, base = videos(1, 2, 3, 4), videos(0, 3, 2, 9)
    assert summary(rows, base)["win_rate"] == summary(rows, base[::-1])["win_rate"] == 0.5
    assert paired(rows, base[::-1]) == base


OTHERS: dict[str, Callable[[list[EvaluatedVideo]], list[EvaluatedVideo]]] = {
    "a prompt less": lambda base: base[:2],
    "a prompt more": lambda base: [*base, *videos(0, 0, 0, 0, 0, 0)[4:]],
    "a video less": lambda base: base[:3],
    "a video twice": lambda base: [*base, base[0]],
    "another prompt": lambda base: [*base[:3], replace(base[3], prompt="other")],
    "another seed": lambda base: [*base[:3], replace(base[3], seed=1)],
    "another index": lambda base: [*base[:3], replace(base[3], prompt_index=7)],
    "nothing": lambda base: [],
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_prompts_or_seeds_are_never_paired(case: str) -> None:
    rows = videos(1, 2, 3, 4)
    for one, other in ((rows, OTHERS[case](rows)), (OTHERS[case](rows), rows)):
        with pytest.raises(InputError, match=r"other prompts or seeds .*'(prompt|other).*restore"):
            summary(one, other)


def test_callbacks_pair_by_prompt_and_seed(tmp_path: Path) -> None:
    folders = []
    for number, rows in enumerate((videos(1, 2), [replace(one, seed=99) for one in videos(1, 2)])):
        folder = RoundDir(tmp_path / f"round_{number}", number)
        folder.write(folder.evaluation_file, rows)
        folders.append(by_place(folder.path))
    assert len(folders[0]) == 2 and not folders[0].keys() & folders[1].keys()
