"""Evaluation of a round's policy on prompts that it was not trained on.

Every policy, the base model too, makes its videos from the same seeds, so that policies are
compared video by video. The training critic and the held-out judge score all of them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ipo_lightning.critics.stage.critique import Critique
from ipo_lightning.errors import InputError
from ipo_lightning.metrics.diversity import diversity
from ipo_lightning.metrics.intervals import Interval, mean_interval, share_interval
from ipo_lightning.metrics.win_rate import WinRate, clustered_mean, differences, win_rate
from ipo_lightning.objectives import Objective, squared_error
from ipo_lightning.parallel.runtime import Runtime
from ipo_lightning.policy import Policy
from ipo_lightning.sampling import PromptSeeds, Sampler
from ipo_lightning.seeds import derive_seed, gaussian
from ipo_lightning.settings import Count, checked
from ipo_lightning.storage.records import Candidate, Row, Verdict
from ipo_lightning.video import read_video

Gauge = Callable[[Tensor], Tensor]
RealClips = Callable[[Sequence[str], int], Tensor]


@dataclass(frozen=True)
class EvaluatedVideo(Row):
    """An evaluation video with the scores of the training critic and the held-out judge."""

    prompt_index: int
    prompt: str
    candidate: int
    seed: int
    video: str
    score: float | None
    dims: Mapping[str, float]
    eval_score: float | None
    eval_dims: Mapping[str, float]
    gauges: Mapping[str, float]
    category: str | None = None
    """Of the prompt, where its file has one."""

    def row(self) -> dict[str, Any]:
        """The row as plain JSON; without a category it is as rows were before there was one."""
        return {k: v for k, v in super().row().items() if k != "category" or v is not None}


@checked
class Evaluation:
    """Scores a policy on held-out prompts.

    Args:
        prompts: of the evaluation split.
        n: videos a prompt.
        seed: the run's; seeds depend on it, the purpose, the prompt and the video, never on the
            round.
        critic: the training critic. eval_critic: the held-out judge, by whose scores wins are
            counted. A critic that compares scores a video by its chance to beat the base model's
            video of the same seed.
        gauges: name -> measurement of pixels, uint8 (N, T, H, W, C) -> (N,), in addition to those
            of `ipo_lightning.metrics.gauges`.
        real_clips: (prompts, seed) -> uint8 (N, T, H, W, C) real videos of those prompts; the
            policy's error on them shows its drift. None: not measured.
        categories: prompt -> category, of those prompts that have one.
        purpose: of the seeds, so that two evaluations of a run share no noise.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        *,
        n: Count = 4,
        seed: int = 0,
        sampler: Sampler,
        critic: Critique,
        eval_critic: Critique,
        gauges: Mapping[str, Gauge] | None = None,
        real_clips: RealClips | None = None,
        purpose: str = "evaluation",
        categories: Mapping[str, str] | None = None,
    ) -> None:
        self.sampler, self.critic, self.eval_critic = sampler, critic, eval_critic
        self.gauges, self.real_clips = dict(gauges or {}), real_clips
        self.prompts, self.n, self.seed = list(prompts), n, seed
        self.categories = dict(categories or {})
        self._real: Tensor | None = None
        """Latents of the real clips, after the first use."""
        self.units = [
            PromptSeeds(i, prompt, tuple(derive_seed(seed, purpose, i, k) for k in range(n)))
            for i, prompt in enumerate(prompts)
        ]

    @property
    def videos(self) -> int:
        """How many videos a policy makes."""
        return self.n * len(self.prompts)

    def evaluate(
        self,
        fingerprint: str,
        network: nn.Module,
        runtime: Runtime,
        label: str,
        base: Sequence[EvaluatedVideo] | None = None,
    ) -> list[EvaluatedVideo]:
        """The policy's evaluation videos with the scores of both critics, and what the leading rank
        measures of their pixels.

        Args:
            base: the base model's rows, with whose videos a critic that compares compares these;
                None where these are the base's own.
        """
        device = str(next(network.parameters()).device)
        candidates = self.sampler.independent().generate(
            fingerprint, self.units, network, runtime, f"{label}: evaluation videos"
        )
        if base is not None:
            paired(candidates, base)
        videos = {(row.prompt_index, row.candidate): row.video for row in base or ()} or None
        scores, eval_scores = (
            critic.score(candidates, videos, runtime.workers, device, f"{label}: {name}")
            for critic, name in ((self.critic, "critic"), (self.eval_critic, "held-out judge"))
        )
        measured = runtime.workers.agree(lambda: self._measured(candidates))
        return [
            self._row(*one) for one in zip(candidates, scores, eval_scores, measured, strict=True)
        ]

    def _row(
        self,
        candidate: Candidate,
        score: Verdict,
        eval_score: Verdict,
        measured: Mapping[str, float],
    ) -> EvaluatedVideo:
        return EvaluatedVideo(
            prompt_index=candidate.prompt_index,
            prompt=candidate.prompt,
            candidate=candidate.candidate,
            seed=candidate.seed,
            video=candidate.video,
            score=score.score,
            dims=score.dims,
            eval_score=eval_score.score,
            eval_dims=eval_score.dims,
            gauges={**candidate.gauges, **measured},
            category=self.categories.get(candidate.prompt),
        )

    def _measured(self, candidates: Sequence[Candidate]) -> list[dict[str, float]]:
        """The further gauges of each video, and how diverse the videos of its prompt are."""
        found = []
        for _, siblings in groupby(candidates, key=lambda one: one.prompt_index):
            rows = list(siblings)
            store = self.sampler.store
            clips = [read_video(store.check("videos", one.video, ".mp4")).frames for one in rows]
            spread = {}
            if len(rows) > 1:
                latents = [store.get_tensors("latents", one.latents)["latents"] for one in rows]
                spread = {"diversity": diversity(clips), "diversity_latents": diversity(latents)}
            for clip in clips:
                own = {name: float(gauge(clip[None])[0]) for name, gauge in self.gauges.items()}
                found.append({name: round(value, 6) for name, value in (own | spread).items()})
        return found

    def real_diversity(self) -> float | None:
        """How much real clips of a prompt differ over pixels, mean over prompts: beside it stands
        the policy's ``diversity``. None: there are no real clips, or one video a prompt."""
        if self.real_clips is None or self.n < 2:
            return None
        repeated = [prompt for prompt in self.prompts for _ in range(self.n)]
        clips = self.real_clips(repeated, derive_seed(self.seed, "real clips") % 2**31)
        return sum(map(diversity, clips.split(self.n))) / len(self.prompts)

    @torch.no_grad()
    def real_error(self, policy: Policy, network: nn.Module, objective: Objective) -> float | None:
        """The policy's mean error on real videos, at fixed noise and evenly spread timesteps."""
        if self.real_clips is None:
            return None
        device = next(network.parameters()).device
        # In the range of the providers' generators.
        seed = derive_seed(self.seed, "real clips") % 2**31
        if self._real is None:
            self._real = self._encoded(policy, self.real_clips(self.prompts, seed), device)
        latents, shape = self._real.to(device), policy.latent_shape
        noise = torch.stack(
            [gaussian(derive_seed(seed, "noise", i), shape) for i in range(len(latents))]
        )
        u = (torch.arange(len(latents), dtype=torch.float64) + 0.5) / len(latents)
        texts = torch.cat([self.sampler.text(prompt) for prompt in self.prompts]).to(device)
        errors = []
        for i in range(len(latents)):
            one = slice(i, i + 1)
            noised = objective.noise(latents[one], noise[one].to(device), u[one])
            answer = policy.predict(network, noised.sample, noised.timestep, texts[one])
            errors.append(squared_error(answer, noised))
        return float(torch.cat(errors).double().mean())

    @staticmethod
    def _encoded(policy: Policy, clips: Tensor, device: torch.device) -> Tensor:
        """Latents of the clips on the CPU, encoded one by one, once a run."""
        latents = [policy.encode(clip[None].to(device)).cpu() for clip in clips]
        policy.release()
        return torch.cat(latents)


