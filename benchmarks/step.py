"""What a training step costs: each way of comparing with the reference, and the loop around it.

python benchmarks/step.py                            a small transformer on one CPU thread: minutes
python benchmarks/step.py --shape 2b --device cuda --bf16    CogVideoX-2B's shape, random weights

Every variant takes the same pair of videos, one after another: each has the device to itself, and
one that does not fit by the plan is named and left out. "x SFT" is its median time against that of
plain fine-tuning on the same two videos.
"""

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.estimate import job, planned  # noqa: E402
from benchmarks.measure import (  # noqa: E402
    flops,
    free_bytes,
    hardware,
    matrix_rate,
    peak_bytes,
    ratio,
    seconds,
    table,
)
from ipo_lightning.backbones.cogvideox import CogVideoX, Lora  # noqa: E402
from ipo_lightning.draws.batch import PairBatch  # noqa: E402
from ipo_lightning.draws.dataset import Draws, collate  # noqa: E402
from ipo_lightning.losses import dpo_loss  # noqa: E402
from ipo_lightning.module import PreferenceModule  # noqa: E402
from ipo_lightning.objectives import squared_error  # noqa: E402
from ipo_lightning.planning.estimate import GIB  # noqa: E402
from ipo_lightning.references import (  # noqa: E402
    AdapterReference,
    CachedReference,
    FrozenReference,
    Reference,
)
from ipo_lightning.rounds.datamodule import DrawLoader, PreferenceDataModule  # noqa: E402
from ipo_lightning.storage.layout import RoundData, RoundDir  # noqa: E402
from ipo_lightning.storage.records import Pair  # noqa: E402
from ipo_lightning.storage.store import Store  # noqa: E402
from tests.helpers import tiny

COMMON = {"in_channels": 16, "out_channels": 16, "patch_size": 2, "attention_head_dim": 64}
SHAPES: dict[str, dict[str, Any]] = {
    # 13 x 8 x 10 = 1040 video tokens and 32 of text
    "small": {
        "num_layers": 6, "num_attention_heads": 4, "time_embed_dim": 128, "text_embed_dim": 64,
        "max_text_seq_length": 32, "sample_frames": 49, "sample_height": 16, "sample_width": 20,
    },
    # 13 x 30 x 45 = 17550 video tokens and 226 of text: 49 x 480 x 720 pixels
    "2b": {
        "num_layers": 30, "num_attention_heads": 30, "time_embed_dim": 512, "text_embed_dim": 4096,
        "max_text_seq_length": 226, "sample_frames": 49, "sample_height": 60, "sample_width": 90,
    },
    "5b": {
        "num_layers": 42, "num_attention_heads": 48, "time_embed_dim": 512, "text_embed_dim": 4096,
        "max_text_seq_length": 226, "sample_frames": 49, "sample_height": 60, "sample_width": 90,
        "use_rotary_positional_embeddings": True,
    },
}  # fmt: skip


def main() -> None:
    """The command line."""
    options = parse()
    torch.manual_seed(0)
    if options.device == "cpu":
        torch.set_num_threads(1)
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(
            Path(scratch), options.shape, device, options.bf16, options.repeats,
            options.memory_gib and options.memory_gib * GIB,
        )  # fmt: skip
        print(bench.title())
        result: dict[str, Any] = {"hardware": bench.hardware(), "shape": options.shape}
        for name in options.parts:
            result[name] = getattr(bench, name)()
            print(f"\n{table(result[name])}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """What was asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--memory-gib", type=float, help="of a step; none: what is free there")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--parts", nargs="+", default=["steps", "trainer", "loading"],
                        choices=["steps", "trainer", "loading"])  # fmt: skip
    return parser.parse_args()


