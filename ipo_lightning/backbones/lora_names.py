"""What the tensors of a LoRA file are called, in every naming that is found on hubs.

A name is a prefix, a layer and a part, as ``transformer.`` ``blocks.0.attn1.to_q``
``.lora_A.default.weight``. Layers have the names of diffusers, of the model's original code, or
either with ``_`` for every dot.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ipo_lightning.errors import printable

PREFIXES = ("transformer.", "base_model.model.", "diffusion_model.", "model.", "module.",
            "pipe.dit.", "dit.")  # fmt: skip
"""Prefixes of layers' names, in any number: of diffusers, peft, the original code and trainers."""
FLAT = ("lora_transformer_", "lora_unet_", "lycoris_")
"""Kohya's and LyCORIS's trainers write the layers' names with ``_`` for every dot."""
WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch puts between the parts of a name."""
PARTS = {
    "down": r"lora_(A|down)(\.\w+)?\.weight|lora\.down\.weight",
    "up": r"lora_(B|up)(\.\w+)?\.weight|lora\.up\.weight",
    "up_bias": r"lora_(B|up)(\.\w+)?\.bias|lora\.up\.bias",
    "alpha": r"(lora\.)?alpha",
    "magnitude": r"lora_magnitude_vector(\.\w+)?(\.weight)?",
    "dora_scale": r"dora_scale",
    "diff": r"diff|w_norm",
    "diff_b": r"diff_b|b_norm",
}
"""Part -> how a name ends: factors of the update, its scale, DoRA's magnitudes, whole changes of a
weight or of a bias."""
_ENDINGS = {part: re.compile(rf"\.(?:{ending})\Z") for part, ending in PARTS.items()}
KINDS = {
    "a LoKr (Kronecker products)": r"\blokr_",
    "a LoHa (Hadamard products)": r"\bhada_",
    "an OFT (orthogonal fine-tuning)": r"\bb?oft_",
    "an IA3": r"\bia3_",
    "a VeRA": r"\bvera_",
    "a LoCon with a Tucker core": r"\blora_mid\b",
    "a LoRA or a checkpoint of the SAT code": r"\bmatrix_[AB]\b|\.query_key_value\b",
}
"""What else is stored under a LoRA's name -> what gives it away in a tensor's name."""


class Named(NamedTuple):
    """A tensor's name, taken apart."""

    layer: str
    """As the network has it."""
    part: str
    """A key of `PARTS`."""


def layer_names(
    parameters: Iterable[str], original: Callable[[str], str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Every name of a layer -> the network's own, with dots and with ``_`` in their place.

    Args:
        parameters: names of the network's parameters.
        original: the name of a layer in the model's original code.
    """
    layers = list(dict.fromkeys(re.sub(r"\.(weight|bias)\Z", "", name) for name in parameters))
    dotted = {original(layer): layer for layer in layers} | {layer: layer for layer in layers}
    flat: dict[str, str] = {}
    for name, layer in dotted.items():
        flat.setdefault(name.replace(".", "_"), layer)
    return dotted, flat


def taken_apart(name: str, dotted: Mapping[str, str], flat: Mapping[str, str]) -> Named | None:
    """The layer and the part that a tensor is of; None: it is of nothing in the network."""
    plain = WRAPPERS.sub("", name)
    for part, ending in _ENDINGS.items():
        if found := ending.search(plain):
            layer = _own_layer(plain[: found.start()], dotted, flat)
            return None if layer is None else Named(layer, part)
    return None


def _own_layer(name: str, dotted: Mapping[str, str], flat: Mapping[str, str]) -> str | None:
    while name not in dotted:
        if before := next((one for one in FLAT if name.startswith(one)), None):
            return flat.get(name.removeprefix(before))
        before = next((one for one in PREFIXES if name.startswith(one)), None)
        if before is None:
            return None
        name = name.removeprefix(before)
    return dotted[name]


def other_kind(names: Iterable[str]) -> str | None:
    """What a file is instead of a LoRA that can be read here; None where nothing says so."""
    every = list(names)
    if not every:
        return "it holds no tensors"
    for kind, sign in KINDS.items():
        if any(re.search(sign, name) for name in every):
            return (
                f"it is {kind}, which is not read here; convert it to a LoRA of diffusers or peft"
            )
    if not any(ending.search(name) for name in every for ending in _ENDINGS.values()):
        return (
            f"it is a whole checkpoint or a part of one: {counted(every)} are weights, not a "
            "LoRA's factors; give the folder of a diffusers transformer, with its config.json"
        )
    return None


def counted(names: Iterable[str], shown: int = 3) -> str:
    """How many names there are, and the first few of them."""
    every = sorted(map(printable, names))
    short = [name if len(name) <= 80 else f"{name[:77]}..." for name in every[:shown]]
    more = ", ..." if len(every) > shown else ""
    return f"{len(every)} tensor{'s' if len(every) != 1 else ''} ({', '.join(short)}{more})"
