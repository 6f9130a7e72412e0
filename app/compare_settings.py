"""What the settings of compare.py must be, and what two checkpoints are compared on.

What is not given is as in the run of ``b``, else of ``a``. A run's config.yaml may be of anybody:
it names classes of this project alone, and nothing that asks a server or runs a checkpoint's code.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from omegaconf import DictConfig, OmegaConf

from app.checks import ACCELERATOR, PATHS, ROLLOUT, Matmul, Threads, check_name
from app.entry import CONF, build, none_lacking
from app.sample_settings import hints_of_run, refuse_foreign, settings_beside
from app.signatures import check_settings
from app.twins import refuse_twins
from ipo_lightning.errors import InputError
from ipo_lightning.settings import Count, Null, Prompt, Text

if TYPE_CHECKING:
    from ipo_lightning.hub.checkpoints import Checkpoint

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
SETTINGS: dict[str, Any] = {
    **PATHS,
    **ROLLOUT,
    **ACCELERATOR,
    "a": Text,
    "b": Text,
    "split": Annotated[Literal["select", "final"] | None, Null("as in the run")],
    "prompts": Annotated[Text | None, Null("the run's")],
    "prompts_count": Annotated[Count | None, Null("all")],
    "n": Annotated[Count | None, Null("as in the run")],
    "seed": Annotated[int | None, Null("that of the run")],
    "looks": Count,
    "difference": Annotated[float | None, Null("the one that is found")],
    "name": Text | None,
    "negative_prompt": Annotated[Prompt | None, Null("as in the run")],
    "scheduler": Literal["ddim", "dpm", "unipc", "euler"] | None,
    "threads": Threads,
    "float32_matmul": Matmul,
    "trainer.precision": Annotated[Literal[PRECISIONS] | None, Null("as in the run")],
    "dry_run": bool,
    "debug": bool,
}
"""None of a class."""
HYDRAS = ("_target_", "_partial_")
"""Keys of Hydra's that a run's prompts and judge may have."""
BASE = "base"
"""Below a run's folder: the model that it started from, as ``round_0``."""
PROMPTS = ("ipo_lightning.shapes.prompts.prompts", "data.prompts.from_file")
SERVERS = (
    "ipo_lightning.critics.vlm.endpoint.EndpointVLM",
    "ipo_lightning.critics.vlm.server.Server",
)
"""Classes that would send videos, and a key, to an address."""
JUDGE = "give eval_critic=CHOICE, a judge that you choose yourself"


@none_lacking()
def check_compare(cfg: DictConfig) -> None:
    """Refuse what cannot work, before anything is loaded.

    Raises:
        InputError: names the setting, what it is, and what to give instead.
    """
    check_settings(cfg, {**SETTINGS, **hints_of_run()})
    if cfg.name is not None:
        check_name(str(cfg.name))
    if cfg.prompts is not None and cfg.split is not None:
        raise InputError(f"split={cfg.split}: prompts={cfg.prompts} are compared on as a whole; "
                         "give one of the two")  # fmt: skip


# -------------------------------------------------------------------- checkpoints


class Found(NamedTuple):
    """One of the two checkpoints."""

    key: str
    """``a`` or ``b``."""
    ckpt: str
    checkpoint: "Checkpoint"
    saved: dict[str, Any]
    """The settings of its run; none where it lies alone."""

    @property
    def run(self) -> Path | None:
        """The folder of its run."""
        config = self.checkpoint.config
        return config.parent if config is not None and self.saved else None

    @property
    def place(self) -> Path:
        """What says how it was made, for messages."""
        return self.checkpoint.config or Path(self.checkpoint.path)

    @property
    def round(self) -> int | None:
        """The round of its run whose policy it is; None for other checkpoints."""
        if self.checkpoint.kind == "base":
            return 0
        file = Path(self.checkpoint.path)
        folder = next((p for p in (file, *file.parents[:1]) if p.name == "policy"), None)
        number = "" if folder is None else folder.parent.name.removeprefix("round_")
        return int(number) if self.run is not None and number.isdecimal() else None


def found(key: str, ckpt: str) -> Found:
    """What a checkpoint is, and the settings of the run that it lies in.

    Raises:
        InputError: there is none, or its run's settings are not to be trusted.
    """
    from ipo_lightning.hub.checkpoints import find_checkpoint

    path = Path(ckpt)
    base = path.name == BASE and (path.parent / "round_0").is_dir()
    try:
        checkpoint = find_checkpoint(str(path.with_name("round_0")) if base else ckpt)
    except InputError as error:
        raise InputError(re.sub(r"\bckpt=", f"{key}=", str(error))) from error
    return Found(key, ckpt, checkpoint, settings_beside(checkpoint))


# -------------------------------------------------------------------- what they are compared on


class Ground(NamedTuple):
    """Prompts and noise."""

    prompts: list[tuple[int, str]]
    """Place in the whole list, and prompt: the noise depends on the place."""
    split: str | None
    n: int
    run_n: int
    """Videos per prompt that the run makes, of which the first are compared."""
    seed: int
    purpose: str
    """Of the seeds, see `ipo_lightning.evaluation.Evaluation`."""