def paired(
    rows: Sequence[EvaluatedVideo | Candidate], base: Sequence[EvaluatedVideo]
) -> list[EvaluatedVideo]:
    """The base model's row of each of ``rows``: of the same prompt, number and seed.

    Raises:
        InputError: there is none, or there are more.
    """
    known = {draw_of(row): row for row in base}
    lone = {*map(draw_of, rows)} ^ known.keys()
    if lone or len(rows) != len(known) or len(known) != len(base):
        index, prompt, number, _ = min(lone) if lone else draw_of(rows[0])
        raise InputError(
            "the base model was evaluated on other prompts or seeds than this round, as on video "
            f"{number} of prompt {index} ({prompt[:60]!r}), so that no win rate can be computed: "
            "restore round_0/evaluation.jsonl and the prompts, or give another name=NAME"
        )
    return [known[draw_of(row)] for row in rows]


def draw_of(row: EvaluatedVideo | Candidate) -> tuple[int, str, int, int]:
    """What two policies' videos share that are compared: prompt, number and seed."""
    return row.prompt_index, row.prompt, row.candidate, row.seed


@dataclass(frozen=True)
class Compared:
    """Two policies' videos of the same prompts and seeds, by one critic's scores.

    Args:
        win_rate: share of pairs that the first policy wins; a tie counts half. gain: its mean score
            minus the other's, in the critic's units. ties: share of equal scores among the pairs.
        pairs: with both scores. prompts: of these. missing: pairs without one of the scores.
    """

    win_rate: WinRate
    gain: Interval
    ties: float
    pairs: int
    prompts: int
    missing: int


