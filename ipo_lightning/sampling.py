"""Prompts and seeds to candidates: the rollout stage.

The unit of work is a prompt with its N candidates. It is sampled as one batch wherever it is
sampled, so its videos are the same bits on any number of ranks; its noise is each video's own.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ipo_lightning.metrics.gauges import measure
from ipo_lightning.parallel.computing import Calls
from ipo_lightning.parallel.runtime import Runtime
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.policy import Policy, PolicyUse, Sampling
from ipo_lightning.settings import checked
from ipo_lightning.storage.records import Candidate
from ipo_lightning.storage.store import LostBlob, Store, fingerprint
from ipo_lightning.video import Clip, encode_video

RECIPE = 1
"""Part of every rollout's fingerprint: raise it when the same inputs give other videos."""


STOPPED = "stopped"
"""Name of the tensor in a draft's blob that its video in full goes on from."""


class PromptSeeds(NamedTuple):
    """A prompt and the seeds of its videos: one unit of work."""

    prompt_index: int
    prompt: str
    seeds: tuple[int, ...]
    numbers: tuple[int, ...] = ()
    """The videos' numbers among the prompt's candidates; empty: 0, 1, 2 ..."""
    starts: tuple[str, ...] = ()
    """Names of the blobs of the drafts that they go on from; empty: they begin with noise."""

    def only(self, numbers: tuple[int, ...], starts: Sequence[str] = ()) -> "PromptSeeds":
        """Some of the videos, which keep their numbers and seeds."""
        seeds = tuple(self.seeds[k] for k in numbers)
        return self._replace(seeds=seeds, numbers=numbers, starts=tuple(starts))


class Rendered(NamedTuple):
    """A prompt's videos, as the device leaves them."""

    latents: dict[str, Tensor]
    """The tensors to keep of each video, (N, ...) on the CPU: its ``latents``, float32, and of one
    that was stopped also where, see `Foreseen`."""
    clips: list[Clip] | None
    """None: another rank of the group decodes; empty: nobody does."""
    files: Sequence[bytes] = ()
    """Their mp4 files, where they came as such; empty: they are encoded."""


class Encoded(NamedTuple):
    """A prompt's videos, as they are kept."""

    latents: dict[str, Tensor]
    """The tensors to keep of each video, (N, ...) on the CPU: its ``latents``, float32, and of one
    that was stopped also where, see `Foreseen`."""
    gauges: list[dict[str, float]]
    files: Sequence[bytes]
    """mp4."""


class Made(NamedTuple):
    """A prompt whose videos are made, and yet to be encoded and kept."""

    key: str
    item: PromptSeeds
    rendered: Any
    """What `Calls.finish` takes."""


