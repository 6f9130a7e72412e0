"""Which ways to save memory go together; what cannot work is refused before a heavy import."""

from importlib.metadata import version
from importlib.util import find_spec

from omegaconf import DictConfig, ListConfig, OmegaConf

from app.entry import degrees_of
from ipo_lightning.errors import InputError
from ipo_lightning.parallel.degrees import Degrees, check_world

TRUE = ("bf16-true", "16-true")
PACKAGES = ("bitsandbytes", "torchao")
"""Packages of optimizers, all of the extra gpu."""
INTEGERS_IN_SHARDS = (2, 12)
"""The first torch whose FSDP2 shards weights that are integers."""
NEAREST = ("torch", *PACKAGES)
"""Packages whose optimizers round weights to the nearest unless they are told otherwise."""


def check_memory(cfg: DictConfig) -> None:
    """Refuse settings of precision, optimizer and reference that exclude each other."""
    check_precision(cfg)
    if str(cfg.trainer.precision) in TRUE:
        raise InputError(
            f"trainer.precision={cfg.trainer.precision} casts the batch as well, its noise levels "
            "and noise among it; give backbone.weights=bfloat16 with trainer.precision=bf16-mixed"
        )
    _check_optimizer(cfg)
    if cfg.backbone.get("weights") == "bfloat16":
        _check_bfloat16(cfg)
    if cfg.backbone.get("quantize"):
        _check_quantised(cfg)
    if cfg.reference.get("offload"):
        _check_offload(cfg)
    if shards(cfg):
        _check_sharded_rollout(cfg)
    if samples_from_shards(cfg):
        _check_together(cfg, "trainer.strategy.gather_to_sample=false")
    if (degrees := degrees_of(cfg)).size > 1:
        _check_groups(cfg, degrees)
        _check_together(cfg, f"trainer.strategy ({degrees})")


def check_precision(cfg: DictConfig) -> None:
    """Refuse a precision that these networks do not train in."""
    if str(cfg.trainer.precision) == "16-mixed":
        raise InputError(
            "trainer.precision=16-mixed: float16 overflows in these networks, and a skipped step "
            "is an error here; choose bf16-mixed or 32-true"
        )


def _check_optimizer(cfg: DictConfig) -> None:
    target = str(cfg.optim.optimizer._target_)
    package, name = target.split(".")[0], target.rpartition(".")[2]
    if package in PACKAGES and find_spec(package) is None:
        raise InputError(
            f"optim.optimizer={target} needs the package {package}: install the extra gpu "
            "(make extras EXTRAS=gpu), or choose optim=adamw"
        )
    if not shards(cfg):
        return
    if package == "bitsandbytes":
        raise InputError(
            f"optim.optimizer={target} does not know shards; under trainer=fsdp choose "
            "optim=adamw8bit_torchao with trainer.strategy.sharded_checkpoints=true"
        )
    small = package == "torchao" and name != "_AdamW"
    if small and not cfg.trainer.strategy.get("sharded_checkpoints"):
        raise InputError(
            f"optim.optimizer={target}: a run in shards cannot resume its 8-bit state from one "
            "file; give trainer.strategy.sharded_checkpoints=true"
        )


def _check_bfloat16(cfg: DictConfig) -> None:
    if str(cfg.trainer.precision) != "bf16-mixed":
        raise InputError(
            f"backbone.weights=bfloat16 with trainer.precision={cfg.trainer.precision}: weights in "
            "bfloat16 compute in bfloat16; give trainer.precision=bf16-mixed"
        )
    if cfg.backbone.get("lora"):
        return  # an adapter is float32
    optimizer = cfg.optim.optimizer
    package = str(optimizer._target_).split(".")[0]
    if package in NEAREST and not optimizer.get("bf16_stochastic_round"):
        raise InputError(
            f"backbone.weights=bfloat16 with {optimizer._target_}: an update below 1/256 of a "
            "weight is lost in rounding to the nearest; choose optim=adamw_bf16, or "
            "optim=adamw8bit_torchao with optim.optimizer.bf16_stochastic_round=true"
        )


