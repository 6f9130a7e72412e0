"""How this process computes and what it prints: threads, arithmetic, device, silenced loggers."""

import logging
import os
import warnings

import torch
from omegaconf import DictConfig
from transformers.utils.logging import disable_progress_bar

from app.output import choose


def settle(cfg: DictConfig) -> None:
    """Set this process up: threads, arithmetic, output; silence where the run speaks for itself."""
    choose(cfg)
    if cfg.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(cfg.threads)  # for the ranks that Lightning starts
        torch.set_num_threads(cfg.threads)
    torch.set_float32_matmul_precision(cfg.get("float32_matmul", "highest"))
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # else it tells of each request
    disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*all_gather_tensor.*deprecated")  # diffusers' hooks
    warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks.*")  # diffusers, of hub ids


def device_of(cfg: DictConfig) -> torch.device:
    """Where a single process computes."""
    return torch.device("cpu" if accelerator_of(cfg) == "cpu" else "cuda")


def accelerator_of(cfg: DictConfig) -> str:
    """What ``auto`` stands for: CUDA or the CPU; Apple's GPUs lack the float64 we count with."""
    if cfg.trainer.accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return str(cfg.trainer.accelerator)