@checked
class Sampler:
    """Draws candidates from a policy into a store, and finds those that are already there.

    Args:
        policy: the model family.
        store: where latents, videos and embeddings go.
        sampling: steps, guidance and the rest of what a video depends on.
        lossless: write mp4 files that hold the exact pixels, which critics of tiny videos need;
            otherwise mp4 files for people (H.264, crf 18), a tenth of the size.
    """

    def __init__(
        self, policy: Policy, store: Store, sampling: Sampling, lossless: bool = False
    ) -> None:
        policy.check_sampling(sampling)
        self.policy, self.store = policy, store
        self.sampling, self.lossless = sampling, lossless
        self.decodes = True

    def independent(self) -> "Sampler":
        """This sampler as a policy is measured with, see `Sampling.independent`."""
        return self._with(self.sampling.independent())

    def at_guidance(self, scale: float | None) -> "Sampler":
        """This sampler at another guidance scale; None: at its own."""
        return self if scale is None else self._with(self.sampling.at_guidance(scale))

    def drafter(self, **cheaper: Any) -> "Sampler":
        """This sampler as it makes drafts, see `Sampling.draft`."""
        sampling = self.sampling.draft(**cheaper)
        self.policy.check_sampling(sampling)
        return self._with(sampling)

    def undecoded(self) -> "Sampler":
        """This sampler without videos and gauges: for drafts that are judged by their latents."""
        other = self._with(self.sampling)
        other.decodes = False
        return other

    def after(self, drafter: "Sampler") -> "Sampler":
        """This sampler as it makes videos in full whose drafts are made, see `Sampling.after`."""
        return self._with(self.sampling.after(drafter.sampling))

    def _with(self, sampling: Sampling) -> "Sampler":
        other = copy(self)
        other.sampling = sampling
        return other

    def key(self, policy_fingerprint: str, item: PromptSeeds, precision: str) -> str:
        """Fingerprint of a prompt's videos: all that they depend on."""
        guided = [self.sampling.guidance_scale, self.sampling.negative_prompt]
        return fingerprint(
            {
                "recipe": RECIPE,
                "policy": policy_fingerprint,
                "base": self.policy.identity,
                "prompt": item.prompt,
                "seeds": list(item.seeds),
                "steps": self.sampling.steps,
                "guidance": guided if self.sampling.guided else None,
                "fps": self.policy.fps,
                "lossless": self.lossless,
                "precision": precision,
                **({"starts": list(item.starts)} if item.starts else {}),
                **({} if self.decodes else {"decoded": False}),
                **self.sampling.departures,
            }
        )

    def find(self, key: str, item: PromptSeeds) -> list[Candidate] | None:
        """The prompt's candidates, if the store has all of them; none of their files is read."""
        rows = self.store.get_record("rollouts", key)
        if rows is None:
            return None
        for row in rows:
            there = self.store.lists("latents", row["latents"], ".safetensors")
            if not there or (self.decodes and not self.store.lists("videos", row["video"], ".mp4")):
                return None
        self.store.mark_used("rollouts", key)
        return _candidates(item, rows)

    def missing(
        self, policy_fingerprint: str, items: Iterable[PromptSeeds], precision: str
    ) -> list[PromptSeeds]:
        """The prompts whose videos are yet to be made."""
        keys = ((item, self.key(policy_fingerprint, item, precision)) for item in items)
        return [item for item, key in keys if self.find(key, item) is None]

    def generate(
        self,
        policy_fingerprint: str,
        items: Sequence[PromptSeeds],
        network: nn.Module,
        runtime: Runtime,
        label: str,
        on_candidates: Callable[[Sequence[Candidate]], object] | None = None,
    ) -> list[Candidate]:
        """All candidates of the prompts; what the store lacks is sampled with ``network``.

        ``on_candidates`` gets the candidates of each prompt made, once the store has them.
        """
        runtime = self._shared(policy_fingerprint, items, runtime)
        workers, precision = runtime.workers, runtime.precision
        todo = workers.agree(lambda: self.missing(policy_fingerprint, items, precision))
        self.embed([item.prompt for item in items], runtime)
        self._begin(todo, runtime)

        def make(item: PromptSeeds) -> Made:
            key = self.key(policy_fingerprint, item, precision)
            return self._make(key, item, calls, workers)

        def keep(made: Made) -> None:
            candidates = self._keep(made, calls)
            if on_candidates is not None and candidates is not None:
                on_candidates(candidates)

        use = self._use(policy_fingerprint, network, runtime)
        with workers.computing(use, len(todo)) as calls:
            workers.run_finishing(todo, make, keep, label, "prompts", calls)
        self.policy.release()
        return workers.agree(
            lambda: [
                one
                for item in items
                for one in self._just_made(policy_fingerprint, item, precision)
            ]
        )

    def _use(self, policy_fingerprint: str, network: nn.Module, runtime: Runtime) -> PolicyUse:
        """The network, as it samples."""
        return PolicyUse(
            self.policy,
            network,
            runtime.autocast,
            precision=runtime.precision,
            fingerprint=policy_fingerprint,
        )

    def _shared(
        self, policy_fingerprint: str, items: Sequence[PromptSeeds], runtime: Runtime
    ) -> Runtime:
        return runtime  # how the prompts are shared by ranks and threads

    def _begin(self, todo: Sequence[PromptSeeds], runtime: Runtime) -> None:
        """What must be ready before the first of the prompts is sampled; on all ranks."""

    def _just_made(
        self, policy_fingerprint: str, item: PromptSeeds, precision: str
    ) -> list[Candidate]:
        """The candidates of a prompt that has just been sampled.

        Raises:
            LostBlob: the store lost them meanwhile, or a file that they are made of was damaged.
        """
        found = self.find(self.key(policy_fingerprint, item, precision), item)
        if found is None:
            raise LostBlob(
                f"{self.store.root}: the videos just made of {item.prompt!r} are gone; do all "
                "ranks see this folder, and has the disk room?"
            )
        return found

    # ---------------------------------------------------------------- text

    def embed(self, prompts: Iterable[str], runtime: Runtime) -> None:
        """Put the prompts' embeddings in the store, once each, and the negative prompt's.

        The leading rank makes them all: a text encoder takes 19 GB, and a prompt a moment.
        """
        wanted = list(dict.fromkeys(prompts))
        if wanted and self.sampling.guided:
            wanted.append(self.sampling.negative_prompt)
        todo = runtime.workers.agree(
            lambda: [prompt for prompt in wanted if self._find_text(prompt) is None]
        )

        def embed(prompt: str) -> None:
            text = self.policy.embed([prompt], runtime.device)[0]
            with self.store.together() as unit:
                blob = unit.put_tensors("text", {"text": text})
                unit.put_record("texts", self._text_key(prompt), {"blob": blob})

        runtime.workers.lead(todo, embed, "text embeddings", "prompts")
        if todo:
            self.policy.release()  # the text encoder may be larger than the network

    def text_blob(self, prompt: str) -> str:
        """Name of the blob with a prompt's embedding, (L, D)."""
        blob = self._find_text(prompt)
        if blob is None:
            raise LostBlob(f"no embedding of {prompt!r} in {self.store.root}")
        return blob

    def text(self, prompt: str) -> Tensor:
        """A prompt's embedding, (1, L, D)."""
        return self.store.get_tensors("text", self.text_blob(prompt))["text"][None]

    def _find_text(self, prompt: str) -> str | None:
        record = self.store.get_record("texts", self._text_key(prompt))
        if record is None or not self.store.lists("text", record["blob"], ".safetensors"):
            return None
        return str(record["blob"])

    def _text_key(self, prompt: str) -> str:
        return fingerprint({"base": self.policy.identity, "prompt": prompt})

    # ---------------------------------------------------------------- one prompt

    def _make(self, key: str, item: PromptSeeds, calls: Calls, workers: Workers) -> Made:
        """What the device does."""
        guided = self.sampling.guided
        prompts = [item.prompt, *([self.sampling.negative_prompt] if guided else [])]
        texts, start = workers.group.agree(
            lambda: ([self.text(one) for one in prompts], self._start(item))
        )
        negative = texts[1] if guided else None
        work = partial(
            rendered,
            seeds=item.seeds,
            sampling=self.sampling,
            keeps=workers.keeps,
            decodes=self.decodes,
        )
        return Made(key, item, calls.start(work, texts[0], negative, start))

    def _start(self, item: PromptSeeds) -> Tensor | None:
        """(N, ...) where the drafts of the videos stopped."""
        if not item.starts:
            return None
        return torch.stack([self.store.get_tensors("latents", name)[STOPPED]
                            for name in item.starts])  # fmt: skip

    def _keep(self, made: Made, calls: Calls) -> list[Candidate] | None:
        """What the CPU and the disk do, the record last. None: another rank keeps them."""
        done: Encoded | None = calls.finish(made.rendered, partial(encoded, lossless=self.lossless))
        if done is None:
            return None
        with self.store.together() as unit:
            rows = [
                {
                    "latents": unit.put_tensors(
                        "latents", {name: tensor[i] for name, tensor in done.latents.items()}
                    ),
                    "video": unit.put_blob("videos", file, ".mp4") if file else "",
                    "gauges": gauges,
                }
                for i, (file, gauges) in enumerate(zip(done.files, done.gauges, strict=True))
            ]
            unit.put_record("rollouts", made.key, rows)
        return _candidates(made.item, rows)


