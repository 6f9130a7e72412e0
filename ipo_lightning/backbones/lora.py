"""Low-rank adapters (LoRA): added to a network, saved as diffusers does, loaded from others',
merged into the weights."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ipo_lightning.backbones.lora_files import LoraFile, read_lora
from ipo_lightning.errors import InputError
from ipo_lightning.policy import LORA_FILE
from ipo_lightning.seeds import derive_seed
from ipo_lightning.settings import Count, Positive, checked

ADAPTER = "default"
"""Name of the trained adapter in the network."""


@checked
@dataclass(frozen=True)
class Lora:
    """A low-rank adapter in place of full fine-tuning."""

    rank: Count
    """Rank of the update, >= 1: trainable parameters grow with it."""
    alpha: Positive
    """The update is scaled by alpha / rank; exports carry it in their metadata."""
    targets: Sequence[str] = ("to_q", "to_k", "to_v", "to_out.0")
    """Names of the linear layers that get an adapter; these are all of a family's attention."""
    seed: int = 0
    """Seed of the adapter's first factor (the second starts at zero)."""

    def __post_init__(self) -> None:
        if not self.targets:
            raise InputError(setting="targets", value=[], expected="give at least one layer name")


def add_adapter(network: Any, lora: Lora) -> None:
    """Freeze a network and put an adapter of float32 on it, the same for the same seed."""
    network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(lora.seed, "lora"))
        network.add_adapter(
            LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets)),
            adapter_name=ADAPTER,
        )
    for parameter in network.parameters():
        if parameter.requires_grad:  # peft takes the base's precision; an adapter is small
            parameter.data = parameter.data.float()


def save_adapter(network: Any, pipeline_class: Any, folder: Path) -> None:
    """Write the adapter to ``folder``/`LORA_FILE`, its rank and alpha in the metadata."""
    pipeline_class.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(network, adapter_name=ADAPTER),
        transformer_lora_adapter_metadata=network.peft_config[ADAPTER].to_dict(),
    )


def saved_adapter(folder: Path) -> dict[str, Tensor]:
    """The weights that `save_adapter` wrote, by the names of the network's parameters."""
    return {
        name.removeprefix("transformer.").replace(".weight", f".{ADAPTER}.weight"): tensor
        for name, tensor in load_file(folder / LORA_FILE).items()
    }


def load_adapter(network: Any, file: Path, original: Callable[[str], str]) -> None:
    """Put the LoRA of a file on a base network; the file may be of diffusers, peft or others.

    What is changed outside of the adapter, by whole differences, is marked as trained.

    Args:
        original: the name of a layer in the model's original code.

    Raises:
        InputError: the file is no LoRA of this network, or a tensor of it has no place there.
    """
    with of_a_lora(file):
        for parameter in put_lora(network, read_lora(file, network, original)):
            parameter.requires_grad_(True)


def put_lora(network: Any, content: LoraFile) -> list[Tensor]:
    """Put a LoRA on a base network.

    Returns:
        The parameters that are changed outside of the adapter.

    Raises:
        ValueError: a tensor of it has no place there.
    """
    changed = [network.get_parameter(name) for name in content.differences]
    for parameter, difference in zip(changed, content.differences.values(), strict=True):
        add_difference(parameter, difference)
    if content.weights:
        network.load_lora_adapter(content.weights, prefix=None, metadata=_settings(content))
        _refuse_left_over(network, content.weights)
        _keep_precision(network, content.weights)
        changed += _scaled_biases(network, content)
    return changed


@contextmanager
def of_a_lora(file: Path) -> Iterator[None]:
    """Name the file in what is raised about its content."""
    try:
        yield
    except (ValueError, RuntimeError, KeyError, OSError, TypeError, SafetensorError) as error:
        said = " ".join(str(error).split())[:400]
        raise InputError(f"{file} is no LoRA of this model: {said}") from error


@torch.no_grad()
def merge_adapters(network: Any) -> None:
    """Add all adapters of a network to its weights, in float32, and take them off."""
    if not hasattr(network, "peft_config"):  # a file of whole differences leaves none
        return
    for module in [one for one in network.modules() if isinstance(one, BaseTunerLayer)]:
        base: Any = module.get_base_layer()
        dtype = base.weight.dtype
        if not dtype.is_floating_point:
            raise InputError("a LoRA cannot be merged into a quantised base: give its exported "
                             "policy, which is merged into the plain one")  # fmt: skip
        base.float()  # the sum is rounded once, to the weights' own precision
        module.merge()
        base.to(dtype)
    network.unload_lora()


