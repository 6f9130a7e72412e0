"""From a composed configuration to the objects that run it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar
from omegaconf import DictConfig, OmegaConf

from app.checkpoint_settings import SettingsInCheckpoints
from app.entry import build, degrees_of, one_line, within_clone
from app.held_out import evaluated_prompts
from app.identity import (
    Identity,
    identity_of,
    settings_of,
)
from app.keys import make
from app.loggers import built_as, loggers_of
from app.output import emit, in_json
from app.process import accelerator_of
from callbacks.progress import StageLog
from callbacks.stopping import GuardStopping
from ipo_lightning.critics.stage.comparing import Couples
from ipo_lightning.critics.stage.critique import (
    Critique,
    LatentCritique,
    critique_of,
    draft_critique_of,
)
from ipo_lightning.draws.encoding import RealSource
from ipo_lightning.errors import InputError, within
from ipo_lightning.evaluation import Evaluation
from ipo_lightning.exchange.source import LabelSource
from ipo_lightning.guards import Guards
from ipo_lightning.hub.cards import started
from ipo_lightning.labelling import Labelling
from ipo_lightning.module import PreferenceModule
from ipo_lightning.parallel.context import check_policy
from ipo_lightning.policy import Policy, Sampling
from ipo_lightning.rounds import CheckpointFiles, RolloutPlan, RoundStage, round_stages
from ipo_lightning.rounds.datamodule import PreferenceDataModule
from ipo_lightning.rounds.drafts import Drafter
from ipo_lightning.rounds.iteration import IterationCallback
from ipo_lightning.rounds.served import ServedSampler
from ipo_lightning.rounds.trainer import check_trainer
from ipo_lightning.rounds.trial import TrialStage
from ipo_lightning.sampling import Sampler
from ipo_lightning.serving.protocols import VideoMaker
from ipo_lightning.storage.layout import RunDir
from ipo_lightning.storage.store import Store

INSTEAD = {
    "logger": "choose one by logger=",
    "max_epochs": "an epoch is a round: give round=",
    "callbacks": "give +callbacks.NAME._target_=CLASS",
    "enable_checkpointing": "give callbacks.iteration.checkpoint_every=",
}
"""What to give in place of a trainer's argument that the run determines."""

STEPS = "num_inference_steps"
"""What a cache config of diffusers calls the number of steps."""

Prompts = Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class Parts:
    """Everything a run is made of, before the trainer."""

    run: RunDir
    policy: Policy
    module: PreferenceModule
    datamodule: PreferenceDataModule
    rollout: RolloutPlan
    drafter: Drafter | None
    labelling: Labelling
    critique: Critique
    imported: LabelSource | None
    real: RealSource | None
    evaluation: Evaluation
    choice: Evaluation | None
    guards: Guards
    iteration: IterationCallback

    @property
    def held_out(self) -> Sequence[str]:
        """The prompts that policies are evaluated on."""
        return self.evaluation.prompts

    def notes(self) -> list[str]:
        """What the critic itself has to say, such as how its annotators worked."""
        notes = getattr(getattr(self.critique, "critic", None), "notes", None)
        return list(notes()) if notes else []

    def identity(self, cfg: DictConfig, *, goes_on: bool) -> Identity:
        """What the run is made of beside its settings.

        Args:
            goes_on: False: nothing is left to make, and the base model need not be there.
        """
        lists: dict[str, Sequence[str]] = {
            "training prompts": self.rollout.prompts,
            "held-out prompts": self.evaluation.prompts,
        }
        if goes_on:  # of a hub by its commit, which a branch's name does not tell
            lists[within_clone(self.policy.path)] = [self.policy.identity]
        return identity_of(cfg, [self.imported, self.real], lists)


