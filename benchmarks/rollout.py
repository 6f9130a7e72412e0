"""How fast candidates are made, beside diffusers' own pipeline, and what branching saves and costs.

python benchmarks/rollout.py                         the embedded world on this machine's cores
python benchmarks/rollout.py --clock cpu             the same in the process's own seconds
python benchmarks/rollout.py --device cuda --shape 2b --steps 4 --prompts 2 --bf16
                                                     CogVideoX-2B's shape, random weights

All ways make the same videos from the same seeds, in turns within one process; ratios are medians
over the turns. Ours does more: it also measures gauges, writes mp4 files and fills a store.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads: see app/entry.py

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel
from torch import Tensor
from transformers import T5Config, T5EncoderModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import hardware, interleaved, ratio, table  # noqa: E402
from benchmarks.step import COMMON, SHAPES  # noqa: E402
from ipo_lightning.backbones.cogvideox import CogVideoX  # noqa: E402
from ipo_lightning.parallel.runtime import Runtime  # noqa: E402
from ipo_lightning.parallel.workers import Workers  # noqa: E402
from ipo_lightning.policy import Sampling  # noqa: E402
from ipo_lightning.sampling import PromptSeeds, Sampler  # noqa: E402
from ipo_lightning.seeds import derive_seed, gaussian, generator  # noqa: E402
from ipo_lightning.shapes.critic import ShapesCritic  # noqa: E402
from ipo_lightning.shapes.prompts import prompts  # noqa: E402
from ipo_lightning.storage.store import Store  # noqa: E402
from ipo_lightning.video import Clip, read_video  # noqa: E402
from tests.helpers import tiny

SHIPPED = Path(__file__).resolve().parent.parent / "ipo_lightning/shapes/pipeline"
SHARES = (0.0, 0.1, 0.2, 0.3, 0.5)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PARTS = ("throughput", "branched", "equal_cost")
BY_PROMPT, BY_VIDEO = "stock, a prompt a call", "stock, a video a call"
"""What ours is compared with: the pipeline with all videos of a prompt in a call, or with one."""


def main() -> None:
    """The command line."""
    options = parse()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))
        print(bench.title())
        result: dict[str, Any] = {"title": bench.title()}
        for name in options.parts:
            result[name] = getattr(bench, name)()
            print(f"\n{table(result[name])}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """What was asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=["shapes", *SHAPES], default="shapes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--n", type=int, default=6, help="candidates a prompt")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="of the throughput; cpu: the process's own seconds, which neighbours hardly change",
    )
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    return parser.parse_args()


