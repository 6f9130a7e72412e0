"""Train a text-to-video policy by iterative preference optimisation.

python train.py                          the embedded default, to round 3
python train.py loss=kto round=1         another loss, one round
python train.py -m loss=dpo,kto,sft      a sweep that shares what it can
python train.py seeds=1,2,3              a run for each seed, and their mean with its interval
python train.py task=critic data.path=F  train a critic on people's labels instead
"""

import shlex
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import hydra
from omegaconf import DictConfig

from app.checks import check, check_critic
from app.ending import STOPPED, ended, searches
from app.entry import (
    TASKS,
    friendly,
    refuse_missing,
    refuse_misspelt,
    register_resolvers,
    task_of,
)
from app.free_text import as_typed
from app.output import choose, end, show
from app.seeds import RUNS, asks_for_seeds, remember, told, with_seeds
from app.shortcuts import expanded
from app.start import resolve_start
from app.twins import refuse_alike
from ipo_lightning.errors import InputError, within

if TYPE_CHECKING:
    from lightning import Trainer

    from app.assembly import Parts
    from app.finished import Finished

register_resolvers()


def train(cfg: DictConfig) -> dict[str, Any] | None:
    """Bring the run that ``cfg`` describes to its round.

    Returns:
        The last line of its rounds.jsonl; None where it was stopped before a round was finished,
            and with ``report_only``.

    Raises:
        InputError: a setting is wrong, or the run's folder holds a run of other settings or inputs,
            or is in use.
    """
    refuse(cfg)
    if cfg.report_only:
        from app.reporting import report_again

        show(f"report: {report_again(cfg)}")
        end()
        return None
    from app.finished import finished_run

    if not cfg.dry_run and (known := finished_run(cfg)):
        choose(cfg)
        return brought(known, cfg, None)
    return with_parts(cfg)


def with_parts(cfg: DictConfig) -> dict[str, Any] | None:
    """Bring a run to its round that its files alone do not show to be finished, or show its plan.

    Returns, Raises: see `train`.
    """
    from app import assembly
    from app.process import settle

    settle(cfg)
    if cfg.dry_run:
        from app.planning.plan import plan

        show(plan(cfg))
        end()
        return None
    parts = assembly.assemble(cfg)
    # Trainer and critics refuse wrong settings too: before they are written down as the folder's.
    trainer = (
        None if is_done(parts, cfg) else assembly.build_trainer(cfg, parts.iteration, parts.guards)
    )
    if trainer is not None:
        check_critics(parts, cfg)
    return brought(parts, cfg, trainer)


def brought(
    parts: "Parts | Finished", cfg: DictConfig, trainer: "Trainer | None"
) -> dict[str, Any] | None:
    """Make what the run lacks, in its folder and for this process alone, and its report.

    Args:
        trainer: None: nothing is lacking.

    Returns:
        The last line of its rounds.jsonl, if there is one.
    """
    from app.claiming import claimed, leads
    from app.reporting import command_line, write_down

    goes_on = trainer is not None
    made_of = partial(parts.identity, cfg, goes_on=goes_on)
    with claimed(cfg, parts.run, made_of, goes_on=goes_on):
        if leads():
            parts.run.mend()
            write_down(parts.run, command_line() if goes_on else None)
        if trainer is not None and not is_done(cast("Parts", parts), cfg):
            fit(cast("Parts", parts), cfg, trainer)
        lines = parts.run.lines()
        if lines and leads():
            report(parts, cfg, lines)
    last = lines[-1] if lines else None
    conclude(parts, last, leads=leads())
    return last


def conclude(parts: "Parts | Finished", last: dict[str, Any] | None, *, leads: bool) -> None:
    """Note that guards ended the run, and say that it is over, in the JSON log."""
    why = parts.guards.distrusts(last) if last else None
    if why:
        STOPPED.append(why)
    if leads:
        end(run=str(parts.run.path), round=last and last["round"], stopped=why)