class Bench:
    """The things that are measured, on one shape and device."""

    def __init__(
        self,
        scratch: Path,
        shape: str,
        device: torch.device,
        bf16: bool,
        repeats: int,
        memory: float | None = None,
    ) -> None:
        self.scratch, self.shape, self.device = scratch, shape, device
        self.bf16, self.repeats, self.memory = bf16, repeats, memory
        self.folder = scratch / "pipeline"
        pipe = tiny.pipeline()
        pipe.transformer = CogVideoXTransformer3DModel(**COMMON, **SHAPES[shape])
        words = {**pipe.text_encoder.config.to_dict(), "d_model": SHAPES[shape]["text_embed_dim"]}
        pipe.text_encoder = type(pipe.text_encoder)(type(pipe.text_encoder.config)(**words))
        channels = {"latent_channels": COMMON["in_channels"]}
        pipe.vae = AutoencoderKLCogVideoX.from_config({**pipe.vae.config, **channels})
        pipe.save_pretrained(self.folder)

    def hardware(self) -> str:
        """What it runs on."""
        name = hardware(self.device)
        return name if self.device.type == "cuda" else f"{name}, one thread"

    def title(self) -> str:
        """What is measured where."""
        policy = CogVideoX(str(self.folder))
        latents = " x ".join(map(str, policy.latent_shape))
        size = sum(p.numel() for p in policy.build().parameters()) / 1e6
        kind = "bf16-mixed" if self.bf16 else "float32"
        return (
            f"{self.hardware()}; {self.shape}: {size:.1f} M parameters, latents {latents}, one "
            f"pair a step, AdamW, {kind}, torch {torch.__version__}"
        )

    # ---------------------------------------------------------------- the step

    def steps(self) -> list[dict[str, Any]]:
        """Time, operations and memory of each variant, without and with checkpointing.

        One variant at a time is built, measured and released: together they would fill any device.
        """
        rows = []
        for checkpointing in (False, True):
            found: dict[str, Figures | str] = {}
            for name, variant in VARIANTS.items():
                lacks = self._lacks(variant, checkpointing)
                found[name] = lacks or self._measure(variant, checkpointing)
                if lacks:
                    print(
                        f"left out: {name}{', checkpointing' * checkpointing}: {lacks}", flush=True
                    )
            rows += self._rows(found, checkpointing)
        return rows

    def _lacks(self, variant: "Variant", checkpointing: bool) -> str:
        """What the plan says that a variant lacks; empty where it fits."""
        policy = CogVideoX(str(self.folder), lora=variant.lora, checkpointing=checkpointing)
        gpu = self.device.type == "cuda"
        one = job(policy, variant.reference(), variant.two_pass, self.bf16, gpu)
        need, free = planned(one, "training") / GIB, (self.memory or free_bytes(self.device)) / GIB
        return f"it takes {need:.1f} GiB by the plan, of {free:.1f}" if need > free else ""

    def _measure(self, variant: "Variant", checkpointing: bool) -> "Figures":
        module = self._module(variant.reference(), checkpointing, variant.lora, variant.two_pass)
        work = Step(module, variant.loss, self._batch(module), self._autocast)
        work.update()  # warms up
        times = [seconds(work.update, self.device) for _ in range(self.repeats)]
        count, peak = flops(work.backward), peak_bytes(work.backward, self.device)
        del module, work
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return Figures(statistics.median(times), count, peak)

    def _rows(
        self, found: dict[str, "Figures | str"], checkpointing: bool
    ) -> Iterator[dict[str, Any]]:
        rate = matrix_rate(self.device, torch.bfloat16 if self.bf16 else torch.float32)
        base = {name: one for name, one in found.items() if isinstance(one, Figures)}

        def times(value: float, other: str, field: str) -> Any:
            return round(value / getattr(base[other], field), 3) if other in base else ""

        for name, one in found.items():
            yield {
                "step": name,
                "checkpointing": "yes" if checkpointing else "",
                **({"ms": one} if isinstance(one, str) else {
                    "ms": round(1000 * one.seconds, 1),
                    "x SFT": times(one.seconds, "SFT on both videos", "seconds"),
                    "x four forwards": times(one.seconds, "DPO, four forwards", "seconds"),
                    "GFLOP": round(one.flops / 1e9, 1),
                    "FLOP x SFT": times(one.flops, "SFT on both videos", "flops"),
                    "MFU": round(one.flops / one.seconds / rate, 3),
                    "peak MiB": round(one.peak / 2**20, 1),
                    "x cached peak": times(one.peak, "DPO, cached", "peak"),
                }),
            }  # fmt: skip

    def _module(
        self,
        reference: Reference,
        checkpointing: bool = False,
        lora: Lora | None = None,
        two_pass: bool = False,
    ) -> PreferenceModule:
        module = PreferenceModule(
            CogVideoX(str(self.folder), lora=lora, checkpointing=checkpointing),
            partial(dpo_loss, beta=1000.0),
            reference,
            partial(torch.optim.AdamW, lr=1e-5),
            two_pass=two_pass,
        )
        module.configure_model()
        module.to(self.device)
        module.on_fit_start()
        module.reference.refresh(None)
        return module

    def _batch(self, module: PreferenceModule) -> PairBatch:
        shape, config = module.policy.latent_shape, SHAPES[self.shape]
        text = (config["max_text_seq_length"], config["text_embed_dim"])
        normal = partial(torch.randn, device=self.device)
        one = torch.ones(1, device=self.device)
        return PairBatch(
            win=normal(1, *shape), lose=normal(1, *shape), text=normal(1, *text),
            noise=normal(1, *shape), u=torch.tensor([0.5], dtype=torch.float64), weight=one,
            row=torch.zeros(1, dtype=torch.int64), ref_win=one, ref_lose=one,
        )  # fmt: skip

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        """As Lightning's plugin has it: without a cache of casts."""
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False
        ):
            yield

    # ---------------------------------------------------------------- the loop around it

    def trainer(self, steps: int = 12, turns: int = 5) -> list[dict[str, Any]]:
        """Our module in `Trainer.fit`, with its loader and logger, beside a bare loop."""
        store, data = self._stored(100, self._latents)
        with_trainer, bare = [], []
        for turn in range(turns + 1):
            pair = self._fit(store, data, steps), self._bare(store, data, steps)
            if turn:
                with_trainer.append(pair[0])
                bare.append(pair[1])
        figures = {"bare loop": bare, "Trainer.fit": with_trainer}
        return [
            {
                "loop": name,
                "ms a step": round(1000 * statistics.median(times), 1),
                "x bare": round(ratio(times, bare), 3),
            }
            for name, times in figures.items()
        ]

    def _fit(self, store: Store, data: RoundData, steps: int) -> float:
        clock = Clock()
        source = Source(data)
        datamodule = PreferenceDataModule(
            store, batch_size=1, optimizer_steps=steps + 1, source=source
        )
        trainer = L.Trainer(
            accelerator="cpu" if self.device.type == "cpu" else "cuda", devices=1, max_epochs=1,
            precision="bf16-mixed" if self.bf16 else "32-true", gradient_clip_val=1.0,
            logger=TensorBoardLogger(self.scratch), log_every_n_steps=5, callbacks=[clock],
            enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
        )  # fmt: skip
        trainer.fit(self._module(CachedReference()), datamodule=datamodule)
        return clock.spent / steps

    def _bare(self, store: Store, data: RoundData, steps: int) -> float:
        """The same arithmetic on batches that are there already."""
        module = self._module(CachedReference())
        draws = Draws(data, store, 0, steps + 1)
        batches = [_on(collate([draws[i]]), self.device) for i in range(steps + 1)]
        optimizer = module.configure_optimizers()
        started = 0.0

        def work(batch: PairBatch) -> None:
            with self._autocast():
                total = module.pair_step(batch)[0]
            optimizer.zero_grad()
            total.backward()
            nn.utils.clip_grad_norm_(module.network.parameters(), 1.0)
            optimizer.step()

        work(batches[0])
        started = time.perf_counter()
        for batch in batches[1:]:
            work(batch)
            float(optimizer.param_groups[0]["lr"])
        return (time.perf_counter() - started) / steps

    # ---------------------------------------------------------------- the loader

    def loading(self) -> list[dict[str, Any]]:
        """Start-up and time a batch from stores of three sizes, of a round that stays the same and
        of one that is the whole store; small latents, so that finding them is what counts."""
        rows = []
        for count in (100, 1000, 10000):
            store, data = self._stored(count, tiny.LATENT_SHAPE)
            for pairs in sorted({100, count}):
                rows.append(self._load(store, data._replace(rows=data.rows[:pairs]), count))
        return rows

    def _load(self, store: Store, data: RoundData, count: int) -> dict[str, Any]:
        folder = RoundDir(self.scratch / f"round_{count}_{len(data.rows)}", 1)
        folder.write(folder.pairs_file, data.rows)
        first, batches = [], []
        for _ in range(5):
            fresh = Store(store.root)  # what a new process knows: nothing is checked yet

            def start(fresh: Store = fresh) -> Iterator[Any]:
                draws = Draws(data._replace(rows=folder.pairs()), fresh, 0, 51 * 8)
                walk = iter(DrawLoader(draws, batch_size=8, batches=51))
                next(walk)
                return walk

            started = time.perf_counter()
            walk = start()
            first.append(time.perf_counter() - started)
            batches.append(seconds(lambda walk=walk: [*walk], self.device) / 50)
        return {
            "pairs in the store": count,
            "pairs in the round": len(data.rows),
            "start-up ms": round(1000 * statistics.median(first), 1),
            "ms a batch of 8": round(1000 * statistics.median(batches), 2),
        }

    @property
    def _latents(self) -> tuple[int, ...]:
        return CogVideoX(str(self.folder)).latent_shape

    def _stored(self, pairs: int, shape: tuple[int, ...]) -> tuple[Store, RoundData]:
        """A store of so many pairs of random videos, and a round of all of them."""
        store = Store(self.scratch / f"store-{pairs}-{len(shape)}-{shape[-1]}")
        config = SHAPES[self.shape]
        text = torch.randn(config["max_text_seq_length"], config["text_embed_dim"])
        texts = {"p": store.put_tensors("text", {"text": text})}
        blobs = [
            store.put_tensors("latents", {"latents": torch.randn(shape)}) for _ in range(2 * pairs)
        ]
        rows = [
            Pair(i, i, "p", 0, 1, blobs[2 * i], blobs[2 * i + 1], "v", "w", 0.5)
            for i in range(pairs)
        ]
        return store, RoundData(1, rows, texts, errors=torch.ones(max(pairs, 1000), 2))