class Bench:
    """Ways of making the same videos."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options, self.scratch = options, scratch
        self.device = torch.device(options.device)
        shipped = options.shape == "shapes"
        folder = SHIPPED if shipped else random_pipeline(scratch / "pipeline", options.shape)
        self.policy = CogVideoX(str(folder), decode_batch=options.n)  # as the stock pipeline does
        self.network = self.policy.build().to(self.device).eval()
        self.pipe = CogVideoXPipeline.from_pretrained(folder, torch_dtype=torch.float32).to(
            self.device
        )
        self.pipe.set_progress_bar_config(disable=True)
        words = prompts("train") if shipped else [" ".join(tiny.WORDS)] * options.prompts
        self.units = [
            PromptSeeds(i, prompt, _seeds(i, options.n))
            for i, prompt in enumerate(words[: options.prompts])
        ]
        self.cores = os.cpu_count() or 1
        self.made: dict[str, Callable[[], Tensor]] = {}
        """The last pixels of each way, uint8 (V, T, H, W, C)."""

    def title(self) -> str:
        """What is measured where."""
        size = sum(p.numel() for p in self.network.parameters()) / 1e6
        kind = "bf16 autocast" if self.options.bf16 else "float32"
        return (
            f"{hardware(self.device)}, {self.cores} cores; {self.options.shape}: {size:.1f} M "
            f"parameters, latents {' x '.join(map(str, self.policy.latent_shape))}, "
            f"{len(self.units)} prompts x {self.options.n} videos, {self.options.steps} steps, "
            f"{kind}, torch {torch.__version__}"
        )

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The precision that was asked for."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16):
            yield

    # ---------------------------------------------------------------- videos a second

    def throughput(self) -> list[dict[str, Any]]:
        """The stock pipeline, by prompt and by video, and ours, alone and side by side.

        By prompt is the fair measure: the same arithmetic in batches of the same size.
        """
        side_by_side = self.cores if self.device.type == "cpu" else 1
        ways: dict[str, Callable[[], None]] = {
            BY_PROMPT: lambda: self._stock(BY_PROMPT, self.options.n),
            BY_VIDEO: lambda: self._stock(BY_VIDEO, 1),
            "ours, one unit at a time": lambda: self._ours("ours, one unit at a time", 1),
        }
        if side_by_side > 1:
            name = f"ours, {side_by_side} units side by side"
            ways[name] = lambda: self._ours(name, side_by_side)
        clock = CLOCKS[self.options.clock]
        times = interleaved(ways, self.device, self.options.repeats, clock)
        videos = len(self.units) * self.options.n
        return [
            {
                "way": name,
                "videos/s": round(videos / statistics.median(spent), 2),
                "x a prompt a call": round(ratio(times[BY_PROMPT], spent), 2),
                "x a video a call": round(ratio(times[BY_VIDEO], spent), 2),
                "largest difference": self._difference(name),
            }
            for name, spent in times.items()
        ]

    def _difference(self, name: str) -> int:
        """Of any pixel from the stock pipeline's, in grey levels."""
        stock = self.made[BY_PROMPT]().int()
        return int((self.made[name]().int() - stock).abs().max())

    def _stock(self, name: str, size: int) -> None:
        """Each call encodes its text anew and takes all cores, as the pipeline comes."""
        torch.set_num_threads(self.cores)
        videos = []
        for unit in self.units:
            for start in range(0, len(unit.seeds), size):
                videos.append(self._call(unit.prompt, unit.seeds[start : start + size]))
        self.made[name] = lambda: torch.cat(videos)

    def _call(self, prompt: str, seeds: Sequence[int]) -> Tensor:
        noise = torch.stack([gaussian(seed, self.policy.latent_shape) for seed in seeds])
        with self.autocast():
            video = self.pipe(
                prompt=[prompt] * len(seeds),
                num_inference_steps=self.options.steps,
                guidance_scale=1.0,
                max_sequence_length=self.policy.config["max_text_seq_length"],
                latents=noise.to(self.device),
                generator=[generator(derive_seed(seed, "sampler")) for seed in seeds],
                output_type="pt",
            ).frames
        return (video.float() * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).cpu()

    def _ours(self, name: str, threads: int) -> None:
        """An empty store: embeddings, gauges, mp4 files and records are all part of it."""
        torch.set_num_threads(1 if threads > 1 else self.cores)
        store = Store(tempfile.mkdtemp(dir=self.scratch))
        sampler = Sampler(self.policy, store, Sampling(self.options.steps), lossless=True)
        runtime = Runtime(
            self.device, autocast=self.autocast, workers=Workers(threads=threads, bars=False)
        )
        found = sampler.generate("policy", self.units, self.network, runtime, name)
        paths = [store.path("videos", one.video, ".mp4") for one in found]
        self.made[name] = lambda: torch.stack([read_video(path).frames for path in paths])

    # ---------------------------------------------------------------- branches

    def branched(self) -> list[dict[str, Any]]:
        """Cost and variety of candidates that share their first steps.

        Denoising alone is timed; on the CPU in the process's own seconds on one thread, which
        neighbours on the machine hardly change.
        """
        torch.set_num_threads(1)
        latents: dict[float, list[Tensor]] = {}
        texts = self._texts()

        def way(shared: float) -> Callable[[], None]:
            def generate() -> None:
                latents[shared] = self._drawn(self.units, texts, shared)

            return generate

        ways = {str(shared): way(shared) for shared in SHARES}
        rows = {name: self._rows(work) for name, work in ways.items()}
        clock = time.process_time if self.device.type == "cpu" else time.perf_counter
        times = interleaved(ways, self.device, self.options.repeats, clock)
        figures = []
        for shared in SHARES:
            name = str(shared)
            evaluations = rows[name] / rows["0.0"]
            spent = ratio(times[name], times["0.0"])
            figures.append({
                "shared": shared,
                "evaluations a prompt": rows[name] / len(self.units),
                "x evaluations": round(evaluations, 3),
                "seconds": round(statistics.median(times[name]), 2),
                "x seconds": round(spent, 3),
                "seconds over evaluations": round(spent / evaluations, 3),
                **self._variety(latents[shared]),
            })  # fmt: skip
        return figures

    def equal_cost(self) -> list[dict[str, Any]]:
        """What as many evaluations as independent candidates take buy where steps are shared."""
        torch.set_num_threads(1)
        budget, texts, figures = self.options.steps * self.options.n, self._texts(), []
        for shared in SHARES:
            sampling = Sampling(self.options.steps, shared=shared)
            n = (budget - sampling.shared_steps) // (sampling.steps - sampling.shared_steps)
            units = [unit._replace(seeds=_seeds(unit.prompt_index, n)) for unit in self.units]
            figures.append({
                "shared": shared,
                "candidates": n,
                "evaluations a prompt": sampling.evaluations(n),
                **self._variety(self._drawn(units, texts, shared)),
            })  # fmt: skip
        return figures

    def _texts(self) -> list[Tensor]:
        return [self.policy.embed([unit.prompt], self.device) for unit in self.units]

    def _drawn(
        self, units: Sequence[PromptSeeds], texts: Sequence[Tensor], shared: float
    ) -> list[Tensor]:
        sampling = Sampling(self.options.steps, shared=shared)
        with self.autocast():
            return [
                self.policy.sample(self.network, unit.seeds, text, None, sampling)
                for unit, text in zip(units, texts, strict=True)
            ]

    def _rows(self, work: Callable[[], None]) -> int:
        """Videos put to the network, counted at its door."""
        rows = 0

        def count(_: Any, args: Any, kwargs: dict[str, Tensor]) -> None:
            nonlocal rows
            rows += len(kwargs["hidden_states"])

        handle = self.network.register_forward_pre_hook(count, with_kwargs=True)
        work()
        handle.remove()
        return rows

    def _variety(self, latents: Sequence[Tensor]) -> dict[str, float]:
        """How far a prompt's candidates lie apart, in grey levels and in the critic's score."""
        groups = [self.policy.decode(some) for some in latents]
        apart = [
            float((one.frames.float() - other.frames.float()).square().mean().sqrt())
            for clips in groups
            for one, other in combinations(clips, 2)
        ]
        found = {"pixels apart": round(statistics.mean(apart), 2)}
        if self.options.shape != "shapes":
            return found
        scores = [self._scores(unit, clips) for unit, clips in zip(self.units, groups, strict=True)]
        found["mean score"] = round(statistics.mean(map(statistics.mean, scores)), 3)
        found["best score"] = round(statistics.mean(map(max, scores)), 3)
        found["best - worst"] = round(statistics.mean(max(s) - min(s) for s in scores), 3)
        return found

    def _scores(self, unit: PromptSeeds, clips: Sequence[Clip]) -> list[float]:
        ratings = ShapesCritic().rate(clips, [unit.prompt] * len(clips))
        return [rating.score for rating in ratings if rating.score is not None]


def _seeds(prompt_index: int, n: int) -> tuple[int, ...]:
    return tuple(derive_seed("benchmark", prompt_index, k) for k in range(n))


def random_pipeline(folder: Path, shape: str) -> Path:
    """A pipeline whose transformer has a real model's shape and random weights.

    Its VAE and text encoder are tiny: denoising is what is measured.
    """
    pipe = tiny.pipeline()
    pipe.transformer = CogVideoXTransformer3DModel(**COMMON, **SHAPES[shape])
    channels = {"latent_channels": COMMON["in_channels"]}
    pipe.vae = AutoencoderKLCogVideoX.from_config({**pipe.vae.config, **channels})
    width = {"d_model": SHAPES[shape]["text_embed_dim"]}
    pipe.text_encoder = T5EncoderModel(
        T5Config.from_dict({**pipe.text_encoder.config.to_dict(), **width})
    )
    pipe.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