def train_critic(cfg: DictConfig) -> dict[str, float] | None:
    """Train the critic that ``cfg`` describes, or go on with it, and write its folder.

    Returns:
        Its figures on the held-out prompts; None where only the plan was asked for.

    Raises:
        InputError: a setting is wrong, or the run's folder holds a run of other settings or labels,
            or is in use.
    """
    refuse_missing(cfg)
    check_critic(cfg)
    from app import critic_assembly
    from app.claiming import claimed, leads
    from app.process import settle

    settle(cfg)
    parts = critic_assembly.assemble(cfg)
    if cfg.dry_run:
        show(critic_assembly.plan(parts, cfg))
        end()
        return None
    figures = parts.figures()
    with claimed(cfg, parts.run, lambda: parts.identity(cfg), goes_on=figures is None):
        critic_assembly.claim_labels(parts)
        figures = parts.figures() or critic_assembly.fit(parts, cfg)
    if not leads():
        return figures
    show(f"\n{critic_assembly.table(figures, parts.module.family.dims)}\n\n"
         f"next: python train.py {parts.critic_words}", "report", **figures)  # fmt: skip
    end(run=str(parts.run.path))
    return figures


def refuse(cfg: DictConfig) -> None:
    """Refuse settings that cannot work, before anything heavy is imported."""
    refuse_missing(cfg)
    resolve_start(cfg)
    check(cfg)
    refuse_search(cfg)
    if cfg.push_to_hub:
        from ipo_lightning.hub.upload import check_hub

        check_hub(str(cfg.push_to_hub))


def refuse_search(cfg: DictConfig) -> None:
    """Refuse a search for settings by the figures that are to be reported.

    Raises:
        InputError: says what to give.
    """
    chooses = cfg.evaluation.split == "select" or cfg.evaluation.get("choice_n")
    if searches() and not chooses:
        expected = (
            "a search chooses by the judge's score, and what chose a setting cannot report on it: "
            "give select, and measure what it finds on final"
        )
        raise InputError(setting="evaluation.split", value=cfg.evaluation.split, expected=expected)


def report(parts: "Parts | Finished", cfg: DictConfig, lines: list[dict[str, Any]]) -> None:
    """Write the report, show what the rounds reached, and publish what was asked for."""
    from ipo_lightning.guards import best_of
    from ipo_lightning.report import rounds_table, write_report

    file = write_report(parts.run.path)
    notes = "".join(f"{note}\n" for note in (*alarms_of(lines), *parts.notes()))
    ending = next_command(parts) if parts.run.line(cfg.round) else ""
    text = f"\n{rounds_table(lines)}\n\n{notes}report: {file}\n{ending}".rstrip()
    show(text, "report", file=str(file), best=best_of(lines), **figures_of(lines[-1]))
    if cfg.push_to_hub:
        show(upload(parts, cfg))


SHOWN = ("round", "score", "eval_score", "win_rate", "win_rate_ci", "gain")
"""What the JSON log has of the last round's line."""


def figures_of(line: dict[str, Any]) -> dict[str, Any]:
    """The figures of a round that the JSON log has."""
    return {key: line.get(key) for key in SHOWN}


def upload(parts: "Parts | Finished", cfg: DictConfig) -> str:
    """Publish the policy of the round that was asked for, as a sentence for the terminal."""
    from ipo_lightning.hub.upload import publish

    if parts.run.line(cfg.round) is None:
        return f"push_to_hub={cfg.push_to_hub}: round {cfg.round} is not finished; nothing is sent"
    message = f"{parts.run.path.name}, round {cfg.round}"
    address = publish(parts.run.round(cfg.round).policy, str(cfg.push_to_hub), message)
    return f"published: {address}"


def is_done(parts: "Parts", cfg: DictConfig) -> bool:
    """Whether there is nothing left to do, and all files are as they were written."""
    from app.claiming import has_other_judge
    from app.finished import finished

    kind = parts.module.label_kind
    return not has_other_judge(parts.run, cfg) and finished(parts.run, cfg, kind)


