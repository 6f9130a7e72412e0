"""The figures of VBench's own functions, of the tiny networks and videos of `tiny_vbench`.

Needs ``pip install --no-deps vbench openai-clip easydict opencv-python-headless scipy ftfy`` beside
the packages of this project. Write the golden figures anew with::

    DINO=FOLDER python -m tests.helpers.official_vbench tests/vbench/golden.json

where FOLDER has ``vision_transformer.py`` and ``utils.py`` of github.com/facebookresearch/dino:
VBench loads its subject network from there. Without DINO the network is that of transformers.
"""

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from ipo_lightning.video import Clip, write_video
from tests.helpers import tiny_vbench

RAFT = {
    "feature_encoder.": "fnet.",
    "context_encoder.": "cnet.",
    "convnormrelu1.0": "conv1",
    "convnormrelu1.1": "norm1",
    "convnormrelu2.0": "conv2",
    "convnormrelu2.1": "norm2",
    "convnormrelu.0": "conv1",
    "convnormrelu.1": "norm1",
    "net.conv.": "net.conv2.",
    "motion_encoder.convcorr1.0": "encoder.convc1",
    "motion_encoder.convcorr2.0": "encoder.convc2",
    "motion_encoder.convflow1.0": "encoder.convf1",
    "motion_encoder.convflow2.0": "encoder.convf2",
    "motion_encoder.conv.0": "encoder.conv",
    **{f"recurrent_block.convgru{n}.conv{g}": f"gru.conv{g}{n}" for n in "12" for g in "zrq"},
    "mask_predictor.convrelu.0": "update_block.mask.0",
    "mask_predictor.conv": "update_block.mask.2",
}
"""Names of torchvision's RAFT -> the authors'; replaced in order."""


def subject_network(folder: Path) -> Callable[[Tensor], Tensor]:
    """DINO's own network with the tiny weights, or that of transformers."""
    if "DINO" not in os.environ:
        from ipo_lightning.vbench.critics import SubjectConsistency

        critic = SubjectConsistency(str(tiny_vbench.save_dino(folder / "dino")))
        critic.load("cpu")
        network = partial(critic._model, interpolate_pos_encoding=True)
        return lambda pixels: network(pixels).last_hidden_state[:, 0]  # type: ignore[no-any-return]
    sys.path.insert(0, os.environ["DINO"])
    from vision_transformer import VisionTransformer

    theirs = VisionTransformer(
        embed_dim=tiny_vbench.WIDTH, depth=tiny_vbench.LAYERS, num_heads=2, mlp_ratio=2,
        qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    theirs.load_state_dict(tiny_vbench.dino())
    return theirs.eval()


def clip_network() -> Any:
    """OpenAI's network with the tiny weights."""
    from clip.model import CLIP

    width, layers = tiny_vbench.WIDTH, tiny_vbench.LAYERS
    theirs = CLIP(width, 224, layers, width, 32, 8, 16, width, 1, 1)
    missing, unknown = theirs.load_state_dict(tiny_vbench.clip(), strict=False)
    assert not unknown and not [name for name in missing if name.startswith("visual")]
    return theirs.eval()


def flow_network(folder: Path) -> Any:
    """VBench's own holder of RAFT, with the weights of torchvision's under their first names."""
    from easydict import EasyDict
    from vbench.dynamic_degree import DynamicDegree

    weights = tiny_vbench.renamed(tiny_vbench.raft(), RAFT)
    for name in [name for name in weights if "downsample.1" in name]:
        weights[name.replace("downsample.1", "norm3")] = weights[name]
    torch.save(weights, folder / "raft.pth")
    settings = {"model": str(folder / "raft.pth"), "small": False, "mixed_precision": False}
    return DynamicDegree(EasyDict(settings, alternate_corr=False), "cpu")


class Speeds:
    """Keeps the speeds that VBench compares with its threshold."""

    def __init__(self, network: Any) -> None:
        self.network, self.found = network, list[float]()
        self.own = network.get_score
        network.get_score = self.kept

    def kept(self, image: Tensor, flow: Tensor) -> float:
        self.found.append(self.own(image, flow))
        return self.found[-1]


def figures() -> dict[str, Any]:
    """Each dimension's mean over the videos, and its value of each."""
    # VBench imports pyiqa's MUSIQ, which is not needed with a network at hand.
    absent = {name: ModuleType(name) for name in ("pyiqa", "pyiqa.archs", "pyiqa.archs.musiq_arch")}
    absent["pyiqa.archs.musiq_arch"].MUSIQ = None  # type: ignore[attr-defined]
    with patch.dict(sys.modules, absent):
        importlib.import_module("vbench.imaging_quality")
        loaded = dict(sys.modules)
    sys.modules.update({name: one for name, one in loaded.items() if name not in absent})
    from vbench.aesthetic_quality import laion_aesthetic
    from vbench.background_consistency import background_consistency
    from vbench.dynamic_degree import dynamic_degree
    from vbench.imaging_quality import technical_quality
    from vbench.subject_consistency import subject_consistency
    from vbench.temporal_flickering import temporal_flickering

    head = nn.Linear(tiny_vbench.WIDTH, 1)
    head.load_state_dict(tiny_vbench.head())
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        small, large, moving = (
            written(Path(name), kind, clips)
            for kind, clips in [
                ("small", tiny_vbench.SMALL), ("large", tiny_vbench.LARGE),
                ("moving", tiny_vbench.MOVING),
            ]
        )  # fmt: skip
        clip, flow = clip_network(), flow_network(Path(name))
        speeds = Speeds(flow)
        found = {
            "subject_consistency": subject_consistency(
                subject_network(Path(name)), small, "cpu", False
            ),
            "background_consistency": background_consistency(clip, None, small, "cpu", False),
            "temporal_flickering": temporal_flickering(small),
            "aesthetic_quality": laion_aesthetic(head, clip, small, "cpu"),
            "imaging_quality": technical_quality(tiny_vbench.musiq, large, "cpu"),
            "dynamic_degree": dynamic_degree(flow, moving),
        }
    plain: dict[str, Any] = {
        name: {"mean": float(mean), "videos": [float(one["video_results"]) for one in videos]}
        for name, (mean, videos) in found.items()
    }
    plain["dynamic_degree"]["speeds"] = speeds.found
    plain["dynamic_degree"]["moves"] = [moves(flow, *case) for case in tiny_vbench.SPEEDS]
    return plain


def moves(flow: Any, height: int, width: int, speeds: list[float]) -> bool:
    """VBench's verdict on the speeds of the pairs of a video's frames."""
    flow.set_params(frame=torch.zeros(1, 3, height, width), count=len(speeds) + 1)
    return bool(flow.check_move(speeds))


def written(folder: Path, kind: str, clips: tuple[Clip, ...]) -> list[str]:
    """Files of the videos, which keep each pixel."""
    files = [folder / f"{kind}-{number}.mp4" for number in range(len(clips))]
    for file, clip in zip(files, clips, strict=True):
        write_video(file, clip, lossless=True)
    return [str(file) for file in files]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(figures()) + "\n")
