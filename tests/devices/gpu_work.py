"""The pieces of a run's work on fake CUDA, at the real shapes of the shipped backbones.

Each builds what it needs, as a run does, and says what it took.
"""

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from app.entry import CONF
from app.planning.jobs import job_of
from ipo_lightning.evaluation import Evaluation
from ipo_lightning.module import PreferenceModule
from ipo_lightning.planning.job import Job
from ipo_lightning.planning.published import MODELS, write_configs
from ipo_lightning.planning.traces import Traces
from tests.conftest import composed
from tests.devices.fake_cuda import CUDA, Watch, fake_cuda, mixed

BACKBONES = [
    file.stem for file in sorted((CONF / "backbone").glob("*.yaml")) if file.stem != "shapes"
]


def apart(*parts: str) -> list[str]:
    """Of the shipped backbones, one for each that differs in these parts or in its videos' size:
    IPOC's are CogVideoX's but for their weights, and all CogVideoX have one text encoder."""
    found: dict[str, str] = {}
    for backbone in BACKBONES:
        model = MODELS[published(backbone)].parts
        own = [{**model[part], "scaling_factor": None} for part in parts]
        size = job(backbone).policy.size if "vae" in parts else ()
        found.setdefault(repr([own, size]), backbone)
    return list(found.values())


class Took(NamedTuple):
    """What some work took on a GPU, in bytes."""

    weights: int
    reference: int
    gradients: int
    peak: int
    """Beyond these, at its fullest moment."""
    flops: int


def published(backbone: str) -> str:
    """The hub id of a shipped backbone."""
    return str(OmegaConf.load(CONF / f"backbone/{backbone}.yaml").path)


@cache
def _configs(path: str, blocks: int) -> str:
    """A folder with the configs of a published model, but for its number of blocks."""
    model, folder = MODELS[path], tempfile.mkdtemp()
    few = {**model.parts["transformer"], "num_layers": blocks}
    return str(
        write_configs(model._replace(parts={**model.parts, "transformer": few}), Path(folder))
    )


def job(backbone: str, *words: str, blocks: int = 1) -> Job:
    """A run's job on one GPU of 80 GiB, of one block; what is planned and what is run are its."""
    rollout = "wan" if backbone.startswith("wan") else "cogvideox"
    settings = (f"backbone={backbone}", f"rollout={rollout}", "trainer.precision=bf16-mixed",
                "plan.memory_gib=80", "data.batch_size=1", "paths.outputs=outputs")  # fmt: skip
    cfg = composed("train", *settings, *words)
    cfg.backbone.path = _configs(published(backbone), blocks)
    return job_of(cfg)


def step(job: Job) -> Took:
    """A training step, with what Lightning does around it."""
    traces = Traces(job)
    _ = traces.text_shape  # found on fake tensors of its own
    policy = job.policy.outline()
    module = job.make(policy)  # tries its loss with values
    with fake_cuda() as watch:
        _let_run_alone(module)
        module.configure_model()
        module.network.to(CUDA)
        weights = watch.held
        module.reference.attach(policy, module.network)
        own = module.reference.answers == "online" and module.reference.of == "round_start"
        module.reference.refresh(module.trained() if own else None)
        reference = watch.held - weights
        for parameter in module.network.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
        gradients = watch.held - weights - reference
        batch = _moved(traces.batch(policy, module))
        start = watch.restart()
        with mixed():
            total = cast(Tensor, module.training_step(batch, 0))
        total.backward()  # type: ignore[no-untyped-call]
        return Took(weights, reference, gradients, watch.peak - start, watch.flops)


def _let_run_alone(module: PreferenceModule) -> None:
    """Let a module step without a trainer."""
    optimizer = SimpleNamespace(param_groups=[{"lr": 1e-5}])
    alone: dict[str, Any] = {
        "all_gather": lambda one: one[None], "log_dict": lambda *_, **__: None,
        "_trainer": SimpleNamespace(
            optimizers=[optimizer], strategy=None, global_rank=0, world_size=1
        ),
    }  # fmt: skip
    vars(module).update(alone)
    module.health.to(CUDA)


def _moved(batch: Any) -> Any:
    """A batch, or some videos, on the GPU."""
    if isinstance(batch, Tensor):
        return batch.to(CUDA)
    return None if batch is None else type(batch)(*map(_moved, batch))


def rollout(job: Job) -> Took:
    """The sampling loop of a prompt's videos."""
    shape = Traces(job).text_shape
    with fake_cuda() as watch:
        policy = job.policy.outline()
        network = _network(policy)
        weights = watch.restart()
        with mixed():
            text, negative = torch.empty(1, *shape), torch.empty(1, *shape)
            seeds = list(range(job.candidates))
            latents = policy.sample(network, seeds, text, negative, job.sampling)
        assert latents.device == CUDA and latents.dtype == torch.float32
        assert latents.shape == (job.candidates, *policy.latent_shape)
        return _took(watch, weights)


def decode(job: Job) -> Took:
    """The VAE's decoding of a video, with its weights."""
    with fake_cuda() as watch:
        policy = job.policy.outline()
        latents = torch.empty(1, *policy.latent_shape, device=CUDA)
        start = watch.restart()
        (clip,) = policy.decode(latents)
        assert clip.frames.shape == (*policy.size, 3)
        return _took(watch, start)


def encode(job: Job) -> Took:
    """The VAE's encoding of a clip, with its weights."""
    with fake_cuda() as watch:
        policy = job.policy.outline()
        frames = torch.zeros(1, *policy.size, 3, dtype=torch.uint8, device=CUDA)
        start = watch.restart()
        latents = policy.encode(frames)
        assert latents.shape[1:] == policy.latent_shape and latents.dtype == torch.float32
        return _took(watch, start)


def embed(job: Job) -> Took:
    """A prompt's embedding, by a text encoder that is on the GPU already."""
    shape = Traces(job).text_shape
    with fake_cuda() as watch:
        policy = job.policy.outline()
        policy.embed(["a"], CUDA)
        weights = watch.restart()
        text = policy.embed(["a"], CUDA)
        assert text.device.type == "cpu" and text.shape[1:] == shape
        return _took(watch, weights)


def real_error(job: Job) -> Took:
    """The evaluation's denoising error on a real clip, which is encoded first."""
    shape = Traces(job).text_shape
    with fake_cuda() as watch:
        policy = job.policy.outline()
        network = _network(policy)
        sampler: Any = SimpleNamespace(text=lambda prompt: torch.empty(1, *shape))
        unused: Any = SimpleNamespace()
        evaluation = Evaluation(
            ["a"], sampler=sampler, critic=unused, eval_critic=unused,
            real_clips=lambda prompts, seed: torch.zeros(1, *policy.size, 3, dtype=torch.uint8),
        )  # fmt: skip
        weights = watch.restart()
        assert evaluation.real_error(policy, network, policy.objective()) is not None
        return _took(watch, weights)


def _network(policy: Any) -> nn.Module:
    network: nn.Module = policy.build().eval()
    return network.to(CUDA)


def _took(watch: Watch, weights: int) -> Took:
    return Took(weights, 0, 0, watch.peak - weights, watch.flops)


def shortened(job: Job, videos: int, steps: int) -> Job:
    """A job whose rollout is of so many videos, all at once, and steps."""
    sampling = replace(job.sampling, steps=steps, batch_size=None)
    return replace(job, candidates=videos, sampling=sampling)