def rendered(
    use: PolicyUse,
    text: Tensor,
    negative: Tensor | None,
    start: Tensor | None = None,
    *,
    seeds: Sequence[int],
    sampling: Sampling,
    keeps: bool = True,
    decodes: bool = True,
) -> Rendered:
    """Sample a prompt's videos and decode them, which at the same time would only share the device.

    Args:
        text, negative, start: see `Policy.sample`.
        keeps: False: the leading rank of a group that samples together decodes and keeps them.
        decodes: False: nobody decodes them.
    """
    given = (use.network, seeds, text, negative, sampling)
    more: dict[str, Tensor] = {}
    with use.autocast():
        if sampling.prune_at is None:
            latents = use.policy.sample(*given, start)
        else:
            latents, stopped, level = use.policy.foresee(*given)
            more = {STOPPED: stopped.cpu(), "noise_level": torch.full((len(latents),), level)}
    clips = None if not keeps else use.policy.decode(latents) if decodes else []
    return Rendered({"latents": latents.cpu(), **more}, clips)


def encoded(made: Rendered, *, lossless: bool) -> Encoded | None:
    """Measure a prompt's videos and write them as files; None where another rank does."""
    if made.clips is None:
        return None
    if not made.clips:
        count = len(made.latents["latents"])
        return Encoded(made.latents, [{}] * count, [b""] * count)
    gauges = measure(torch.stack([clip.frames for clip in made.clips]))
    rows = [
        {name: round(float(values[i]), 6) for name, values in gauges.items()}
        for i in range(len(made.clips))
    ]
    files = made.files or [encode_video(clip, lossless) for clip in made.clips]
    return Encoded(made.latents, rows, files)


def _candidates(item: PromptSeeds, rows: Sequence[Mapping[str, Any]]) -> list[Candidate]:
    numbers = item.numbers or range(len(item.seeds))
    return [
        Candidate(item.prompt_index, item.prompt, number, seed, **row)
        for number, seed, row in zip(numbers, item.seeds, rows, strict=True)
    ]
