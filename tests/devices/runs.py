"""Runs of train.py on the second device: ``python -m tests.devices.runs LIBRARY FOLDER CASE...``.

Prints a JSON line a case: what a training step counted, and how the run ended.
"""

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel

from ipo_lightning.backbones.cogvideox import CogVideoX
from ipo_lightning.backbones.diffusers_folder import Lora
from ipo_lightning.losses import dpo_loss
from ipo_lightning.module import PreferenceModule
from ipo_lightning.sampling import Sampler
from tests.conftest import SMALL, composed
from tests.devices.second_device import Device, let_trainers_use
from train import train

BF16 = "trainer.precision=bf16-mixed"
CASES = {
    "plain": (BF16, "data.num_workers=2"),
    "resumed": (BF16, "data.num_workers=2", "round=2", "name=plain"),
    "kto, adapter, int8": ("experiment=shapes_lora", "reference=adapter", "loss=kto",
                           "backbone.quantize=int8", BF16),
    "moving averages, two passes, real clips": (
        "reference=ema", "optim.ema=0.9", "step=two_pass", "regularise.real=5", "data.real.n=4",
        "loss.beta=auto"),
    "branched, guided": ("rollout=branched", "rollout.guidance_scale=3",
                         "rollout.dynamic_guidance=true", BF16),
}  # fmt: skip
"""Each with settings of its own."""


def run(device: Device, folder: Path, words: tuple[str, ...]) -> dict[str, Any]:
    """A run to its end.

    Returns:
        ``steps``: what each of its training steps counted; ``before``: what was counted between.
    """
    steps: list[dict[str, int]] = []
    before: dict[str, int] = {}
    step = PreferenceModule.training_step

    def counted(self: PreferenceModule, batch: Any, index: int) -> Any:
        for name, number in device.counts().items():
            before[name] = before.get(name, 0) + number
        found = step(self, batch, index)
        steps.append(device.counts())
        return found

    given = {word.partition("=")[0] for word in words}
    small = [
        word for word in SMALL if word.partition("=")[0] not in given | {"trainer.accelerator"}
    ]
    with replaced(PreferenceModule, "training_step", counted):
        line = train(composed("train", *small, "round=1", *words, f"paths.outputs={folder}"))
    assert line is not None
    return {"round": line["round"], "steps": steps, "before": before}


PLACES = ("step", "rollout", "evaluation")
FAULTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tensor of the CPU": lambda one: one + torch.zeros(one.shape),
    "generator of the CPU": lambda one: one + torch.randn(
        one.shape, device=one.device, generator=torch.Generator()),
    "float64": lambda one: (one.double().expand(8, *one.shape) * 1.0)[0].to(one.dtype),
}  # fmt: skip
"""What may be brought into a network's input by mistake."""


def mutated(device: Device, folder: Path, place: str, fault: str) -> dict[str, Any]:
    """A run with a fault at a place; ``float64``: the operations that computed in it."""
    forward, generate = CogVideoXTransformer3DModel.forward, Sampler.generate
    now = {"place": "elsewhere"}

    def faulty(self: Any, hidden_states: torch.Tensor, *rest: Any, **more: Any) -> Any:
        here = "step" if torch.is_grad_enabled() else now["place"]
        bring = FAULTS[fault] if here == place else torch.Tensor.detach
        return forward(self, bring(hidden_states), *rest, **more)

    def watched(self: Sampler, *args: Any, **settings: Any) -> Any:
        now["place"] = "evaluation" if "evaluation videos" in str(args) else "rollout"
        try:
            return generate(self, *args, **settings)
        finally:
            now["place"] = "elsewhere"

    device.counts()
    name = f"{place}-{fault}".replace(" ", "-")  # with a store of its own: nothing is found
    network = CogVideoXTransformer3DModel
    with replaced(network, "forward", faulty), replaced(Sampler, "generate", watched):
        found = run(device, folder, (f"name={name}", f"paths.store={folder}/{name}-store"))
    counted = (*found["steps"], device.counts(), found["before"])
    return {**found, "float64": [name for one in counted for name in one if "float64" in name]}


@contextmanager
def replaced(owner: Any, name: str, other: Any) -> Iterator[None]:
    """Let a class have another method meanwhile."""
    own = getattr(owner, name)
    setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, own)


def start(device: Device) -> dict[str, Any]:
    """Where an adapter and a schedule are made while Lightning has entered the device."""
    policy = CogVideoX("ipo_lightning/shapes/pipeline", lora=Lora(4, 4))
    made = []
    for place in (torch.device("cpu"), device.first):
        module = PreferenceModule(policy, partial(dpo_loss, beta=500.0))
        with place:
            module.configure_model()
        weights = {name: one.cpu() for name, one in module.trained().items()}
        made.append((weights, module.objective))
    (one, first), (other, second) = made
    equal = all(torch.equal(one[name], other[name]) for name in one)
    places = {str(one.device) for schedule in (first, second) for one in vars(schedule).values()
              if isinstance(one, torch.Tensor)}  # fmt: skip
    return {"equal": equal and one.keys() == other.keys(), "weights": len(one),
            "schedules on": sorted(places)}  # fmt: skip


def main() -> None:
    """The command line."""
    device, folder = Device(Path(sys.argv[1])), Path(sys.argv[2])
    let_trainers_use(device)
    for name in sys.argv[3:]:
        place, _, fault = name.partition(": ")
        try:
            if name == "start":
                found = start(device)
            elif fault:
                found = mutated(device, folder, place, fault)
            else:
                own = (
                    ()
                    if name == "resumed"
                    else (f"name={name.replace(' ', '-').replace(',', '')}",)
                )
                found = run(device, folder, (*CASES[name], *own))
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            found = {
                "error": f"{type(error).__name__}: {error}"[:300],
                "at": f"{at.filename}:{at.lineno}",
            }
        sys.stdout.write(json.dumps({"case": name, **found}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