def check_critics(parts: "Parts", cfg: DictConfig) -> None:
    """Refuse critics that lack something before videos are made for them.

    On a machine that no critic is asked on nothing of theirs is needed.
    """
    evaluates = cfg.until is None or any(parts.run.line(k) is None for k in range(cfg.round))
    labelled = parts.run.done(cfg.round, parts.module.label_kind)["critique"]
    unasked = cfg.until == "rollout" and parts.drafter is None  # drafts are what it chooses from
    if evaluates or not (labelled or unasked):
        with within("critic"):
            parts.critique.ready()
    if evaluates:
        with within("eval_critic"):
            parts.evaluation.eval_critic.ready()
        both = parts.critique, parts.evaluation.eval_critic
        refuse_alike(*(getattr(one, "critic", one) for one in both))


def fit(parts: "Parts", cfg: DictConfig, trainer: "Trainer") -> None:
    """Run what is missing, from the newest checkpoint on."""
    from app.loggers import log_settings
    from ipo_lightning.critics.protocols import AnswersPending, CriticGone
    from ipo_lightning.rounds import Checkpoints, StageReached

    checkpoint = Checkpoints(parts.run).newest(up_to=cfg.round)
    log_settings(trainer, cfg)
    try:
        trainer.fit(
            parts.module, datamodule=parts.datamodule, ckpt_path=checkpoint, weights_only=True
        )
    except StageReached as reached:
        if trainer.is_global_zero:
            show(str(reached))
    except AnswersPending as pending:
        if trainer.is_global_zero:
            show(f"{pending}\nthen go on with: {shlex.join(['python', *sys.argv])}")
    except CriticGone as gone:
        raise InputError(f"{gone}; what was answered is kept, the same command goes on") from gone
    if trainer.should_stop and trainer.is_global_zero and not is_done(parts, cfg):
        show(f"{why_stopped(parts, trainer)}; the same command, without what stopped it, goes on")


def why_stopped(parts: "Parts", trainer: "Trainer") -> str:
    """What ended the fit before the last round, in the words of the callback that did it."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    told = [why for one in callbacks if (why := getattr(one, "stopped", None))]
    return parts.iteration.cut_short or next(
        iter(told), "the trainer was stopped before the next round"
    )


def alarms_of(lines: list[dict[str, Any]]) -> list[str]:
    """What guards found, a line a round with alarms, and the best round if it is an earlier one."""
    from ipo_lightning.guards import alarms, best_of

    found = [f"guards, round {line['round']}: {'; '.join(raised)}"
             for line in lines if (raised := alarms(line))]  # fmt: skip
    found += [f"round {line['round']} started from round {start['round']}, its learning rate "
              f"multiplied by {start['lr_scale']:g}"
              for line in lines if (start := line.get("start"))]  # fmt: skip
    best = best_of(lines)
    if best["round"] != lines[-1]["round"]:
        found.append(f"best round: {best['round']}, by {best['by']}")
    return found


def next_command(parts: "Parts | Finished") -> str:
    """The command to try next."""
    prompt = parts.held_out[0]
    return f'next: python sample.py ckpt={parts.run.path} prompt="{prompt}"'


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """The command line; a search optimises the held-out judge's mean score on the prompts that
    choices are made on, or a critic's loss."""
    with friendly(cfg.get("debug") is True):
        if cfg.task == "critic":
            figures = train_critic(cfg)
            return figures["valid/loss"] if figures else None
        line = train(cfg)
        if cfg.dry_run:
            return 0.0  # a sweeper that optimises takes nothing but numbers
        return objective(cfg, line)
    return None


def objective(cfg: DictConfig, line: dict[str, Any] | None) -> float | None:
    """What a search raises, of a run's last line of rounds.jsonl; a sweep over seeds keeps it."""
    if line is None:
        return None
    from ipo_lightning.guards import chosen_by

    remember(cfg, line)
    score: float | None = chosen_by(line)["eval_score"]
    return score


if __name__ == "__main__":
    with friendly("debug=true" in sys.argv):
        config = TASKS[task_of(sys.argv[1:])]
        seeded = asks_for_seeds(sys.argv[1:])
        command = shlex.join(["python", *sys.argv])
        sys.argv[1:] = with_seeds(config, as_typed(config, expanded(config, sys.argv[1:])))
        refuse_misspelt(config, sys.argv[1:])
    if config != "train":
        sys.argv.insert(1, f"--config-name={config}")
    with ended(sys.argv[1:]):
        main()
        if seeded and RUNS:
            show(told(RUNS, command))
