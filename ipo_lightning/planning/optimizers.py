"""How much memory the state of an optimizer takes."""

from typing import NamedTuple


class Optimizer(NamedTuple):
    """Memory of an optimizer for each trained parameter."""

    moments: int
    """Numbers of its state."""
    bits: int | None = None
    """Bits of each; None: as many as the parameter has."""
    block: int = 0
    """Numbers that share a float32 scale; 0: no scales."""
    update: int = 0
    """More numbers during an update that works on all tensors at once, as torch's do on a GPU
    unless they are fused."""

    def state(self, itemsize: int) -> float:
        """Bytes of state for a parameter of ``itemsize`` bytes."""
        each = itemsize if self.bits is None else self.bits / 8
        return self.moments * (each + (4 / self.block if self.block else 0))


ADAM = Optimizer(2, update=1)
OPTIMIZERS = {
    "torch.optim.AdamW": ADAM,
    "torch.optim.Adam": ADAM,
    "torch.optim.NAdam": ADAM,
    "torch.optim.RAdam": ADAM,
    "torch.optim.SGD": Optimizer(1),
    "torch.optim.RMSprop": Optimizer(1, update=1),
    "bitsandbytes.optim.AdamW": Optimizer(2, 32),
    "bitsandbytes.optim.AdamW8bit": Optimizer(2, 8, 256),
    "bitsandbytes.optim.Adam8bit": Optimizer(2, 8, 256),
    "bitsandbytes.optim.PagedAdamW8bit": Optimizer(2, 8, 256),
    "bitsandbytes.optim.Lion8bit": Optimizer(1, 8, 256),
    "torchao.optim.AdamW8bit": Optimizer(2, 8, 256),
    "torchao.optim.AdamW4bit": Optimizer(2, 4, 128),
    "torchao.optim.AdamWFp8": Optimizer(2, 8, 256),
}
"""By ``_target_``; any other is taken to need what AdamW needs."""