class Figures(NamedTuple):
    """What a step costs."""

    seconds: float
    """Median of the repeats."""
    flops: int
    peak: int
    """Bytes beyond weights, gradients and optimizer."""


class Step:
    """A module and its batch, ready to be stepped again and again."""

    def __init__(
        self,
        module: PreferenceModule,
        loss: Callable[[PreferenceModule, PairBatch], Tensor],
        batch: PairBatch,
        autocast: Callable[[], Any],
    ) -> None:
        self.module, self.loss, self.batch, self.autocast = module, loss, batch, autocast
        self.optimizer = module.configure_optimizers()

    def backward(self) -> None:
        """Forwards and backward; gradients are added to those that are there."""
        with self.autocast():
            total = self.loss(self.module, self.batch)
        total.backward()

    def update(self) -> None:
        """A whole training step."""
        self.optimizer.zero_grad(set_to_none=False)  # their memory is not the step's
        self.backward()
        self.optimizer.step()


class Source:
    """A round that is there already."""

    def __init__(self, data: RoundData) -> None:
        self.data = data

    def ensure_round(self, number: int, draws: int) -> RoundData:
        """See `RoundSource`."""
        return self.data


class Clock(L.Callback):
    """Seconds from the end of the first step to the end of the last."""

    spent = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Start after the step that warms up."""
        if trainer.global_step == 1:
            self._started = time.perf_counter()
        self.spent = time.perf_counter() - self._started


def _ours(module: PreferenceModule, batch: PairBatch) -> Tensor:
    return module.pair_step(batch)[0]


def _sft(module: PreferenceModule, batch: PairBatch) -> Tensor:
    """The floor: two videos, one forward, no preference."""
    videos = batch.videos()
    noised = module.objective.noise(videos.latents, videos.noise, videos.u)
    answer = module.policy.predict(module.network, noised.sample, noised.timestep, videos.text)
    return squared_error(answer, noised).mean()


def _four(module: PreferenceModule, batch: PairBatch) -> Tensor:
    """As most public code has it: each video through each network alone."""
    errors = []
    for latents in (batch.win, batch.lose):
        noised = module.objective.noise(latents, batch.noise, batch.u)
        asked = (noised.sample, noised.timestep, batch.text)
        reference = squared_error(module.reference.predict(*asked), noised)
        policy = module.policy.predict(module.network, *asked)
        errors.append((squared_error(policy, noised), reference))
    (win, ref_win), (lose, ref_lose) = errors
    return dpo_loss(win, lose, ref_win, ref_lose, beta=1000.0).loss.mean()


class Variant(NamedTuple):
    """A way of a training step."""

    loss: Callable[[PreferenceModule, PairBatch], Tensor]
    reference: Callable[[], Reference]
    lora: Lora | None = None
    two_pass: bool = False


LORA = Lora(rank=16, alpha=16)
VARIANTS = {
    "SFT on both videos": Variant(_sft, CachedReference),
    "DPO, four forwards": Variant(_four, FrozenReference),
    "DPO, two forwards": Variant(_ours, FrozenReference),
    "DPO, cached": Variant(_ours, CachedReference),
    "DPO, two-pass": Variant(_ours, FrozenReference, two_pass=True),
    "DPO, cached, two-pass": Variant(_ours, CachedReference, two_pass=True),
    "DPO, LoRA, toggled": Variant(_ours, partial(AdapterReference, "base"), LORA),
    "DPO, LoRA, cached": Variant(_ours, CachedReference, LORA),
}


def _on(batch: Any, device: torch.device) -> Any:
    return batch._replace(**{
        name: value.to(device) for name, value in batch._asdict().items() if value is not None
    })  # fmt: skip


if __name__ == "__main__":
    main()
