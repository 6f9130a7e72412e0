"""Dimensions of VBench as critics: each rates a video by its own value, on VBench's scale.

A critic's score is the dimension's value as `scaled` gives it; ``raw`` has the value as VBench's
own tables do, in [0, 1]. Several of them are an `Ensemble` with VBench's weights
(conf/critic/vbench.yaml); its score is a partial mean and none of VBench's scores.

None of them reads the prompt. Networks work in float32 on every device; VBench's CLIP works in
float16 on a GPU.
"""

import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection, ViTModel

from ipo_lightning.critics.pretrained.checkpoint import (
    check_source,
    check_vision,
    check_weights,
    free,
    named,
    origin,
)
from ipo_lightning.critics.pretrained.sizes import Network, cost, network_of, pictures
from ipo_lightning.critics.protocols import Rating
from ipo_lightning.critics.scorers.frames import fingerprint_of
from ipo_lightning.critics.stage.costs import Cost, Watched
from ipo_lightning.errors import InputError
from ipo_lightning.metrics.gauges import motion
from ipo_lightning.settings import Text, checked
from ipo_lightning.storage.store import file_sha256
from ipo_lightning.vbench.files import FLOW, HEAD, check_file, filled, musiq, published
from ipo_lightning.vbench.measures import (
    FLOW_GRID,
    at_flow_rate,
    consistency,
    dino_positions,
    for_clip,
    for_dino,
    for_musiq,
    is_dynamic,
    padded,
    top_speed,
)
from ipo_lightning.vbench.scores import scaled
from ipo_lightning.video import Clip

BATCH = 32
"""Frames that a network sees together, of one video."""
UPDATES = 20
"""Of a flow field by RAFT, as VBench asks for."""
WEIGHTS, CORRELATIONS, CHANNELS = 5_257_536, 2.7, 128
"""Of RAFT: parameters, numbers for two places of two frames (a pyramid, made of one more copy), and
for each pixel (its first convolutions)."""
LEAST_SIDE = 16 * FLOW_GRID
"""Pixels of the shorter side that RAFT's pyramid of correlations needs."""
TORCH_WEIGHTS = "pytorch_model.bin"
"""Weights of a hub's older models, read without running what a pickle holds (``weights_only``)."""


NEEDS = "VBench's dynamic degree needs"


class Unmeasured(Exception):
    """A video that a dimension cannot be measured of; the message says why, in a few words."""


class Dimension(ABC):
    """A dimension of VBench, as a critic. A video's frames are computed without those of others."""

    name: ClassVar[str]
    """As VBench calls it."""
    least: ClassVar[int] = 2
    """Frames that a video needs."""
    by_frame: ClassVar[bool] = False
    """Whether VBench averages over the frames of all videos, rather than over videos."""

    device = "cpu"

    @property
    @abstractmethod
    def identity(self) -> str:
        """Of the dimension and its network."""

    @abstractmethod
    def load(self, device: str) -> None:
        """Load the network onto a device."""

    @abstractmethod
    def release(self) -> None:
        """Free the memory of the network."""

    @abstractmethod
    def values(self, clip: Clip) -> Tensor:
        """Values (n,) whose mean is the video's: of its frames, or of the video as a whole.

        Raises:
            Unmeasured: there is no value.
        """

    @torch.inference_mode()
    def measure(self, clip: Clip) -> Tensor:
        """As `values`, for a clip of any length: float32 (n,) on the CPU.

        Raises:
            Unmeasured: the clip is too short, or there is no value.
        """
        if len(clip.frames) < self.least:
            raise Unmeasured(f"fewer than {self.least} frames")
        values = self.values(clip).float().cpu()
        if not bool(values.isfinite().all()):
            raise Unmeasured("not a number")
        return values

    def rate(self, clips: Sequence[Clip], prompts: Sequence[str]) -> list[Rating]:
        """One rating a clip; prompts are ignored."""
        return [self.rating(clip) for clip, _ in zip(clips, prompts, strict=True)]

    def rating(self, clip: Clip) -> Rating:
        """The rating of one clip, or a fault."""
        try:
            value = float(self.measure(clip).double().mean())
        except Unmeasured as cause:
            return Rating(None, fault=str(cause))
        return Rating(scaled(self.name, value), raw=json.dumps({self.name: round(value, 6)}))