def assemble(cfg: DictConfig) -> Parts:
    """Instantiate the parts of a run; nothing heavy is loaded yet."""
    run, store = RunDir(f"{cfg.paths.outputs}/{cfg.name}"), Store(cfg.paths.store)
    policy: Policy = build(cfg.backbone, "backbone")
    check_policy(policy, degrees_of(cfg))
    module = make_module(cfg, policy)
    prompts: Prompts = build(cfg.data.prompts, "data.prompts")
    rollout = make(RolloutPlan, cfg, prompts("train"))
    sampler = make_sampler(cfg, policy, store, run)
    labelling: Labelling = build(cfg.labelling, "labelling")
    critique = _critique(cfg, labelling, store)
    drafter = make_drafter(cfg, sampler, critique, labelling, module.label_kind)
    evaluation = _evaluation(cfg, prompts, sampler, critique)
    choice = _choice(cfg, prompts, evaluation)
    imported = _imported(cfg, prompts)
    real: RealSource | None = build(cfg.data.real, "data.real") if cfg.regularise.real else None
    guards: Guards = build(cfg.guards, "guards")
    stages = round_stages(
        sampler,
        evaluation,
        rollout=rollout,
        drafter=drafter,
        critique=critique,
        labelling=labelling,
        imported=imported,
        real=real,
        calibration=build(cfg.calibration, "calibration"),
        guards=guards,
        choice=choice,
        trial=_trial(critique, evaluation),
    )
    iteration = _iteration(cfg, run, stages)
    datamodule = make(PreferenceDataModule, cfg, store)
    return Parts(run, policy, module, datamodule, rollout, drafter, labelling, critique, imported,
                 real, evaluation, choice, guards, iteration)  # fmt: skip


def _trial(critique: Critique, evaluation: Evaluation) -> TrialStage:
    """Tries critic and judge, each by the setting that chooses it."""
    both = {"critic": critique, "eval_critic": evaluation.eval_critic}
    critics = {role: getattr(one, "critic", one) for role, one in both.items()}
    return TrialStage(critics, evaluation.prompts[0], evaluation.sampler.store)


def _critique(cfg: DictConfig, labelling: Labelling, store: Store) -> Critique:
    """Asks the critic what the labelling wants to know."""
    return critique_of(build(cfg.critic, "critic"), store, _couples(labelling))


def _couples(labelling: Labelling) -> Couples:
    return Couples(labelling.schedule, labelling.both_orders, labelling.filters.refuse)


def _iteration(cfg: DictConfig, run: RunDir, stages: Sequence[RoundStage]) -> IterationCallback:
    """The callback that takes the trainer through the stages."""
    # The kernels of attention and what is compiled hold for a whole process: threads cannot share.
    parts = (cfg.backbone, cfg.rollout, cfg.rollout.get("draft") or {})
    alone = any(part.get(name) for part in parts for name in ("attention", "compile"))
    callback: IterationCallback = build(
        cfg.callbacks.iteration,
        "callbacks.iteration",
        run=run,
        stages=stages,
        until=None if cfg.until == "evaluation" else cfg.until,
        requeue=cfg.requeue,
        engine=build(cfg.stages, "stages"),
        **({"parallel_prompts": 1} if alone else {}),
    )
    return callback


def _imported(cfg: DictConfig, prompts: Prompts) -> LabelSource | None:
    """Labels from elsewhere, but for the prompts that are evaluated on."""
    if cfg.data.get("imported") is None:
        return None
    held_out = {prompt for split in ("select", "final") for prompt in prompts(split)}
    source: LabelSource = build(cfg.data.imported, "data.imported", held_out=held_out)
    return source


def make_module(cfg: DictConfig, policy: Policy) -> PreferenceModule:
    """The training module over a policy; no network yet."""
    return make(
        PreferenceModule,
        cfg,
        policy,
        build(cfg.loss, "loss"),
        build(cfg.reference, "reference"),
        optimizer_of(cfg),
        two_pass=cfg.step == "two_pass",
    )


def optimizer_of(cfg: DictConfig) -> Any:
    """What makes the optimizer, tried on a parameter: it would refuse settings in the training.

    Raises:
        InputError: it refuses them.
    """
    make_optimizer = build(cfg.optim.optimizer, "optim.optimizer")
    try:
        make_optimizer([torch.nn.Parameter(torch.zeros(2, 2))])
    except (TypeError, ValueError) as error:
        raise InputError(f"optim.optimizer: {one_line(error)}") from error
    return make_optimizer


def _evaluation(
    cfg: DictConfig, prompts: Prompts, sampler: Sampler, critique: Critique
) -> Evaluation:
    split = prompts(cfg.evaluation.split)
    return make(
        Evaluation,
        cfg,
        evaluated_prompts(cfg, split),
        sampler=sampler.at_guidance(cfg.evaluation.get("guidance_scale")),
        critic=critique,
        eval_critic=critique_of(
            build(cfg.eval_critic, "eval_critic"), sampler.store, held_out=True
        ),
        gauges=build(cfg.evaluation.gauges, "evaluation.gauges"),
        real_clips=build(cfg.evaluation.real_clips, "evaluation.real_clips"),
        categories=getattr(split, "categories", None),  # of a file that has some
    )