def _check_quantised(cfg: DictConfig) -> None:
    kind = cfg.backbone.quantize
    if not cfg.backbone.get("lora"):
        raise InputError(
            f"backbone.quantize={kind}: rounded weights do not train; give backbone.lora"
        )
    torch = version("torch")  # importing it takes a second
    if shards(cfg) and tuple(map(int, torch.split(".")[:2])) < INTEGERS_IN_SHARDS:
        least = ".".join(map(str, INTEGERS_IN_SHARDS))
        raise InputError(
            f"backbone.quantize={kind} with trainer=fsdp: torch {torch} cannot shard weights of 8 "
            f"or 4 bits (pytorch issue 177844); take torch {least} or newer, or trainer=ddp, whose "
            "copies are small now"
        )


def _check_offload(cfg: DictConfig) -> None:
    if shards(cfg):
        raise InputError(
            "reference.offload=true: the network is in shards (trainer=fsdp), which have no whole "
            "blocks to move; give false, or reference=cached, which holds no second network"
        )
    if cfg.backbone.get("compile"):
        raise InputError(
            "reference.offload=true moves the blocks' weights about, which backbone.compile=true "
            "does not allow; give one of them"
        )


def _check_sharded_rollout(cfg: DictConfig) -> None:
    for key in ("rollout.compile", "rollout.draft.compile"):
        if OmegaConf.select(cfg, key):
            raise InputError(
                f"{key}=true with trainer=fsdp: blocks are compiled before they are sharded; give "
                "backbone.compile=true, which holds in rollouts too"
            )


def _check_together(cfg: DictConfig, given: str) -> None:
    """Refuse what lets a rank run other blocks, or fewer, than the others, which wait for it."""
    given = f"{given}: devices run the same blocks in turn, "
    for part in ("rollout", "rollout.draft"):
        if OmegaConf.select(cfg, f"{part}.cache") is not None:
            key = f"{part}.cache"
            raise InputError(f"{given}but {key} may leave blocks out; give {key}=null")
        if OmegaConf.select(cfg, f"{part}.batch_size") == "auto":
            raise InputError(
                f"{given}but {part}.batch_size=auto begins again where memory runs out; give a "
                "number"
            )
        if OmegaConf.select(cfg, f"{part}.weights") is not None:
            key = f"{part}.weights"
            raise InputError(f"{given}but {key} rounds whole weights; give {key}=null")
    if (prompts := cfg.callbacks.iteration.parallel_prompts or 1) > 1:
        raise InputError(
            f"{given}but callbacks.iteration.parallel_prompts={prompts} runs them for several "
            "prompts at a time; give null"
        )


def _check_groups(cfg: DictConfig, degrees: Degrees) -> None:
    """Refuse devices that make no whole groups, where their number is known."""
    devices = cfg.trainer.devices
    count = len(devices) if isinstance(devices, ListConfig) else devices
    if str(count) not in ("auto", "-1"):
        check_world(degrees, int(count) * int(cfg.trainer.num_nodes))
    if str(cfg.stages._target_).endswith(".RayEngine"):
        raise InputError(
            f"stages=ray with trainer.strategy ({degrees}): an actor makes its forwards alone; "
            "give stages=ranks, or ulysses=1 and ring=1"
        )


def samples_from_shards(cfg: DictConfig) -> bool:
    """Whether videos are made from shards, which are not gathered into a whole network."""
    return shards(cfg) and not cfg.trainer.strategy.get("gather_to_sample", True)


def shards(cfg: DictConfig) -> bool:
    """Whether the strategy is the one that shards the network (FSDP2)."""
    strategy = cfg.trainer.strategy
    return isinstance(strategy, DictConfig) and str(strategy.get("_target_")).endswith(
        ".FullyShardedStrategy"
    )
