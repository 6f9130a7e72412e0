"""Multimodal checkpoints of transformers: their files, their processors, their chat templates.

A folder is read from disk, a hub id from the network or the local cache. Weights are read from
safetensors only, and code in a checkpoint is not run unless a setting allows it.
"""

import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx2
import torch
from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoProcessor

from ipo_lightning.critics.pretrained.viewing import Grid, Shown
from ipo_lightning.errors import InputError
from ipo_lightning.storage.store import folder_fingerprint

SEQUENCES = {"input_ids": None, "attention_mask": 0, "mm_token_type_ids": 0}
"""Inputs with an entry for each token -> their padding value; None: the padding token."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
"""Weights as transformers writes them: in one file, or in several that an index names."""
CONFIG, ADAPTER, ADAPTED = "config.json", "adapter_config.json", "adapter_model.safetensors"
"""A model's config; a LoRA's config and its weights."""


@contextmanager
def named(setting: str, path: str) -> Iterator[None]:
    """Name the setting of a checkpoint that cannot be read: a wrong hub id, or no network.

    Raises:
        InputError: in place of the error of the hub or of the file.
    """
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, ImportError, httpx2.HTTPError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            setting=setting,
            value=path,
            expected=f"it cannot be read: {reason} (a folder is read from disk; a hub id needs the "
            "network, or a copy in the local cache)",
        ) from error


def check_source(setting: str, path: str) -> None:
    """Check that a path is a folder, or looks like a hub id ``owner/name``.

    Raises:
        InputError: it is neither.
    """
    folder = Path(path)
    unlike = path.count("/") != 1 or path.startswith((".", "~", "/"))
    if not folder.is_dir() and (unlike or folder.parent.is_dir()):
        neither = "this is neither a folder nor a hub id (owner/name)"
        raise InputError(setting=setting, value=path, expected=neither)


def origin(setting: str, path: str, revision: str | None, file: str = "config.json") -> str:
    """``name@revision`` of a checkpoint: a folder by its contents, a hub id by its commit.

    Args:
        file: one that a hub's repository has, to learn the commit from.
    """
    if Path(path).is_dir():
        own = f"{Path(path).resolve().name}@{folder_fingerprint(path)[:16]}"
        base = adapted(setting, path)
        return f"{own}+{origin(setting, base, None)}" if base else own
    with named(setting, path):
        return f"{path}@{Path(hf_hub_download(path, file, revision=revision)).parent.name}"


def adapted(setting: str, path: str) -> str | None:
    """The base model of a folder with a LoRA, a folder or a hub id; None: it holds no LoRA.

    Raises:
        InputError: the LoRA's config does not name it.
    """
    folder = Path(path)
    if not (folder / ADAPTER).is_file() or (folder / CONFIG).is_file():
        return None
    with named(setting, path):
        base = _read(folder / ADAPTER).get("base_model_name_or_path")
        if not isinstance(base, str) or not base:
            raise ValueError(f"{ADAPTER} does not name its base model")
        return base


def find_file(setting: str, path: str, name: str, revision: str | None = None) -> Path:
    """A file of a folder or of a hub id, downloaded where it is not in the local cache.

    Raises:
        InputError: it is not there, or cannot be downloaded.
    """
    with named(setting, path):
        if not Path(path).is_dir():
            return Path(hf_hub_download(path, name, revision=revision))
        if not (Path(path) / name).is_file():
            raise FileNotFoundError(f"there is no {name}")
        return Path(path) / name


def check_weights(
    setting: str, path: str, revision: str | None = None, file: str | None = None
) -> None:
    """Check that a checkpoint's weights are available. They are neither read nor downloaded.

    Args:
        file: the file with the weights; None: `WEIGHTS`, or those that `INDEX` names.

    Raises:
        InputError: a file is missing or damaged, or the hub cannot be reached.
    """
    if base := adapted(setting, path):
        check_weights(setting, base)
        file = ADAPTED
    with named(setting, path):
        for name in [file] if file else _weights(setting, path, revision):
            here = _here(path, name, revision)
            if here is None and not _at_hub(path, name, revision):
                raise FileNotFoundError(f"there is no {name}; weights are read from safetensors")
            if here is not None and name.endswith(".safetensors"):
                with safe_open(here, "pt"):  # its header, which tells how long it must be
                    pass


def _weights(setting: str, path: str, revision: str | None) -> list[str]:
    """Names of the files with a checkpoint's weights."""
    for look in (_here, _at_hub):
        if look(path, WEIGHTS, revision):
            return [WEIGHTS]
        if look(path, INDEX, revision):
            return _shards(find_file(setting, path, INDEX, revision))
    return [WEIGHTS]


