"""What one GPU proves: each part of a run at real shapes, with random weights, without a network.

python benchmarks/gpu.py --out gpu.jsonl --seconds 540             on a bare GPU machine
python benchmarks/gpu.py --tiny --device cpu --seconds 120         the same parts, small: on a CPU
python benchmarks/gpu.py --parts run step-2b-lora                  some of the parts

Parts go from most to least worth, and each stands alone: a failure is written down as a JSON line
and the next part goes on. A part is begun only while there is time. Memory stands beside what the
plan says of the same job; MFU is the share of the matrix rate that is measured first.

What a machine without a package index lacks is brought along: see benchmarks/README.md.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from benchmarks.estimate import job, large, planned, small  # noqa: E402
from benchmarks.measure import hardware, matrix_rate, synchronize  # noqa: E402
from ipo_lightning.backbones.cogvideox import CogVideoX, Lora  # noqa: E402
from ipo_lightning.backbones.wan import Wan  # noqa: E402
from ipo_lightning.draws.batch import PairBatch  # noqa: E402
from ipo_lightning.module import PreferenceModule  # noqa: E402
from ipo_lightning.objectives import squared_error  # noqa: E402
from ipo_lightning.planning.estimate import GIB  # noqa: E402
from ipo_lightning.planning.job import Job  # noqa: E402
from ipo_lightning.planning.traces import Traces  # noqa: E402
from ipo_lightning.policy import Sampling  # noqa: E402
from ipo_lightning.references import CachedReference, FrozenReference, Reference  # noqa: E402

LORA = Lora(64, 64)
TINY_SIZE = {"num_frames": 9, "height": 128, "width": 160}
ROUND = ("round=1", "rollout.prompts=4", "rollout.n=3", "rollout.steps=4", "data.optimizer_steps=4",
         "data.batch_size=4", "evaluation.prompts=3", "evaluation.n=2", "evaluation.choice_n=1",
         "labelling.pair_rule.margin=0", "labelling.filters.motion_ratio=0",
         "callbacks.videos=null", "debug=true")  # fmt: skip
"""A round of train.py on the shipped model: hooks, loader, checkpoints, critics."""
TINY_ROUND = ("rollout.steps=2", "data.optimizer_steps=2", "evaluation.prompts=2", "evaluation.n=1")
"""What is less in it where all parts are to be through in two minutes of a CPU."""


VLM: dict[str, Any] = {
    "text_config": {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    },
    "vision_config": {"hidden_size": 1536, "depth": 32},
}  # fmt: skip
"""Qwen2-VL-2B's, the base of VideoReward."""
TINY_VLM: dict[str, Any] = {
    "text_config": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    },
    "vision_config": {"embed_dim": 64, "depth": 2, "num_heads": 4, "hidden_size": 64},
}  # fmt: skip