def compared(
    rows: Sequence[EvaluatedVideo],
    other: Sequence[EvaluatedVideo],
    level: float = 0.95,
    column: Literal["eval_score", "score"] = "eval_score",
) -> Compared:
    """A policy against another one, video by video.

    Args:
        level: of the intervals, which are over prompts. column: whose scores, the held-out judge's
            or the training critic's.

    Raises:
        InputError: the rows are of different prompts or seeds.
    """
    columns = _column(rows, column), _column(paired(rows, other), column)
    clusters = torch.tensor([row.prompt_index for row in rows])
    difference, groups = differences(*columns, clusters)
    return Compared(
        win_rate=win_rate(*columns, clusters, level=level),
        gain=mean_interval(difference, groups, level),
        ties=float((difference == 0).double().mean()),
        pairs=len(difference),
        prompts=len(groups.unique()),
        missing=len(rows) - len(difference),
    )


def summary(rows: Sequence[EvaluatedVideo], base: Sequence[EvaluatedVideo]) -> dict[str, Any]:
    """The metrics of a round's line: scores, win rate and gain over the base, gauges.

    Raises:
        InputError: the base's rows are of other prompts or seeds.
    """
    clusters = torch.tensor([row.prompt_index for row in rows])
    score, score_se = clustered_mean(_column(rows, "score"), clusters)
    eval_scores = _column(rows, "eval_score")
    eval_score, eval_score_se = clustered_mean(eval_scores, clusters)
    against = compared(rows, base)
    wins, gain = against.win_rate, against.gain
    return {
        "score": plain(score),
        "score_se": plain(score_se),
        "eval_score": plain(eval_score),
        "eval_score_se": plain(eval_score_se),
        "win_rate": plain(wins.rate),
        "win_rate_ci": [plain(wins.low), plain(wins.high)],
        "gain": {"mean": plain(gain.value), "low": plain(gain.low), "high": plain(gain.high)},
        "ties": plain(against.ties),
        "missing_verdicts": int(eval_scores.isnan().sum()),
        "agreement": agreement(rows),
        "dims": mean_values([row.dims for row in rows]),
        "eval_dims": mean_values([row.eval_dims for row in rows]),
        "gauges": mean_values([row.gauges for row in rows]),
    }


def chosen(rows: Sequence[EvaluatedVideo], base: Sequence[EvaluatedVideo]) -> dict[str, Any]:
    """The judge's figures on the videos that rounds are chosen by: ``choice`` of a round's line."""
    found = summary(rows, base)
    judged = ("eval_score", "eval_score_se", "win_rate", "win_rate_ci", "gain")
    prompts = len({row.prompt_index for row in rows})
    return {"prompts": prompts, "videos": len(rows)} | {name: found[name] for name in judged}


def agreement(rows: Sequence[EvaluatedVideo]) -> dict[str, Any]:
    """How often the training critic and the judge order two videos of a prompt alike.

    Returns:
        ``pairs`` of a prompt's videos that both scored, the ``share`` with the same order, where a
        tie of one of them counts half, and its interval ``ci`` over prompts.
    """
    alike, clusters = [], []
    for index, videos in groupby(rows, key=lambda row: row.prompt_index):
        scored = [(v.score, v.eval_score) for v in videos]
        known = [(a, b) for a, b in scored if a is not None and b is not None]
        for one, other in combinations(known, 2):
            same = (one[0] - other[0]) * (one[1] - other[1])
            alike.append(0.5 + 0.5 * ((same > 0) - (same < 0)))
            clusters.append(index)
    if not alike:
        return {"pairs": 0, "share": None, "ci": [None, None]}
    found = share_interval(torch.tensor(alike, dtype=torch.float64), torch.tensor(clusters))
    ends = [plain(found.low), plain(found.high)]
    return {"pairs": len(alike), "share": plain(found.value), "ci": ends}


def mean_values(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean by name over the rows that have it."""
    names = sorted({name for row in rows for name in row})
    columns = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: round(sum(column) / len(column), 6) for name, column in columns.items()}


def _column(rows: Sequence[EvaluatedVideo], name: str) -> Tensor:
    values = [getattr(row, name) for row in rows]
    return torch.tensor([math.nan if v is None else v for v in values], dtype=torch.float64)


def plain(value: float) -> float | None:
    """A number for JSON; None for NaN."""
    return None if math.isnan(value) else round(value, 6)