def _choice(cfg: DictConfig, prompts: Prompts, evaluation: Evaluation) -> Evaluation | None:
    """Evaluates on the select split, where figures are reported on another one."""
    n = cfg.evaluation.get("choice_n", 0)
    if not n or cfg.evaluation.split == "select":
        return None
    try:
        split = prompts("select")
    except InputError as error:
        instead = "evaluation.choice_n=0 chooses rounds by the reported figures"
        raise InputError(f"{error}; {instead}") from error
    return Evaluation(
        split[: cfg.evaluation.prompts],
        n=n,
        seed=cfg.seed,
        sampler=evaluation.sampler,
        critic=evaluation.critic,
        eval_critic=evaluation.eval_critic,
        purpose="choice",
        categories=getattr(split, "categories", None),
    )


def build_trainer(
    cfg: DictConfig, iteration: IterationCallback, guards: Guards | None = None
) -> L.Trainer:
    """Lightning's trainer: an epoch a round, loaders made anew for each.

    Args:
        guards: that may end the run.
    """
    ending = [] if guards is None else [GuardStopping(guards)]
    log = [StageLog(emit)] if in_json(cfg) else []
    for one in log:
        iteration.stages = one.told(iteration.stages)
    trainer = make_trainer(
        cfg,
        iteration.run,
        max_epochs=cfg.round,
        callbacks=[
            *_listeners(cfg),
            *log,
            *ending,
            iteration,
        ],  # a bar closes before the next stage opens its own
        reload_dataloaders_every_n_epochs=1,
        enable_checkpointing=False,  # the iteration callback does it, by round
    )
    check_trainer(trainer)
    return trainer


def _listeners(cfg: DictConfig) -> list[L.Callback]:
    """The other callbacks; without a progress bar's where there shall be none."""
    found = [
        built_as(L.Callback, node, f"callbacks.{name}")
        for name, node in cfg.callbacks.items()
        if name != "iteration" and node is not None
    ]
    shown = shows_bars(cfg)
    return [one for one in found if shown or not isinstance(one, ProgressBar)]


def shows_bars(cfg: DictConfig) -> bool:
    """Whether progress bars are shown."""
    return bool(cfg.trainer.get("enable_progress_bar", True)) and not in_json(cfg)


def make_trainer(cfg: DictConfig, run: RunDir, **own: Any) -> L.Trainer:
    """Lightning's trainer on the devices of ``cfg``.

    Args:
        own: arguments that the run itself determines.

    Raises:
        InputError: the settings give one of these too, or Lightning refuses them.
    """
    kept = SettingsInCheckpoints(settings_of(cfg))
    own |= {
        "callbacks": [*own.get("callbacks", ()), kept],
        "logger": loggers_of(cfg) or False,
        # Lightning takes hpc_ckpt_*.ckpt that it finds here in a SLURM job: nobody writes there.
        "default_root_dir": run.path / "lightning",
        "plugins": [CheckpointFiles()],
        "use_distributed_sampler": False,
        "enable_model_summary": False,
    }
    for name in own.keys() & cfg.trainer.keys():
        instead = INSTEAD.get(name, "leave it out: the run determines it")
        raise InputError(setting=f"trainer.{name}", value=cfg.trainer[name], expected=instead)
    try:
        trainer: L.Trainer = build(
            OmegaConf.merge(
                cfg.trainer,
                {"accelerator": accelerator_of(cfg), "enable_progress_bar": shows_bars(cfg)},
            ),
            "trainer",
            **own,
        )
    except InputError:
        raise
    except Exception as error:  # Lightning's own, of many kinds
        asked = ", ".join(f"{key}={cfg.trainer[key]}" for key in ("accelerator", "devices"))
        raise InputError(f"trainer ({asked}): {one_line(error)}") from error
    return trainer


def make_sampling(cfg: DictConfig) -> Sampling:
    """How candidates are drawn."""
    return make(
        Sampling,
        cfg,
        negative_prompt=cfg.rollout.negative_prompt or "",
        cache=build_cache(cfg.rollout.cache, "rollout.cache", cfg.rollout.steps),
    )