class Bench:
    """The parts, on one device.

    Args:
        tiny: small networks of the same families.
    """

    def __init__(self, device: torch.device, *, tiny: bool, scratch: Path) -> None:
        self.device, self.tiny, self.scratch = device, tiny, scratch
        self.gpu = device.type == "cuda"
        self.rate = matrix_rate(device, torch.bfloat16 if self.gpu else torch.float32,
                                0 if self.gpu else 512)  # fmt: skip

    # ---------------------------------------------------------------- train.py itself

    def run(self, name: str, *words: str, times: int = 1) -> dict[str, Any]:
        """A whole run in a process of its own; a second time it must find itself finished."""
        own = [f"paths.outputs={self.scratch}", f"name={name}", "trainer.precision=bf16-mixed",
               f"trainer.accelerator={'cuda' if self.gpu else 'cpu'}"]  # fmt: skip
        size = (*ROUND, *TINY_ROUND) if self.tiny else ROUND
        command = [sys.executable, "train.py", *size, *own, *words]
        started = time.monotonic()
        ends = [subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
                for _ in range(times)]  # fmt: skip
        if failed := [end for end in ends if end.returncode]:
            raise RuntimeError(failed[0].stderr[-600:])
        return {"seconds": round(time.monotonic() - started, 1)}

    # ---------------------------------------------------------------- a training step

    def step(
        self,
        shape: str,
        *,
        lora: bool = False,
        two_pass: bool = False,
        reference: Reference | None = None,
        profile: bool = False,
        **settings: Any,
    ) -> dict[str, Any]:
        """A training step on one pair: peak against the plan, seconds, MFU, the margin at step 0,
        which must be exactly 0."""
        policy = self._policy(shape, lora=LORA if lora else None, checkpointing=True, **settings)
        one = job(policy, reference or CachedReference(), two_pass, self.gpu, self.gpu)
        module = self._module(one)
        batch = self._batch(one, module)
        optimizer = module.configure_optimizers()
        margins: list[float] = []

        def work() -> None:
            optimizer.zero_grad(set_to_none=True)
            with self._autocast():
                loss, values = module.pair_step(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            margins.append(float(values["margin"]))

        work()
        grown = [p.grad for p in module.network.parameters() if p.grad is not None]
        norm = float(nn.utils.get_total_norm(grown))
        seconds, peak = self._timed(work), self._peak()
        optimizer.step()
        found = {
            "margin at step 0": margins[0],
            "gradient norm": norm,
            "seconds": seconds,
            "tflop": round(Traces(one).step.flops / 1e12, 2),
            "mfu": round(Traces(one).step.flops / seconds / self.rate, 3),
            "peak GiB": peak,
            "peak with update GiB": self._peak(),
            "plan GiB": self._planned(one, "training"),
        }
        if margins[0] != 0.0:
            raise RuntimeError(f"the policy has not moved, and its margin is {margins[0]}: {found}")
        return found | ({"kernels": self._kernels(work)} if profile and self.gpu else {})

    def _module(self, one: Job) -> PreferenceModule:
        """The training module, with random weights that are made on the CPU."""
        module = one.make(one.policy.outline(1 if self.tiny else None))
        module.configure_model()
        module.to(self.device)
        with torch.no_grad():
            for weight in module.network.parameters():
                if weight.is_floating_point() and weight.ndim > 1:
                    weight.normal_(0.0, 0.02)
        module.reference.attach(module.policy, module.network)
        start = {name: weight.detach().clone() for name, weight in module.trained().items()}
        module.reference.refresh(start)
        return module

    def _batch(self, one: Job, module: PreferenceModule) -> PairBatch:
        """A pair of random videos, with the errors of a reference that is cached."""
        batch: PairBatch = Traces(one).batch(module.policy, module)
        batch = batch._replace(**{
            name: (torch.rand_like(value) if value.is_floating_point() else value).to(self.device)
            for name, value in batch._asdict().items()
            if isinstance(value, Tensor)
        })  # fmt: skip
        if module.reference.answers != "precomputed":
            return batch
        videos = batch.videos()
        with torch.no_grad(), self._autocast():
            noised = module.objective.noise(videos.latents, videos.noise, videos.u)
            answer = module.policy.predict(
                module.network, noised.sample, noised.timestep, videos.text
            )
            errors = squared_error(answer, noised)
        return batch._replace(ref_win=errors[:1], ref_lose=errors[1:])

    # ---------------------------------------------------------------- making videos

    def rollout(self, shape: str, videos: int = 8, steps: int = 3) -> dict[str, Any]:
        """Denoising with guidance in batches as large as fit; finite, and its peak as planned."""
        policy = self._policy(shape)
        one = job(policy, CachedReference(), False, self.gpu, self.gpu)
        outline = policy.outline(1 if self.tiny else None)
        network = outline.build().to(self.device).eval()
        text = torch.rand(1, *Traces(one).text_shape)
        sampling = Sampling(steps=steps, guidance_scale=6.0, batch_size="auto")

        def work(count: int) -> Tensor:
            with torch.no_grad(), self._autocast():
                return outline.sample(network, list(range(count)), text, text, sampling)

        alone = self._timed(lambda: work(1), 1)
        latents: list[Tensor] = []
        together = self._timed(lambda: latents.append(work(videos)), 1, warm=False)
        if not torch.isfinite(latents[0]).all():
            raise RuntimeError("the videos are not finite")
        return {
            "seconds a step, one video": round(alone / steps, 3),
            "seconds a step and video, together": round(together / steps / videos, 3),
            "peak GiB": self._peak(),
            "plan GiB, one video": self._planned(one, "rollout"),
        }

    def decode(self, shape: str, *, tiling: bool = False) -> dict[str, Any]:
        """The VAE's decoding of a video, and its encoding."""
        policy = self._policy(shape, tiling=tiling)
        one = job(policy, CachedReference(), False, self.gpu, self.gpu)
        outline = policy.outline(1)
        latents = torch.randn(1, *outline.latent_shape, device=self.device)
        clips: list[Any] = []
        seconds = self._timed(lambda: clips.append(outline.decode(latents)[0]), 1)
        peak = self._peak()
        frames = clips[0].frames[None].to(self.device)
        encoding = self._timed(lambda: outline.encode(frames), 1, warm=False)
        return {
            "seconds": seconds,
            "seconds of encoding": encoding,
            "peak GiB": peak,
            "plan GiB": round(Traces(one).decoding.held / GIB, 2),
        }

    def text(self, shape: str) -> dict[str, Any]:
        """A prompt's embedding by the text encoder, in bfloat16."""
        policy = self._policy(shape, text_dtype="bfloat16").outline(1)
        seconds = self._timed(lambda: policy.embed(["a cat"], self.device), 1)
        return {"seconds": seconds, "peak GiB": self._peak()}

    def critic(self) -> dict[str, Any]:
        """A forward of a 2B vision-language model with random weights on 16 frames."""
        from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

        config = Qwen2VLConfig(**(TINY_VLM if self.tiny else VLM))
        dtype = torch.bfloat16 if self.gpu else torch.float32
        model = Qwen2VLForConditionalGeneration(config).to(self.device, dtype).eval()
        grid = torch.tensor([[8, 4, 6] if self.tiny else [8, 32, 48]], device=self.device)
        patches = int(grid.prod())
        pixels = torch.rand(patches, 3 * 2 * 14 * 14, device=self.device, dtype=dtype)
        ids = torch.full((1, patches // 4 + 32), 11, device=self.device)
        ids[:, 8 : 8 + patches // 4] = config.video_token_id
        video = {"pixel_values_videos": pixels, "video_grid_thw": grid}
        if "mm_token_type_ids" in signature(model.forward).parameters:
            video["mm_token_type_ids"] = 2 * (ids == config.video_token_id).long()

        def work() -> None:
            with torch.no_grad():
                model(input_ids=ids, **video)

        return {"tokens": ids.shape[1], "seconds": self._timed(work, 1), "peak GiB": self._peak()}

    # ---------------------------------------------------------------- helpers

    def _policy(self, shape: str, **settings: Any) -> CogVideoX | Wan:
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        if self.tiny:
            family = "wan" if shape == "wan" else "cogvideox"
            return small(family, folder, 1, **TINY_SIZE, **settings)
        return large(shape, folder, **settings)

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        """As Lightning's plugin has it: without a cache of casts."""
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.gpu, cache_enabled=False
        ):
            yield

    def _timed(self, work: Callable[[], object], repeats: int = 2, *, warm: bool = True) -> float:
        """Mean seconds of some work; small networks are not warmed up."""
        if warm and not self.tiny:
            work()
        synchronize(self.device)
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        synchronize(self.device)
        return round((time.perf_counter() - started) / repeats, 4)

    def _peak(self) -> float | None:
        """The most memory that tensors held since the part began."""
        return round(torch.cuda.max_memory_allocated(self.device) / GIB, 2) if self.gpu else None

    def _planned(self, one: Job, stage: str) -> float:
        """What the plan says of a stage."""
        return round(planned(one, stage) / GIB, 2)

    def _kernels(self, work: Callable[[], None]) -> list[list[Any]]:
        """The kernels that take most time: name, seconds, calls."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            work()
            synchronize(self.device)
        rows = sorted(seen.key_averages(), key=lambda row: -row.self_device_time_total)
        return [[row.key[:70], round(row.self_device_time_total / 1e6, 3), row.count]
                for row in rows[:12]]  # fmt: skip


def parts(bench: Bench) -> dict[str, Callable[[], dict[str, Any]]]:
    """Name -> part, most worth first."""
    return {
        "run": partial(bench.run, "plain", times=2),
        "step-2b-lora": partial(bench.step, "2b", lora=True, profile=True),
        "step-2b-full": partial(bench.step, "2b", profile=True),
        "decode-2b": partial(bench.decode, "2b"),
        "rollout-2b": partial(bench.rollout, "2b"),
        "step-wan-full": partial(bench.step, "wan", profile=True),
        "step-5b-lora-int8-two-pass": partial(
            bench.step, "5b", lora=True, two_pass=True, quantize="int8"
        ),
        "rollout-wan": partial(bench.rollout, "wan", videos=2),
        "decode-wan": partial(bench.decode, "wan"),
        "decode-2b-tiled": partial(bench.decode, "2b", tiling=True),
        "run-offload": partial(bench.run, "offload", "reference=frozen", "reference.offload=true"),
        "run-kto-adapter-int8": partial(
            bench.run, "adapter", "experiment=shapes_lora", "reference=adapter", "loss=kto",
            "backbone.quantize=int8",
        ),
        "run-averages": partial(
            bench.run, "ema", "reference=ema", "optim.ema=0.9", "step=two_pass", "loss.beta=auto"
        ),
        "run-fsdp": partial(bench.run, "fsdp", "trainer=fsdp", "trainer.devices=1"),
        "text-2b": partial(bench.text, "2b"),
        "critic-2b": bench.critic,
        "step-2b-lora-flash": partial(bench.step, "2b", lora=True, attention="flash"),
        "step-2b-lora-cudnn": partial(bench.step, "2b", lora=True, attention="cudnn"),
        "step-2b-lora-compiled": partial(bench.step, "2b", lora=True, compile=True),
        "step-2b-frozen": partial(bench.step, "2b", reference=FrozenReference()),
        "step-2b-bfloat16": partial(bench.step, "2b", weights="bfloat16"),
    }  # fmt: skip


ON_GPU = ("run-fsdp", "step-2b-lora-flash", "step-2b-lora-cudnn")
"""Parts that a CPU cannot do; they are told as such."""


def main() -> None:
    """The command line; status 1 where a part failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON lines go there too")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small networks of the same families")
    parser.add_argument("--seconds", type=float, default=540.0, help="no part is begun later")
    parser.add_argument("--parts", nargs="+", help="some of them; none: all")
    options = parser.parse_args()
    started, failed = time.monotonic(), False

    def tell(**line: Any) -> None:
        text = json.dumps({"at": round(time.monotonic() - started, 1), **line})
        print(text, flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(f"{text}\n")

    device = torch.device(options.device)
    torch.manual_seed(0)
    if device.type == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(device, tiny=options.tiny, scratch=Path(scratch))
        tell(part="machine", hardware=hardware(device), torch=torch.__version__,
             tflops=round(bench.rate / 1e12, 2))  # fmt: skip
        known = parts(bench)
        if unknown := set(options.parts or ()) - known.keys():
            parser.error(
                f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(known)}"
            )
        for name in options.parts or known:
            if time.monotonic() - started > options.seconds:
                tell(part=name, left_out="no time")
            elif name in ON_GPU and device.type == "cpu":
                tell(part=name, left_out="needs a GPU")
            else:
                failed |= not attempted(name, known[name], device, tell)
    sys.exit(int(failed))


def attempted(
    name: str, part: Callable[[], dict[str, Any]], device: torch.device, tell: Callable[..., None]
) -> bool:
    """Do a part and tell what it came to; whether it went well."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        tell(part=name, **part())
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[-4:]
        at = [f"{Path(one.filename).name}:{one.lineno}" for one in frames]
        tell(part=name, error=f"{type(error).__name__}: {error}"[:700], at=at)
        return False
    return True


if __name__ == "__main__":
    main()
