"""Is one checkpoint better than another? python compare.py a=RUN/round_1 b=RUN/round_3

python compare.py a=RUN/base b=RUN                               the base model and the best round
python compare.py a=RUN/base b=RUN eval_critic=human n=1 prompts_count=20           people judge
python compare.py a=RUN/round_1 b=RUN/round_3 dry_run=true       how many videos are to be made
"""

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import hydra
from omegaconf import DictConfig

from app.compare_settings import (
    PRECISIONS,
    Found,
    Ground,
    categories_of,
    check_compare,
    found,
    ground_of,
    judge_of,
)
from app.ending import ended
from app.entry import build, friendly, refuse_missing, refuse_misspelt, register_resolvers
from app.free_text import as_typed
from app.output import show
from app.sample_settings import backbone_of, is_shipped, sampling_of
from ipo_lightning.errors import InputError, readable, within

if TYPE_CHECKING:
    from torch import device, nn

    from ipo_lightning.comparison.figures import Sides
    from ipo_lightning.critics.stage.critique import Critique
    from ipo_lightning.evaluation import EvaluatedVideo
    from ipo_lightning.parallel.runtime import Runtime
    from ipo_lightning.policy import Policy
    from ipo_lightning.sampling import PromptSeeds
    from ipo_lightning.storage.records import Candidate
    from ipo_lightning.storage.store import Store

register_resolvers()


class Side:
    """One of the two checkpoints, with what makes its videos.

    Args:
        place: where its network computes.
    """

    def __init__(self, cfg: DictConfig, one: Found, store: "Store", place: "device") -> None:
        from ipo_lightning.sampling import Sampler

        self.found, self.place = one, place
        self.node = backbone_of(cfg, one.checkpoint, one.saved)
        rollout = one.saved.get("rollout") or {}
        with readable(one.place):
            self.policy: Policy = build(self.node, "backbone")
            sampling = sampling_of(cfg, one.saved, self.node)
            sampling = replace(sampling, batch_size=rollout.get("batch_size"))
            lossless = bool(rollout.get("lossless", is_shipped(self.node)))
            self.sampler = Sampler(self.policy, store, sampling, lossless).independent()
            self.shape = self.policy.latent_shape

    @cached_property
    def network(self) -> "nn.Module":
        """The network with the checkpoint's weights."""
        from ipo_lightning.hub.checkpoints import load_into

        return load_into(self.found.checkpoint, self.policy).to(self.place)

    @cached_property
    def fingerprint(self) -> str:
        """Of the policy; that of a finished round is known without its weights."""
        from ipo_lightning.policy import trained_weights
        from ipo_lightning.storage.layout import RunDir
        from ipo_lightning.storage.store import fingerprint, fingerprint_tensors

        if self.found.checkpoint.kind in ("base", "pipeline"):
            return self.policy.identity
        if self.found.round is not None and self.found.run is not None:
            known = RunDir(self.found.run).round(self.found.round).fingerprint()
            if known is not None:
                return known
        weights = trained_weights(self.network) or dict(self.network.named_parameters())
        scales = [
            [one.r, one.lora_alpha, one.use_rslora, one.rank_pattern, one.alpha_pattern]
            for one in getattr(self.network, "peft_config", {}).values()
        ]
        return fingerprint([self.policy.identity, scales, fingerprint_tensors(weights)])

    def missing(self, units: "list[PromptSeeds]", runtime: "Runtime") -> "list[PromptSeeds]":
        """The prompts whose videos are yet to be made."""
        return self.sampler.missing(self.fingerprint, units, runtime.precision)

    def videos(self, units: "list[PromptSeeds]", runtime: "Runtime") -> "list[Candidate]":
        """The videos of the prompts, those in the store among them."""
        import torch

        # Where nothing is to be made, no weights are read.
        network = self.network if self.missing(units, runtime) else torch.nn.Module()
        label = f"{self.found.key}: videos"
        with torch.no_grad():
            return self.sampler.generate(self.fingerprint, units, network, runtime, label)


class Order(NamedTuple):
    """What is asked for, settled."""

    cfg: DictConfig
    a: Side
    b: Side
    ground: Ground
    units: "list[PromptSeeds]"
    judge: "Critique"
    runtime: "Runtime"
    categories: dict[str, str]


