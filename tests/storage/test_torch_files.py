"""No reader of a file that torch writes runs code in it, or repeats torch's advice to run it."""

import pickle
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderKLCogVideoX
from transformers import T5EncoderModel

from app.entry import REPO
from ipo_lightning.critics.scorers.frames import read_head
from ipo_lightning.critics.scorers.videoreward import read_state
from ipo_lightning.errors import InputError
from ipo_lightning.hub.checkpoints import find_checkpoint, load_into
from ipo_lightning.rounds import CheckpointFiles
from tests.helpers import tiny
from tests.helpers.damaged import Evil, saved

PIPELINE = REPO / "ipo_lightning/shapes/pipeline"


FILES: dict[str, bytes] = {
    "code": saved({"weight": Evil()}),
    "a plain pickle with code": pickle.dumps({"weight": Evil()}),
    "an old pickle with code": pickle.dumps({"weight": Evil()}, protocol=0),
    "an object": saved({"weight": Fraction(1, 2)}),
}


def part(name: str, file: str, read: Callable[[Path], Any]) -> Callable[[bytes, Path], Any]:
    """A pipeline with such weights of a part."""

    def reader(content: bytes, folder: Path) -> Any:
        pipeline = folder / "pipeline"
        shutil.copytree(PIPELINE, pipeline)
        for weights in (pipeline / name).glob("*.safetensors"):
            weights.unlink()
        (pipeline / name / file).write_bytes(content)
        return read(pipeline)

    return reader


def alone(name: str, read: Callable[[Path], Any]) -> Callable[[bytes, Path], Any]:
    """A file of its own."""

    def reader(content: bytes, folder: Path) -> Any:
        (folder / name).write_bytes(content)
        return read(folder / name)

    return reader


READERS: dict[str, Callable[[bytes, Path], Any]] = {
    "a run that goes on": alone(
        "a.ckpt", lambda file: CheckpointFiles().load_checkpoint(file, weights_only=True)
    ),
    "ckpt=": alone(
        "a.ckpt", lambda file: load_into(find_checkpoint(str(file)), tiny.policy(PIPELINE))
    ),
    "LAION's head": alone("head.pth", lambda file: read_head(str(file), 4)),
    "VideoReward": alone("model.pth", read_state),
    "a transformer": part(
        "transformer", "diffusion_pytorch_model.bin", lambda folder: tiny.policy(folder).build()
    ),
    "a VAE": part(
        "vae", "diffusion_pytorch_model.bin",
        lambda folder: tiny.policy(folder).parts.load(AutoencoderKLCogVideoX, "vae"),
    ),
    "a text encoder": part(
        "text_encoder", "pytorch_model.bin",
        lambda folder: tiny.policy(folder).parts.load(T5EncoderModel, "text_encoder"),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("reader", READERS)
def test_code_is_refused_and_not_run(
    reader: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as refused:
        READERS[reader](FILES[kind], tmp_path)
    said = str(refused.value)
    assert not (tmp_path / "owned").exists()
    assert "it is not opened" in said and str(tmp_path) in said
    assert len(said.splitlines()) <= 3 and len(said) < 500 + 3 * len(str(tmp_path))
    for advice in ("weights_only", "trust", "still be loaded", "allowlist", "torch.load"):
        assert advice not in said