def _shards(index: Path) -> list[str]:
    """Names of the weight files in an index, all of its own folder.

    Raises:
        ValueError: it names none, or one of another folder.
    """
    names = _read(index).get("weight_map")
    files = [*names.values()] if isinstance(names, dict) else []
    if not files or not all(isinstance(one, str) and Path(one).name == one for one in files):
        raise ValueError(f"{INDEX} does not name the files of the weights")
    return sorted(set(files))


def _read(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: the file holds something else.
    """
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{file.name} does not hold a JSON object")
    return found


def _here(path: str, name: str, revision: str | None) -> Path | None:
    """A file of a folder, or of a hub id in the local cache; None: it is not there."""
    if Path(path).is_dir():
        return Path(path) / name if (Path(path) / name).is_file() else None
    kept = try_to_load_from_cache(path, name, revision=revision)
    return Path(kept) if isinstance(kept, str) else None


def _at_hub(path: str, name: str, revision: str | None) -> bool:
    """Whether the hub has a file."""
    if Path(path).is_dir() or constants.HF_HUB_OFFLINE:
        return False
    return HfApi().file_exists(path, name, revision=revision)


def check_vision(users: str = "multimodal models need") -> None:
    """Check that torchvision can be imported: the video processors of transformers need it.

    Args:
        users: who needs it, for the message.

    Raises:
        InputError: it is missing, or was built for another torch.
    """
    try:
        import torchvision  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:  # a build for another torch
        raise InputError(
            f"{users} torchvision, which is missing or was built for another torch "
            f"({str(error).splitlines()[0]}): make extras EXTRAS=critics"
        ) from error


class Processor:
    """A checkpoint's processor; it neither samples nor resizes the frames.

    Args:
        path: a folder, or a hub id.
        revision: of a hub id: branch, tag or commit.
        template: further arguments of the chat template, such as ``{"enable_thinking": False}``.
        remote_code: whether code in the checkpoint may run.
        setting: the name of the path in messages.

    Raises:
        InputError: torchvision is missing, or the files cannot be read or take no videos.
    """

    def __init__(
        self,
        path: str,
        revision: str | None = None,
        template: Mapping[str, Any] | None = None,
        remote_code: bool = False,
        setting: str = "model",
    ) -> None:
        check_vision()
        with named(setting, path):
            self.whole: Any = AutoProcessor.from_pretrained(
                path, revision=revision, trust_remote_code=remote_code
            )
        self.videos: Any = getattr(self.whole, "video_processor", None)
        self.tokenizer: Any = getattr(self.whole, "tokenizer", None)
        if self.videos is None or self.tokenizer is None:
            taken = "its processor takes no videos; choose another"
            raise InputError(setting=setting, value=path, expected=taken)
        if hasattr(self.videos, "cap_pixels_per_frame"):  # sizes are ours; unset, it warns
            self.videos.cap_pixels_per_frame = False
        self.template = dict(template or {})
        self.before, self.video, self.after = self._frame(setting, path)

    @property
    def grid(self) -> Grid:
        """The sizes of frames that the processor takes."""
        patch = getattr(self.videos, "patch_size", None)
        if patch is not None:
            side = int(patch) * int(getattr(self.videos, "merge_size", 1))
            return Grid(side, int(getattr(self.videos, "temporal_patch_size", 1)))
        size = self.videos.size
        if not (size and size.get("height") and size.get("width")):
            raise InputError(
                f"{type(self.videos).__name__} has no known setting for the size of frames"
            )
        return Grid(exact=(int(size["height"]), int(size["width"])))

    @property
    def padding(self) -> int:
        """The padding token."""
        token = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if token is None else token)

    def rendered(self, words: Sequence[str | None], opening: str = "") -> str:
        """A user's turn in the model's own chat format, up to where the answer begins.

        Args:
            words: the turn's parts in order; None: a video.
            opening: how the answer begins.
        """
        turn = "".join(self.video if part is None else part for part in words)
        return f"{self.before}{turn}{self.after}{opening}"

    def harmless(self, text: str) -> str:
        """The text with the model's special tokens broken up, see the function `harmless`."""
        return harmless(self.tokenizer, text)

    def encode(self, text: str, videos: Sequence[Shown]) -> dict[str, Tensor]:
        """A model's inputs for one turn: tokens (1, L), pixels, and their grids."""
        if not videos:
            return dict(self.whole(text=[text], return_tensors="pt"))
        told: dict[str, Any] = {
            "do_sample_frames": False,
            "do_resize": False,
            "video_metadata": [
                {"total_num_frames": one.total, "fps": one.fps, "frames_indices": [*one.indices]}
                for one in videos
            ],
        }
        frames = [one.frames for one in videos]
        made = self.whole(text=[text], videos=frames, videos_kwargs=told, return_tensors="pt")
        return {name: value for name, value in made.items() if isinstance(value, Tensor)}

    def _frame(self, setting: str, path: str) -> tuple[str, str, str]:
        """The text before a user's turn, in place of a video, and after the turn.

        Found by rendering a turn of words and a turn of a video with the chat template. The
        template itself is not used for mixed turns: some put all videos before the first word.
        """
        mark, video = "\x00", str(getattr(self.whole, "video_token", ""))
        before, _, after = self._render({"type": "text", "text": mark}).partition(mark)
        shown = self._render({"type": "video"})
        if not video or shown.count(video) != 1:
            shows = "its chat template has no place for videos"
            raise InputError(setting=setting, value=path, expected=shows)
        left, _, right = shown.partition(video)
        opening, closing = left[_shared(left, before) :], _beyond(right, after)
        if opening and opening in self._made_of(video):
            # Qwen3-VL's processor puts the marks around each stamped frame. transformers since 5.12
            # leaves the template's own around them all; its weights were trained without those.
            opening = closing = ""
        return before, opening + video + closing, after

    def _made_of(self, video: str) -> str:
        """The text that the processor makes of a video's mark."""
        size = self.grid.exact or (self.grid.side, self.grid.side)
        frames = torch.zeros(self.grid.frames, 3, *size, dtype=torch.uint8)
        blank = Shown(frames, tuple(range(len(frames))), len(frames), 1.0)
        text: str = self.tokenizer.decode(self.encode(video, [blank])["input_ids"][0])
        return text

    def _render(self, part: dict[str, str]) -> str:
        turn = [{"role": "user", "content": [part]}]
        text: str = self.whole.apply_chat_template(
            turn, tokenize=False, add_generation_prompt=True, **self.template
        )
        return text


def harmless(tokenizer: Any, text: str) -> str:
    """The text with a model's special tokens broken up: a prompt must not act as one."""
    tokens = (str(one) for one in tokenizer.added_tokens_decoder.values() if one.special)
    for token in sorted(tokens, key=len, reverse=True):
        if len(token) > 1:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def _shared(one: str, other: str) -> int:
    """Length of the common beginning of two texts."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))


def _beyond(text: str, end: str) -> str:
    """A text without the common end of it and ``end``."""
    return text[: len(text) - _shared(text[::-1], end[::-1])]


def collate(rows: Sequence[Mapping[str, Tensor]], padding: int, left: bool) -> dict[str, Tensor]:
    """Turns of different lengths as one batch.

    Args:
        rows: inputs of single turns, see `Processor.encode`.
        padding: the padding token. left: whether to pad before a turn, for generation.
    """
    longest = max(row["input_ids"].shape[1] for row in rows)
    batch = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name in SEQUENCES:
            filler = SEQUENCES[name]
            values = [
                _padded(value, longest, padding if filler is None else filler, left)
                for value in values
            ]
        batch[name] = torch.cat(values)
    return batch


def _padded(tokens: Tensor, length: int, filler: int, left: bool) -> Tensor:
    missing = length - tokens.shape[1]
    return F.pad(tokens, (missing, 0) if left else (0, missing), value=filler)


def free() -> None:
    """Free the device memory of objects that are no longer used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
