"""What the networks that look at clips of the embedded world share: frames, then time.

No layer mixes clips (group norm, not batch norm): what is seen of one does not depend on its batch.
"""

import torch
from torch import Tensor, nn

from ipo_lightning.shapes import world


class FramesThenTime(nn.Module):
    """Convolutions over each frame, then over time.

    Args:
        channels: of the two first convolutions; the third has 48.
        width: of what is known of a frame.
    """

    place: Tensor
    """(2, H, W): each pixel's row and column in [-1, 1]."""

    def __init__(self, channels: tuple[int, int], width: int) -> None:
        super().__init__()
        first, second = channels
        self.frame = nn.Sequential(
            nn.Conv2d(5, first, 5, stride=2, padding=2),
            nn.SiLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.GroupNorm(4, second),
            nn.SiLU(),
            nn.Conv2d(second, 48, 3, stride=2, padding=1),
            nn.GroupNorm(4, 48),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(48 * (world.SIZE // 8) ** 2, width),
            nn.SiLU(),
        )
        self.time = nn.Sequential(
            nn.Conv1d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv1d(width, width, 3, padding=1),
            nn.SiLU(),
        )
        axis = torch.linspace(-1, 1, world.SIZE)
        place = torch.stack(torch.meshgrid(axis, axis, indexing="ij"))
        self.register_buffer("place", place, persistent=False)

    def summary_of(self, images: Tensor, num_frames: int) -> Tensor:
        """Mean and maximum over time (N, 2 width) of the frames (N T, C, H, W) of N clips."""
        place = self.place.expand(len(images), -1, -1, -1)
        count = len(images) // num_frames
        each = self.frame(torch.cat([images, place], 1)).unflatten(0, (count, num_frames))
        over_time = self.time(each.transpose(1, 2))
        return torch.cat([over_time.mean(-1), over_time.amax(-1)], -1)