class TemporalFlickering(Dimension):
    """How little neighbouring frames differ: 1 minus their mean absolute difference over 255.

    VBench measures it on videos that its static filter chose; on any others, motion counts too.
    """

    name = "temporal_flickering"
    identity = "vbench-temporal_flickering@1"

    def cost(self, video: Watched) -> Cost:
        """Nothing of a device, see `cost_of`."""
        return Cost(self.name, "none")

    def load(self, device: str) -> None:
        """Nothing to load."""

    def release(self) -> None:
        """Nothing to release."""

    def values(self, clip: Clip) -> Tensor:
        """The video's value, (1,)."""
        return 1 - motion(clip.frames[None]) / 255


class ModelDimension(Dimension):
    """A dimension by a network, which is loaded when it is first needed."""

    _model: Any = None

    @abstractmethod
    def built(self) -> Any:
        """The network with its weights.

        Raises:
            InputError: they cannot be read, or a package is missing.
        """

    def load(self, device: str) -> None:
        """Load the network onto a device.

        Raises:
            InputError: see `built`.
        """
        self._model, self.device = self.built().eval().to(device), device

    def release(self) -> None:
        """Free the memory of the weights."""
        self._model = None
        free()

    @property
    def model(self) -> Any:
        """The network, loaded."""
        if self._model is None:
            self.load(self.device)
        return self._model