def make_sampler(cfg: DictConfig, policy: Policy, store: Store, run: RunDir) -> Sampler:
    """What makes candidates: here, or on a server.

    Raises:
        InputError: a server lacks a way to get the policies that it is to serve.
    """
    plain = make(Sampler, cfg, policy, store, make_sampling(cfg))
    if not cfg.rollout.get("served"):
        return plain
    server: VideoMaker = build(cfg.rollout.served, "rollout.served")
    if cfg.round > 1 and not server.takes_policies:
        raise InputError(
            f"rollout.served.reload=null with round={cfg.round}: from round 2 on the server would "
            "go on with the base model; give a command or an address that loads {policy}, name "
            "{policy} in rollout.served.extra, or give round=1"
        )
    if begun := started(OmegaConf.to_container(cfg.backbone, resolve=True)):  # type: ignore[arg-type]
        raise InputError(
            f"rollout=served with a run that starts from {begun}: the server cannot be told so; "
            "merge these weights into a folder for both, and give it as backbone.path"
        )
    return ServedSampler(plain, server, run)


def build_cache(node: Any, key: str, steps: Any) -> Any:
    """A cache config of diffusers. One that asks for the number of steps is told it: diffusers
    makes its figures of each step as many as there are.

    Raises:
        InputError: names the wrong setting by its full key.
    """
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node, resolve=True)
    cache = build(node, key)
    asks = hasattr(cache, STEPS) and STEPS not in node
    return build({**node, STEPS: steps}, key) if asks else cache


def make_drafter(
    cfg: DictConfig, sampler: Sampler, critique: Critique, labelling: Labelling, label_kind: str
) -> Drafter | None:
    """What makes drafts of the candidates and judges them; None where all are made in full.

    Raises:
        InputError: a setting of the drafts is wrong, or they would save nothing.
    """
    cheaper = cheaper_of(cfg)
    critic, margin = cheaper.pop("critic", None), cheaper.pop("margin", None)
    if not cheaper:
        _refuse_alone(critic, margin)
        return None
    if label_kind == "pointwise" and labelling.middle == "keep":
        raise InputError(
            "rollout.draft with labelling.middle=keep: every candidate becomes a label, and would "
            "be made in full as well; give rollout.draft=null, or labelling.middle=drop"
        )
    if label_kind == "pointwise":
        _refuse_for_points(labelling, critic, margin)
    if "cache" in cheaper:
        steps = cheaper.get("steps", cfg.rollout.steps)
        cheaper["cache"] = build_cache(cheaper["cache"], "rollout.draft.cache", steps)
    with within("rollout.draft"):
        drafts = sampler.drafter(**cheaper)
    if critic is not None:
        built = build(critic, "rollout.draft.critic")
        critique = draft_critique_of(built, sampler.store, _couples(labelling))
    if isinstance(critique, LatentCritique):
        drafts = drafts.undecoded()
    if margin is not None:
        rules = OmegaConf.merge(cfg.labelling, {"pair_rule": {"margin": margin}})
        with within("rollout.draft"):
            labelling = build(rules, "labelling")
    return Drafter(drafts, critique, labelling)


def _refuse_for_points(labelling: Labelling, critic: object, margin: object) -> None:
    """Refuse what would not be heeded, or be taken in the units of another critic."""
    if margin is not None:
        raise InputError(
            setting="rollout.draft.margin", value=margin, expected="leave it out: points are made "
            "by labelling.upper and lower",
        )  # fmt: skip
    if critic is not None and labelling.bounds == "score":
        raise InputError(
            "rollout.draft.critic with labelling.bounds=score: the bounds are in the units of the "
            "critic of the finals; give labelling.bounds=quantile"
        )


def _refuse_alone(critic: object, margin: object) -> None:
    """Refuse settings of drafts that there are not."""
    for name, value in (("critic", critic), ("margin", margin)):
        if value is not None:
            raise InputError(
                setting=f"rollout.draft.{name}", value=value, expected="there are no drafts; give "
                "rollout.draft.steps or rollout.draft.prune_at too, or leave it out",
            )  # fmt: skip


def cheaper_of(cfg: DictConfig) -> dict[str, Any]:
    """The settings of drafts that are not those of the finals; none: there are no drafts."""
    draft = cfg.rollout.get("draft") or {}
    return {str(name): value for name, value in draft.items() if value is not None}
