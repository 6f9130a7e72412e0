"""Finished runs on disk, written by hand: what the report's tests read."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ipo_lightning.storage.store import Store, write_jsonl
from ipo_lightning.video import Clip, encode_video

HOSTILE = "a red <script>alert('x')</script> & \"square\""
ESCAPED = "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;"
CATEGORIES = ("<b>shape", "colour")
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
    """A finished run on disk, with videos in the store beside it.

    By the judge every third prompt wins, the next ties, the next loses, further each round.
    """
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
            {
                "prompt_index": i, "prompt": text, "candidate": c, "seed": 1, "video": put(i, k),
                "score": 0.4 + 0.1 * k, "dims": {}, "eval_score": 0.4 + 0.05 * k * (1 - i % 3),
                "eval_dims": {"colour": 0.5 + 0.1 * k * (i % 3 - 1), "shape": 0.5 + 0.01 * (k + i)},
                "gauges": {}, "category": CATEGORIES[i % 2],
            }
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