@checked
class NetworkDimension(ModelDimension):
    """A dimension by a network of transformers that sees single frames.

    Args:
        path: the network: a folder, or a hub id. Weights are read from safetensors, or from
            ``pytorch_model.bin`` without running code.
        revision: of a hub id: branch, tag or commit; None: its main branch.
    """

    network: ClassVar[Any]
    """A class of transformers."""
    settings: ClassVar[Mapping[str, Any]] = {}
    """Of it, beside its config."""

    def __init__(self, path: Text, revision: Text | None = None) -> None:
        check_source("path", path)
        self.path, self.revision = path, revision

    @cached_property
    def identity(self) -> str:
        """Of the dimension and the model: a folder by its content, a hub id by its commit."""
        return f"{origin('path', self.path, self.revision)}#vbench-{self.name}-1"

    def cost(self, video: Watched) -> Cost:
        """What a rating costs at most, see `cost_of`: with both halves of a CLIP."""
        network = network_of(self.path, self.revision, speaks=False)
        if not isinstance(network, Network):
            return network
        found = cost(network, pictures(network, min(BATCH, video.frames)), "float32")
        return found.several(-(-video.frames // BATCH))

    def ready(self) -> None:
        """Check that the weights are there.

        Raises:
            InputError: they are not.
        """
        if not self._in_safetensors():
            check_weights("path", self.path, self.revision, TORCH_WEIGHTS)

    def built(self) -> Any:
        """The network as it is used.

        Raises:
            InputError: it cannot be read.
        """
        with named("path", self.path):
            model = self.network.from_pretrained(
                self.path, revision=self.revision, use_safetensors=self._in_safetensors(),
                dtype=torch.float32, **self.settings,
            )  # fmt: skip
        return self.prepared(model)

    def prepared(self, model: Any) -> Any:
        """The network with what this dimension changes of it."""
        return model

    def features(self, clip: Clip) -> Tensor:
        """A row for each frame, float32 (T, D) on the device."""
        side = int(self.model.config.image_size)
        parts = (self.seen(frames, side) for frames in channels_first(clip, self.device))
        return torch.cat([F.normalize(part.float(), dim=-1) for part in parts])

    @abstractmethod
    def seen(self, frames: Tensor, side: int) -> Tensor:
        """What the network makes of frames (K, 3, H, W): (K, D)."""

    def _in_safetensors(self) -> bool:
        try:
            check_weights("path", self.path, self.revision)
        except InputError:
            return False
        return True


class SubjectConsistency(NetworkDimension):
    """How much frames resemble the first and the one before, by DINO; a still video has 1."""

    name, by_frame = "subject_consistency", True
    network, settings = ViTModel, {"add_pooling_layer": False}

    def prepared(self, model: Any) -> Any:
        """The network with its positions interpolated as by DINO's own code."""
        embeddings = model.embeddings
        patch = int(model.config.patch_size)

        def positions(_: Tensor, height: int, width: int) -> Tensor:
            return dino_positions(embeddings.position_embeddings, height // patch, width // patch)

        embeddings.interpolate_pos_encoding = positions
        return model

    def seen(self, frames: Tensor, side: int) -> Tensor:
        """The class token."""
        pixels = for_dino(frames, side)
        seen = self.model(pixel_values=pixels, interpolate_pos_encoding=True)
        return seen.last_hidden_state[:, 0]

    def values(self, clip: Clip) -> Tensor:
        """Of frames 2 to T, (T - 1,)."""
        return consistency(self.features(clip))


class ImageHalf(CLIPVisionModelWithProjection):
    """The half of a CLIP that sees; the other half's weights are left in the file."""

    _keys_to_ignore_on_load_unexpected = (r"^text_", r"^logit_scale$")


class ClipDimension(NetworkDimension):
    """A dimension by the image half of CLIP."""

    network = ImageHalf

    def seen(self, frames: Tensor, side: int) -> Tensor:
        """The projected embeddings."""
        return self.model(pixel_values=for_clip(frames, side)).image_embeds


class BackgroundConsistency(ClipDimension):
    """How much frames resemble the first and the one before, by CLIP; a still video has 1."""

    name, by_frame = "background_consistency", True

    def values(self, clip: Clip) -> Tensor:
        """Of frames 2 to T, (T - 1,)."""
        return consistency(self.features(clip))


@checked
class AestheticQuality(ClipDimension):
    """LAION's linear head on CLIP's embedding of each frame, divided by 10.

    Args:
        path, revision: see `NetworkDimension`; the head is for ``openai/clip-vit-large-patch14``.
        head: its file. None: LAION's own, which is downloaded once.
    """

    name, least = "aesthetic_quality", 1

    def __init__(self, path: Text, revision: Text | None = None, head: Text | None = None) -> None:
        super().__init__(path, revision)
        check_file("head", head)
        self.head = head
        self._head: Any = None

    @cached_property
    def identity(self) -> str:
        """Of the model and the head."""
        head = HEAD[1][:8] if self.head is None else str(fingerprint_of(self.head))[:8]
        return f"{super().identity}-{head}"

    def ready(self) -> None:
        """Check the weights, and the head's file."""
        super().ready()
        published("head", self.head, HEAD)

    def load(self, device: str) -> None:
        """Load network and head onto a device.

        Raises:
            InputError: they cannot be read, or do not fit each other.
        """
        super().load(device)
        width = int(self.model.config.projection_dim)
        head = nn.Linear(width, 1)
        filled("head", head, published("head", self.head, HEAD))
        self._head = head.to(device)

    def release(self) -> None:
        """Free the memory of the weights."""
        self._head = None
        super().release()

    def values(self, clip: Clip) -> Tensor:
        """Of each frame, (T,)."""
        features = self.features(clip)
        return self._head(features)[:, 0] / 10


@checked
class DynamicDegree(ModelDimension):
    """1 for a video that moves, 0 for one that does not, by RAFT's optical flow.

    Args:
        weights: a file of torchvision's ``raft_large``. None: torchvision's port of the weights
            that VBench uses (BSD-3-Clause), which is downloaded once.
    """

    name = "dynamic_degree"

    def __init__(self, weights: Text | None = None) -> None:
        check_file("weights", weights)
        self.weights = weights

    @cached_property
    def identity(self) -> str:
        """Of the weights."""
        weights = FLOW[1] if self.weights is None else file_sha256(Path(self.weights))[:8]
        return f"vbench-{self.name}@1#{weights}"

    def cost(self, video: Watched) -> Cost:
        """What a rating costs, see `cost_of`: RAFT's correlations of all places of two frames."""
        places = (video.height // 8) * (video.width // 8)
        pairs = max(1, round(video.frames / video.fps * 8) - 1)
        held = 4.0 * (CORRELATIONS * places**2 + CHANNELS * video.height * video.width)
        flops = 2.0 * (WEIGHTS * places * UPDATES + 256 * places**2) * pairs
        return Cost("RAFT", weights=4.0 * WEIGHTS, activations=held, flops=flops,
                    source="as published")  # fmt: skip

    def ready(self) -> None:
        """Check that torchvision and the weights are there."""
        check_vision(NEEDS)
        published("weights", self.weights, FLOW)

    def built(self) -> Any:
        """RAFT.

        Raises:
            InputError: torchvision is missing, or the weights cannot be read.
        """
        check_vision(NEEDS)
        models = importlib.import_module("torchvision.models.optical_flow")
        model = models.raft_large(weights=None, progress=False)
        filled("weights", model, published("weights", self.weights, FLOW))
        return model

    def values(self, clip: Clip) -> Tensor:
        """The video's value, (1,)."""
        height, width = clip.frames.shape[1:3]
        return torch.tensor([float(is_dynamic(self.speeds(clip), height, width))])

    def speeds(self, clip: Clip) -> Tensor:
        """How fast the fastest places move from one frame to the next, of about 8 frames a second,
        in pixels: (n - 1,)."""
        if min(clip.frames.shape[1:3]) < LEAST_SIDE:
            raise Unmeasured(f"frames below {LEAST_SIDE} px")
        chosen = at_flow_rate(clip.frames, clip.fps).permute(0, 3, 1, 2)
        speeds = [self._speed(pair) for pair in zip(chosen[:-1], chosen[1:], strict=True)]
        return torch.cat(speeds) if speeds else torch.zeros(0)

    def _speed(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        first, second = (padded(frame[None].to(self.device).float()) / 127.5 - 1 for frame in pair)
        return top_speed(self.model(first, second, num_flow_updates=UPDATES)[-1]).cpu()


@checked
class ImagingQuality(ModelDimension):
    """Technical quality of each frame by MUSIQ, trained on SPAQ; needs the package pyiqa.

    pyiqa is for noncommercial use (PolyForm-Noncommercial-1.0.0), so it is no dependency of this
    project and the dimension is not part of critic=vbench.

    Args:
        weights: the file ``musiq_spaq_ckpt-358bb6af.pth``.
    """

    name, least = "imaging_quality", 1

    def __init__(self, weights: Text) -> None:
        check_file("weights", weights)
        self.weights = weights

    @cached_property
    def identity(self) -> str:
        """Of the weights."""
        return f"vbench-{self.name}@1#{file_sha256(Path(self.weights))[:8]}"

    def ready(self) -> None:
        """Check that pyiqa is there."""
        musiq()

    def built(self) -> Any:
        """MUSIQ.

        Raises:
            InputError: pyiqa is missing, or the weights cannot be read.
        """
        model = musiq()(pretrained=False)
        filled("weights", model, self.weights)
        return model

    def values(self, clip: Clip) -> Tensor:
        """Of each frame, (T,)."""
        frames = clip.frames.permute(0, 3, 1, 2).split(1)
        scores = [self.model(for_musiq(one.to(self.device).float())) for one in frames]
        return torch.stack([score.reshape(()) for score in scores]) / 100


def channels_first(clip: Clip, device: str) -> Iterator[Tensor]:
    """A clip's frames, `BATCH` at a time, float (K, 3, H, W) from 0 to 255 on a device."""
    for part in clip.frames.split(BATCH):
        yield part.permute(0, 3, 1, 2).to(device).float()