def compare(cfg: DictConfig) -> dict[str, Any] | None:
    """Compare the two checkpoints as ``cfg`` describes.

    Returns:
        What compare.json holds; None where only the plan was asked for, or people are to answer
        first.

    Raises:
        InputError: a setting or a checkpoint is wrong.
    """
    refuse_missing(cfg)
    check_compare(cfg)
    from app.process import settle
    from ipo_lightning.critics.protocols import AnswersPending, CriticGone

    settle(cfg)
    order = ordered(cfg)
    show(plan(order))
    if cfg.dry_run:
        return None
    refuse_other(folder_of(order), made_of(order))
    with within("eval_critic"):
        order.judge.ready()
    try:
        sides = judged(order)
    except AnswersPending as pending:
        show(f"{pending}\nthen go on with: {command()}")
        return None
    except CriticGone as gone:
        raise InputError(f"{gone}; what was answered is kept, the same command goes on") from gone
    return finish(order, sides)


# -------------------------------------------------------------------- before anything is made


def ordered(cfg: DictConfig) -> Order:
    """Everything that can be refused before weights are loaded, and one look at a hub."""
    from app.process import device_of
    from ipo_lightning.critics.stage.critique import critique_of
    from ipo_lightning.storage.store import Store

    both = found("a", str(cfg.a)), found("b", str(cfg.b))
    run = next((one for one in reversed(both) if one.run is not None), both[1])
    store, place = Store(str(cfg.paths.store)), device_of(cfg)
    with readable(run.place):  # its settings may be of anybody
        ground, node = ground_of(cfg, run), judge_of(cfg, both, run)
        judge = critique_of(build(node, "eval_critic"), store, held_out=True)
    a, b = (Side(cfg, one, store, place) for one in both)
    if a.shape != b.shape:
        raise InputError(
            f"a={cfg.a} has latents of {tuple(a.shape)}, b={cfg.b} of {tuple(b.shape)}: they "
            "cannot start from the same noise"
        )
    with readable(run.place):
        runtime = runtime_of(cfg, run.saved, b.node, place)
        categories = categories_of(cfg, run)
    units = units_of(ground, (a, b), runtime)
    return Order(cfg, a, b, ground, units, judge, runtime, categories)


def units_of(ground: Ground, sides: tuple[Side, Side], runtime: "Runtime") -> "list[PromptSeeds]":
    """Prompts and seeds: as many videos of each as the run makes where it has made all of them."""
    if ground.n < ground.run_n:
        wider = list(seeded(ground, ground.run_n))
        if not any(side.missing(wider, runtime) for side in sides):
            return wider
    return list(seeded(ground, ground.n))


def seeded(ground: Ground, n: int) -> "Iterator[PromptSeeds]":
    """As `ipo_lightning.evaluation.Evaluation` draws the noise of a prompt's videos."""
    from ipo_lightning.sampling import PromptSeeds
    from ipo_lightning.seeds import derive_seed

    for place, prompt in ground.prompts:
        seeds = (derive_seed(ground.seed, ground.purpose, place, k) for k in range(n))
        yield PromptSeeds(place, prompt, tuple(seeds))


def runtime_of(
    cfg: DictConfig, saved: dict[str, Any], node: dict[str, Any], place: "device"
) -> "Runtime":
    """Device, precision and threads; several prompts at a time where the run would do so."""
    from ipo_lightning.parallel import runtime
    from ipo_lightning.parallel.runtime import Runtime
    from ipo_lightning.parallel.workers import Workers

    alone = place.type != "cpu" or node.get("attention") or node.get("compile")
    workers = Workers(threads=1 if alone else os.cpu_count() or 1)
    own = (saved.get("trainer") or {}).get("precision")
    precision = str(cfg.trainer.precision or own or PRECISIONS[0])
    named = {one.partition("-")[0]: one for one in PRECISIONS}
    precision = named.get(precision, precision)
    if precision not in PRECISIONS:
        raise InputError(f"trainer.precision={precision} of the run cannot be sampled with here; "
                         f"give one of {', '.join(PRECISIONS)}")  # fmt: skip
    context = partial(arithmetic, precision, place.type)
    return Runtime(place, runtime.arithmetic(precision), context, workers)


def arithmetic(precision: str, kind: str) -> AbstractContextManager[Any]:
    """What is entered around a forward."""
    import torch

    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return torch.autocast(kind, half[precision]) if precision in half else nullcontext()


def plan(order: Order) -> str:
    """How many videos there are, and how many are to be made."""
    ground = order.ground
    of = f"of the {ground.split} split" if ground.split else f"of {order.cfg.prompts}"
    lines = [f"{len(ground.prompts)} prompts {of}, {ground.n} videos of each, seed {ground.seed}"]
    for side in (order.a, order.b):
        todo = sum(len(unit.seeds) for unit in side.missing(order.units, order.runtime))
        total = len(ground.prompts) * ground.n
        lines.append(f"{side.found.key}: {side.found.ckpt}: {total} videos, {todo} to make")
    return "\n".join([*lines, f"judge: {order.judge.identity}"])