def ground_of(cfg: DictConfig, run: Found) -> Ground:
    """What is given, else what the run evaluates on.

    Args:
        run: the checkpoint whose run it is.

    Raises:
        InputError: neither says which prompts.
    """
    from ipo_lightning.video import spread

    saved = run.saved
    own = saved.get("evaluation")
    evaluation: Mapping[str, Any] = own if isinstance(own, Mapping) else {}
    split = None if cfg.prompts else str(cfg.split or evaluation.get("split") or "final")
    choice = split == "select" and evaluation.get("split") != "select"
    run_n = evaluation.get("choice_n" if choice else "n") or 4
    prompts = list(enumerate(_prompts(cfg, run, evaluation, split)))
    count = cfg.prompts_count or len(prompts)
    if count > len(prompts):
        raise InputError(setting="prompts_count", value=count, expected=f"there are {len(prompts)}")
    seed = saved.get("seed", 0) if cfg.seed is None else cfg.seed
    kept = [prompts[place] for place in spread(len(prompts), count)]
    return Ground(
        kept, split, cfg.n or run_n, run_n, int(seed), "choice" if choice else "evaluation"
    )


def _prompts(
    cfg: DictConfig, run: Found, evaluation: Mapping[str, Any], split: str | None
) -> list[str]:
    if cfg.prompts is not None:
        from data.prompts import read_prompts

        return read_prompts(Path(cfg.prompts))
    data = run.saved.get("data")
    node = data.get("prompts") if isinstance(data, Mapping) else None
    if not isinstance(node, dict):
        raise InputError(
            "prompts: neither checkpoint lies in a run whose held-out prompts are known; give "
            "prompts=FILE"
        )
    refuse_foreign(node, "data.prompts", run.place, PROMPTS, "give prompts=FILE", HYDRAS)
    prompts: list[str] = build({**node, "_partial_": True}, "data.prompts")(split)
    return prompts[: evaluation.get("prompts")]


def categories_of(cfg: DictConfig, run: Found) -> dict[str, str]:
    """Prompt -> category, of a column of the prompts' file, else of the run's evaluation."""
    from ipo_lightning.storage.store import read_jsonl
    from ipo_lightning.storage.tables import SUFFIXES, rows_of
    from ipo_lightning.storage.texts import one_line

    data = run.saved.get("data")
    node = data.get("prompts") if isinstance(data, Mapping) else None
    file = cfg.prompts or (node.get("path") if isinstance(node, Mapping) else None)
    rows: list[Mapping[str, Any]] = []
    if isinstance(file, str) and Path(file).suffix.lower() in SUFFIXES and os.path.isfile(file):
        rows = [row for _, row in rows_of(Path(file))]
    elif run.run is not None and (known_rows := run.run / "round_0/evaluation.jsonl").exists():
        rows = list(read_jsonl(known_rows))
    known = [(row.get("prompt"), row.get("category")) for row in rows]
    return {one_line(str(prompt)): str(name) for prompt, name in known if prompt and name}


# -------------------------------------------------------------------- the judge


def judge_of(cfg: DictConfig, both: "tuple[Found, Found]", run: Found) -> Any:
    """The settings of the judge: those given, else those of the run.

    Args:
        run: the checkpoint whose run it is.

    Raises:
        InputError: there is none, it is not to be trusted, or it is the twin of a run's critic.
    """
    given = cfg.get("eval_critic")
    node: Any = (
        OmegaConf.to_container(given, resolve=True) if given else run.saved.get("eval_critic")
    )
    if not isinstance(node, dict):
        raise InputError(f"eval_critic: neither checkpoint lies in a run with a judge; {JUDGE}")
    if not given:
        node = _trusted_judge(node, cfg, run.place)
    for one in both:
        refuse_twins(one.saved.get("critic", {}), node)
    return node


def _trusted_judge(node: dict[str, Any], cfg: DictConfig, place: Path) -> dict[str, Any]:
    """A run's judge, as far as it may be built without having been chosen here."""
    refuse_foreign(node, "eval_critic", place, shipped_critics() - {*SERVERS}, JUDGE, HYDRAS)
    if _runs_code(node):
        raise InputError(f"{place}: its eval_critic has remote_code=true; {JUDGE}")
    if "answers" in node:  # where pages are written
        return {**node, "answers": f"{cfg.paths.outputs}/answers"}
    return node


def shipped_critics() -> set[str]:
    """Every ``_target_`` in the shipped critics."""
    files = [
        file for group in ("critic", "eval_critic") for file in CONF.glob(f"{group}/**/*.yaml")
    ]
    named = (re.findall(r"_target_: ([\w.]+)", file.read_text("utf-8")) for file in files)
    return {target for some in named for target in some}


def _runs_code(node: Any) -> bool:
    if isinstance(node, dict):
        return bool(node.get("remote_code")) or any(map(_runs_code, node.values()))
    return isinstance(node, list) and any(map(_runs_code, node))
