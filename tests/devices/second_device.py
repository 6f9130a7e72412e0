"""The second device of second_device.cpp: built, loaded, and given to Lightning's trainer.

Loading renames a backend of the whole process: it belongs into a process of its own.
"""

import ctypes
import subprocess
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy

NAME = "gpux"
SOURCE = Path(__file__).with_suffix(".cpp")


def build(library: Path) -> None:
    """Compile the device against the installed torch; about 15 CPU seconds."""
    root = Path(torch.__file__).parent
    include = [f"-I{root / folder}" for folder in ("include", "include/torch/csrc/api/include")]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    link = [f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{root / 'lib'}"]
    words = ["-O0", "-std=c++20", "-shared", "-fPIC", abi, *include, str(SOURCE)]
    subprocess.run(["g++", *words, "-o", str(library), *link], check=True)


class Device:
    """The device, once it is loaded."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.device_counts.restype = ctypes.c_char_p
        self.library.device_seed.argtypes = [ctypes.c_ulong]
        torch.utils.rename_privateuse1_backend(NAME)
        torch._register_device_module(NAME, self._module())
        self.library.device_init()
        torch.utils.generate_methods_for_privateuse1_backend(for_storage=False)
        self.first = torch.device(f"{NAME}:0")

    def counts(self) -> dict[str, int]:
        """What was counted since the last call, by name."""
        lines = self.library.device_counts().decode().splitlines()
        return {name: int(number) for name, _, number in (one.rpartition("=") for one in lines)}

    def _module(self) -> types.ModuleType:
        """``torch.gpux``: what torch and Lightning ask a backend for."""
        found = types.ModuleType(f"torch.{NAME}")
        answers: dict[str, Any] = {
            "is_available": True, "device_count": 1, "current_device": 0, "is_initialized": True,
            "_is_in_bad_fork": False, "_lazy_init": None, "synchronize": None, "empty_cache": None,
            "set_device": None, "set_rng_state": None, "get_rng_state": torch.zeros(16).byte(),
            "get_amp_supported_dtype": [torch.bfloat16, torch.float16],
        }  # fmt: skip
        for name, answer in answers.items():
            setattr(found, name, partial(lambda answer, *_: answer, answer))
        found.manual_seed_all = found.manual_seed = self._seed  # type: ignore[attr-defined]
        found.device = Entered  # type: ignore[attr-defined]
        found._initialized = True  # type: ignore[attr-defined]
        return found

    def _seed(self, seed: int) -> None:
        self.library.device_seed(int(seed) & (2**63 - 1))


class Entered:
    """``with torch.gpux.device(0)``: there is no other."""

    def __init__(self, device: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class SecondAccelerator(Accelerator):
    """The device as Lightning sees it."""

    def setup_device(self, device: torch.device) -> None:
        pass

    def teardown(self) -> None:
        pass

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    @staticmethod
    def parse_devices(devices: Any) -> int:
        return 1

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [torch.device(f"{NAME}:0")]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME

    @staticmethod
    def get_device() -> str:
        return NAME


def let_trainers_use(device: Device) -> None:
    """Have every trainer of this process train on the device, with its autocast."""
    made, mixed = L.Trainer.__init__, MixedPrecision.__init__

    def trainer(self: L.Trainer, *args: Any, **settings: Any) -> None:
        strategy = SingleDeviceStrategy(device=device.first, accelerator=SecondAccelerator())
        made(self, *args, **settings | {"accelerator": "auto", "devices": 1, "strategy": strategy})

    def precision(self: Any, kind: Any, _: str, scaler: Any = None) -> None:
        mixed(self, kind, NAME, scaler)

    L.Trainer.__init__ = trainer  # type: ignore[method-assign]
    MixedPrecision.__init__ = precision  # type: ignore[method-assign]


if __name__ == "__main__":
    build(Path(sys.argv[1]))