# -------------------------------------------------------------------- videos, and what follows


def judged(order: Order) -> "Sides":
    """The videos of both with the judge's scores; a judge that compares shows b's beside a's."""
    from ipo_lightning.comparison.figures import Sides

    made = [side.videos(order.units, order.runtime) for side in (order.a, order.b)]
    a, b = ([one for one in some if one.candidate < order.ground.n] for some in made)
    against = {(one.prompt_index, one.candidate): one.video for one in a}
    return Sides(scored(order, "a", a, None), scored(order, "b", b, against))


def scored(
    order: Order,
    key: str,
    candidates: "list[Candidate]",
    against: dict[tuple[int, int], str] | None,
) -> "list[EvaluatedVideo]":
    """The judge's scores of one checkpoint's videos."""
    from ipo_lightning.evaluation import EvaluatedVideo

    workers, place = order.runtime.workers, str(order.runtime.device)
    label = f"{key}: judge"
    verdicts = order.judge.score(candidates, against, workers, place, label)
    return [
        EvaluatedVideo(
            prompt_index=one.prompt_index, prompt=one.prompt, candidate=one.candidate,
            seed=one.seed, video=one.video, score=None, dims={}, eval_score=said.score,
            eval_dims=said.dims, gauges={},
        )
        for one, said in zip(candidates, verdicts, strict=True)
    ]  # fmt: skip


def finish(order: Order, sides: "Sides") -> dict[str, Any]:
    """Write the comparison, show it, and return what compare.json holds."""
    from ipo_lightning.comparison.figures import figures, people, video_rows
    from ipo_lightning.comparison.page import text, write_comparison

    cfg, ground = order.cfg, order.ground
    critic = getattr(order.judge, "critic", None)
    answers = getattr(critic, "answers", None)  # of people
    result = {
        "made_of": made_of(order), "a": str(cfg.a), "b": str(cfg.b),
        "judge": order.judge.identity, "split": ground.split,
        "prompts": len(ground.prompts), "n": ground.n, "seed": ground.seed,
        **figures(sides, categories=order.categories, looks=cfg.looks, difference=cfg.difference),
        **({"people": people(sides, answers)} if answers is not None else {}),
        "command": command(),
    }  # fmt: skip
    rows = video_rows(sides, order.categories)
    page = write_comparison(folder_of(order), result, rows, finder(order))
    show(f"\n{text(result)}\n\npage: {page}")
    return result


def finder(order: Order) -> Callable[[str], Path]:
    """Name of a video -> its file."""
    store = order.a.sampler.store
    return lambda name: store.path("videos", name, ".mp4")


def made_of(order: Order) -> str:
    """Fingerprint of both policies, prompts, noise and judge; people's answers may still come."""
    from ipo_lightning.storage.store import fingerprint

    people = hasattr(getattr(order.judge, "critic", None), "answers")
    judge = "people" if people else order.judge.identity
    both = order.a.fingerprint, order.b.fingerprint
    return fingerprint([*both, order.ground._asdict(), judge])


def refuse_other(folder: Path, now: str) -> None:
    """Refuse a folder that holds a comparison of something else.

    Raises:
        InputError: names it.
    """
    from ipo_lightning.comparison.page import FOUND
    from ipo_lightning.storage.run_files import read_object

    if not (folder / FOUND).exists():
        return
    old = read_object(folder / FOUND, "remove it, and the comparison is made anew")
    if old.get("made_of") != now:
        raise InputError(
            f"{folder} holds a comparison of other policies, prompts or judges (a={old.get('a')}, "
            f"b={old.get('b')}): give another name=NAME"
        )


def folder_of(order: Order) -> Path:
    """Where the comparison lies: its own name, or one that others do not share."""
    cfg = order.cfg
    place = Path(cfg.paths.outputs, "comparisons")
    if cfg.name is not None:
        return place / str(cfg.name)
    both = " ".join("-".join(Path(one).parts[-2:]) for one in (str(cfg.a), str(cfg.b)))
    words = re.sub(r"[^A-Za-z0-9]+", "-", both).strip("-")[:60]
    return place / f"{words.lower()}-{made_of(order)[:6]}"


def command() -> str:
    """The command that was given."""
    return shlex.join(["python", *sys.argv])


@hydra.main(version_base="1.3", config_path="conf", config_name="compare")
def main(cfg: DictConfig) -> None:
    """The command line."""
    with friendly(cfg.get("debug") is True):
        compare(cfg)


if __name__ == "__main__":
    with friendly("debug=true" in sys.argv):
        sys.argv[1:] = as_typed("compare", sys.argv[1:])
        refuse_misspelt("compare", sys.argv[1:])
    with ended(sys.argv[1:]):
        main()
