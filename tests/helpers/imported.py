"""What a run imports in its course, for processes to be forked with it: two seconds of each run.

Imported by the fork server alone, see `tests.helpers.ranks`.
"""

import gc
from importlib import import_module

from hydra.core.plugins import Plugins
from PIL import Image

MODULES = (
    "app.assembly", "lightning", "diffusers", "train", "sample", "peft.tuners",
    "diffusers.pipelines.cogvideo.pipeline_cogvideox", "transformers.models.t5.modeling_t5",
    "ipo_lightning.backbones.cogvideox", "ipo_lightning.shapes.critic",
    "ipo_lightning.shapes.judge", "torch._inductor.utils", "torch.distributed.fsdp",
    "callbacks.iteration",
)  # fmt: skip

for name in MODULES:
    import_module(name)
Image.init()
Plugins.instance()  # Hydra's search for them
gc.collect()
gc.freeze()  # or each child's collections would copy the pages of all this
gc.set_threshold(50_000, 20, 20)  # as in tests/conftest.py