def continue_adapter(network: Any, lora: Lora, file: Path, original: Callable[[str], str]) -> None:
    """Put an adapter on a network as `add_adapter` does, with the weights of a LoRA file.

    Args:
        original: see `load_adapter`.

    Raises:
        InputError: the file's rank or layers are not the adapter's, or it is no plain LoRA.
    """
    with of_a_lora(file):
        content = read_lora(file, network, original)
    add_adapter(network, lora)
    own = {
        name.replace(f".{ADAPTER}.", "."): parameter
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }
    _refuse_unlike(file, content, {name: parameter.shape for name, parameter in own.items()})
    scale = _scale(content) * lora.rank / lora.alpha
    for name, parameter in own.items():
        factor = scale if ".lora_B." in name else 1.0
        parameter.data.copy_(content.weights[name].float() * factor)


def _scale(content: LoraFile) -> float:
    """Alpha over rank of a file; 1 where its second factors have it in them."""
    if content.config is None:
        return 1.0
    rank = next(iter(content.weights.values())).shape[0]
    return float(content.config.get("lora_alpha", LoraConfig.lora_alpha)) / rank


def _refuse_unlike(file: Path, content: LoraFile, wanted: Mapping[str, torch.Size]) -> None:
    """Refuse a LoRA that the adapter to be trained cannot begin with."""
    odd = [name for name in ("rank_pattern", "alpha_pattern", "use_rslora", "use_dora")
           if (content.config or {}).get(name)]  # fmt: skip
    shapes = {name: tensor.shape for name, tensor in content.weights.items()}
    if odd or content.differences or content.up_biases:
        said = f"it has {odd[0]}" if odd else "it changes weights or biases outside its factors"
    elif shapes.keys() != wanted.keys():
        name = min(shapes.keys() ^ wanted.keys())
        said = f"it {'has' if name in shapes else 'lacks'} {name}: other layers than backbone.lora"
    elif shapes != wanted:
        ranks = sorted({shape[0] for name, shape in shapes.items() if ".lora_A." in name})
        said = f"its rank is {', '.join(map(str, ranks))}: give backbone.lora.rank"
    else:
        return
    raise InputError(
        f"start={file} cannot be trained on: {said}; or merge it into the weights and train an "
        "adapter over them with start_merge=true"
    )


def _settings(content: LoraFile) -> dict[str, Any] | None:
    """The keywords of `peft.LoraConfig`: its layers are those that the file has factors for."""
    if content.config is None:
        return None
    layers = dict.fromkeys(name.partition(".lora_")[0] for name in content.weights)
    return {**content.config, "target_modules": [*layers]}


@torch.no_grad()
def add_difference(parameter: Tensor, difference: Tensor) -> None:
    """Add in float32, whatever the precision of the parameter."""
    total = parameter.float() + difference.float().to(parameter.device)
    parameter.copy_(total.to(parameter.dtype))


def _scaled_biases(network: Any, content: LoraFile) -> list[Tensor]:
    """Add the second factors' biases to the layers' own, scaled as the update is.

    Raises:
        ValueError: a layer's alpha in the file is not the one that its settings say.
    """
    name, changed = list(network.peft_config)[-1], []
    for layer in dict.fromkeys([*content.scales, *content.up_biases]):
        module = network.get_submodule(layer)
        scale, own = module.scaling[name], content.scales.get(layer)
        if content.config is None:
            scale = 1.0 if own is None else own
        elif own is not None and abs(scale - own) > 1e-6 * abs(scale):
            raise ValueError(
                f"alpha / rank of {layer} is {own:g} by its tensor and {scale:g} by its settings "
                "(the file's metadata or the adapter_config.json beside it): remove one of them"
            )
        if layer in content.up_biases:
            changed.append(module.get_base_layer().bias)
            add_difference(changed[-1], content.up_biases[layer].float() * scale)
    return changed


def _keep_precision(network: Any, weights: Mapping[str, Tensor]) -> None:
    """Give the factors in float32, as trained adapters are; peft rounds them as the base is."""
    name = list(network.peft_config)[-1]
    for key, parameter in network.named_parameters():
        if (given := weights.get(key.replace(f".{name}.", "."))) is not None:
            parameter.data = given.to(parameter.device, torch.float32)


def _refuse_left_over(network: Any, weights: Mapping[str, Tensor]) -> None:
    """Refuse a LoRA some of whose weights found no place; diffusers would go on without them."""
    name = list(network.peft_config)[-1]
    left = sorted(weights.keys() - get_peft_model_state_dict(network, adapter_name=name).keys())
    if left:
        raise ValueError(f"{len(left)} of its {len(weights)} weights have no place, as {left[0]}")
