"""The loop around the training: every round's data is made from the policy it starts with.

One `Trainer.fit` runs all rounds, an epoch each. The datamodule pulls `ensure_round` when Lightning
asks it for a loader, and each stage is skipped where its file is there: a run that was killed
anywhere goes on, and one that asks for another round makes that round alone.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, cast
from uuid import uuid4

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from typing_extensions import override

from ipo_lightning.critics.stage.rating import CritiqueStage
from ipo_lightning.draws.calibration import Calibration, auto_beta
from ipo_lightning.draws.dataset import Draws
from ipo_lightning.draws.encoding import RealSource
from ipo_lightning.draws.reference_errors import ReferenceErrors
from ipo_lightning.errors import InputError
from ipo_lightning.evaluation import EvaluatedVideo, Evaluation, summary
from ipo_lightning.exchange.source import ImportedLabels, LabelSource
from ipo_lightning.hub.cards import Base, Data, model_card
from ipo_lightning.labelling import Labelling
from ipo_lightning.module import PreferenceModule
from ipo_lightning.parallel.sharding import gathered, mesh_of, whole_tensors
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.policy import put_weights, trained_weights
from ipo_lightning.references import CachedReference
from ipo_lightning.sampling import Sampler, Unit
from ipo_lightning.seeds import derive_seed, generator
from ipo_lightning.settings import AtLeast, Count, Null, checked
from ipo_lightning.storage.layout import REFERENCE_ERRORS, RoundData, RoundDir, RunDir, Stage
from ipo_lightning.storage.records import Candidate, Pair, Point, RealClip
from ipo_lightning.storage.store import (
    fingerprint,
    fingerprint_tensors,
    read_jsonl,
    sync,
    write_atomically,
)


class StageReached(Exception):
    """Raised to leave the fit politely once the stage named by ``until`` is finished."""

    def __init__(self, stage: Stage, number: int) -> None:
        super().__init__(f"stopped after the {stage} of round {number}, as asked")
        self.stage, self.number = stage, number


class RoundListener(Protocol):
    """A callback that wants to know of finished rounds."""

    def on_round_end(self, trainer: L.Trainer, round_number: int, round_dir: Path) -> None:
        """Called on the leading rank once the round's line is written."""
        ...


@checked
@dataclass(frozen=True)
class Rollout:
    """Which videos a round is made of.

    Args:
        prompts: the training prompts, in a fixed order.
        n: candidates a prompt.
        prompts_per_round: how many prompts a round draws; None: all, in every round.
        seed: the run's.
    """

    prompts: Sequence[str]
    n: Annotated[int, AtLeast(2)]  # one candidate is no preference
    prompts_per_round: Annotated[Count | None, Null("all")]
    seed: int

    def units(self, number: int) -> list[Unit]:
        """The prompts of a round with their seeds."""
        seed = derive_seed(self.seed, "prompts", number)
        drawn = torch.randperm(len(self.prompts), generator=generator(seed)).tolist()
        chosen = sorted(drawn[: self.prompts_per_round])
        return [
            Unit(i, self.prompts[i], tuple(self._seed(number, i, k) for k in range(self.n)))
            for i in chosen
        ]

    def _seed(self, number: int, prompt_index: int, candidate: int) -> int:
        return derive_seed(self.seed, "rollout", number, prompt_index, candidate)


def started_with() -> list[str]:
    """The command line, where it is one of this project's own; nothing within another program."""
    return ["python", *sys.argv] if Path(sys.argv[0]).name == "train.py" else []


@checked
class IterationCallback(L.Callback):
    """Makes, labels, checkpoints and closes the rounds of a run.

    Args:
        run: the run's folder.
        rollout: prompts and seeds. sampler: how their videos are made. critique: who judges them.
        labelling: how verdicts become labels. evaluation: what a finished round is put to.
        real: real clips for lambda_2; None where there are none.
        imported: labels that take the place of rollout, critique and labelling; None: there are
            none.
        calibration: of the loss's beta, where it is ``auto``.
        last_round: the round to bring the run to.
        until: a stage of that round to stop after; None runs it to the end.
        checkpoint_every: updates between checkpoints within a round; a kill loses at most these.
        together: prompts that a process samples at the same time; None: one a core on the CPU, one
            on a GPU. It changes no bit.
    """

    def __init__(
        self,
        run: RunDir,
        *,
        rollout: Rollout,
        sampler: Sampler,
        critique: CritiqueStage,
        labelling: Labelling,
        evaluation: Evaluation,
        last_round: Count,
        real: RealSource | None = None,
        imported: LabelSource | None = None,
        calibration: Calibration = Calibration(),  # noqa: B008 - frozen
        until: Stage | None = None,
        checkpoint_every: Count = 20,
        parallel_prompts: Annotated[Count | None, Null("chosen by the device")] = None,
    ) -> None:
        self.run, self.rollout, self.sampler, self.critique = run, rollout, sampler, critique
        self.labelling, self.evaluation = labelling, evaluation
        self.real, self.imported, self.calibration = real, imported, calibration
        self.last_round, self.until = last_round, until
        self.checkpoint_every, self.parallel_prompts = checkpoint_every, parallel_prompts
        self._started = 0.0
        self._training_seconds = 0.0

    # ---------------------------------------------------------------- hooks

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Offer this callback to the datamodule, which pulls rounds from it."""
        self.trainer, self.module = trainer, cast(PreferenceModule, pl_module)
        self.workers = Workers(
            trainer.global_rank,
            trainer.world_size,
            trainer.strategy.barrier,
            trainer.strategy.broadcast,
            threads=self.parallel_prompts or cores_of_a_rank(trainer),
        )
        self.sampler.precision = str(trainer.precision)
        self.sampler.autocast = trainer.precision_plugin.forward_context
        trainer.datamodule.source = self  # type: ignore[attr-defined]

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Skipped where a round is resumed: its time so far comes from the checkpoint."""
        self._training_seconds = 0.0

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock of a batch; stages between rounds must not count as training."""
        self._started = time.monotonic()

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Checkpoint every so many updates, between two updates."""
        self._training_seconds += time.monotonic() - self._started
        accumulated = trainer.accumulate_grad_batches
        optimizer_steps, between = divmod(batch_idx + 1, accumulated)
        last = batch_idx + 1 == trainer.num_training_batches  # the epoch's end saves that one
        if not between and not last and optimizer_steps % self.checkpoint_every == 0:
            self._save_checkpoint(optimizer_steps)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The round is trained: keep its policy, then see what it is worth."""
        number = self.module.round
        self.module.finish_round()
        self._save_checkpoint(int(trainer.num_training_batches) // trainer.accumulate_grad_batches)
        self.module.drop_moments()  # videos are made next: they may need the room
        if self.until == "training" and number == self.last_round:
            self._export(number)
            raise StageReached("training", number)
        self.close_round(number)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Seconds of training so far in this round."""
        return {"training_seconds": self._training_seconds}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._training_seconds = state_dict["training_seconds"]

    # ---------------------------------------------------------------- a round's data

    def ensure_round(self, number: int, draws: int) -> RoundData:
        """Everything that round ``number`` trains on, made or found; see `RoundSource`."""
        self.close_round(number - 1)
        number = min(number, self.last_round)  # a finished run is asked for one round too many
        self._new_directory(self.run.round(number).path)
        if self._imports(number):
            rows = self._import(number)
        else:
            candidates = self._roll_out(number)
            self._judge(number, candidates)
            rows = self._label(number, candidates)
        real = self._real_clips()
        prompts = {row.prompt for row in rows} | {clip.caption for clip in real}
        texts = {prompt: self.sampler.text_blob(prompt) for prompt in prompts}
        data = self._ask_reference(RoundData(number, rows, texts, real=real), draws)
        before = self._reference_round(number)
        live = self.module.reference.answers == "online"
        self.module.begin_round(number, self._weights(before) if live else None)
        return data

    def _imports(self, number: int) -> bool:
        """Whether a round's labels come from elsewhere."""
        source = self.imported
        return source is not None and (source.rounds is None or number <= source.rounds)

    def _import(self, number: int) -> Sequence[Pair] | Sequence[Point]:
        """A round's labels from elsewhere, its files written as if they had been made here."""
        one, label_kind = self.run.round(number), self.module.label_kind
        assert self.imported is not None
        with self._stage("rollout", number):
            labels = self.imported.prepare(
                label_kind, self.module.policy, self.sampler.store, self.workers, self.module.device
            )
            prompts = [row.prompt for row in labels.rows]
            self.sampler.embed(prompts, self.module.device, self.workers)
            if self.workers.leads:
                self._refuse_other_labels(one, labels)
                one.write(one.candidates_file, labels.candidates)
        with self._stage("critique", number):
            if self.workers.leads:
                one.write(one.verdicts_file, labels.verdicts)
        with self._stage("labelling", number):
            if self.workers.leads:
                counts = {"kept": len(labels.rows), "dropped": labels.dropped}
                write_atomically(one.labelling_file, json.dumps(counts).encode())
                one.write(one.labels_file(label_kind), labels.rows)
        return labels.rows

    def _refuse_other_labels(self, one: RoundDir, labels: ImportedLabels) -> None:
        """A round that is begun goes on with the labels that it was begun with."""
        file = one.labels_file(self.module.label_kind)
        if not file.exists():
            return
        old = one.pairs() if self.module.label_kind == "pairwise" else one.points()
        if old != labels.rows:
            raise InputError(
                f"{file}: the imported file or its videos are not what they were when this round "
                "was begun; give another name=NAME, or remove the folder of the round"
            )

    def _roll_out(self, number: int) -> list[Candidate]:
        one, units = self.run.round(number), self.rollout.units(number)
        policy = self._fingerprint(number - 1)
        found = one.candidates_file.exists() and not self.sampler.missing(policy, units)
        if self.workers.agree(found):
            # Embeddings may have been lost from the store while the videos were kept.
            self.sampler.embed([u.prompt for u in units], self.module.device, self.workers)
            return one.candidates()
        with (
            self._stage("rollout", number),
            self._policy_of(number - 1) as network,
            self.critique.beside(str(self.module.device)) as on_candidates,
        ):
            candidates = self.sampler.generate(
                policy, units, network, self.workers, f"round {number}: rollout", on_candidates
            )
            if self.workers.leads:
                if one.candidates_file.exists() and one.candidates() != candidates:
                    one.forget_labels()  # of videos that could not be made again to the bit
                one.write(one.candidates_file, candidates)
        return candidates

    def _judge(self, number: int, candidates: Sequence[Candidate]) -> None:
        one = self.run.round(number)
        if self.workers.agree(one.verdicts_file.exists()):
            return
        with self._stage("critique", number):
            verdicts = self.critique.judge(
                candidates, self.workers, str(self.module.device), f"round {number}: critique"
            )
            self.labelling.check_missing(verdicts)  # first: a file would say that all were asked
            if self.workers.leads:
                one.write(one.verdicts_file, verdicts)

    def _label(
        self, number: int, candidates: Sequence[Candidate]
    ) -> Sequence[Pair] | Sequence[Point]:
        one, pairwise = self.run.round(number), self.module.label_kind == "pairwise"
        file = one.labels_file(self.module.label_kind)
        if not self.workers.agree(file.exists()):
            with self._stage("labelling", number):
                if self.workers.leads:
                    self._write_labels(one, candidates, pairwise)
        rows = one.pairs() if pairwise else one.points()
        if not rows:
            raise InputError(
                f"round {number}: no label was kept ({self._label_counts(one)}); "
                "lower labelling.pair_rule.margin, or raise rollout.n or rollout.prompts"
            )
        return rows

    def _write_labels(self, one: RoundDir, candidates: Sequence[Candidate], pairwise: bool) -> None:
        rule = self.labelling.pairs if pairwise else self.labelling.points
        labels = rule(candidates, one.verdicts())
        counts = {"kept": len(labels.rows), "dropped": labels.dropped, "figures": labels.figures}
        write_atomically(one.labelling_file, json.dumps(counts).encode())
        one.write(one.labels_file(self.module.label_kind), labels.rows)

    def _real_clips(self) -> Sequence[RealClip]:
        """The real clips for lambda_2, encoded on the first call of a run."""
        if not self.module.real_weight or self.real is None:
            return ()
        data = self.real.prepare(
            self.module.policy, self.sampler.store, self.workers, self.module.device
        )
        captions = [clip.caption for clip in data.rows]
        self.sampler.embed(captions, self.module.device, self.workers)
        if self.workers.leads:
            counts = {"kept": len(data.rows), "dropped": data.dropped}
            write_atomically(self.run.path / "real.json", json.dumps(counts).encode())
        return data.rows

    def _reference_round(self, number: int) -> int:
        """The round whose policy is the reference of round ``number``."""
        return number - 1 if self.module.reference.of == "round_start" else 0

    def _ask_reference(self, data: RoundData, draws: int) -> RoundData:
        """What can be asked of the reference before the round trains."""
        reference = self.module.reference
        if isinstance(reference, CachedReference):
            planned = Draws(data, self.sampler.store, self.module.seed, draws)
            errors = self._reference_errors(planned, reference.batch_size)
            data = data._replace(errors=errors)
        if self.module.auto_beta:
            self.module.set_beta(self._beta(data, draws))
        return data

    def _reference_errors(self, draws: Draws, batch_size: int) -> Tensor:
        """The reference's errors at the draws, found in the store or computed."""
        number = draws.data.number
        before = self._reference_round(number)
        table = ReferenceErrors(
            self.module.policy,
            self.module.objective,
            self.sampler.store,
            network=self._fingerprint(before),
            precision=self.sampler.precision,
            batch_size=batch_size,
        )
        if self.workers.agree(table.missing(draws)):
            with self._stage(REFERENCE_ERRORS, number), self._policy_of(before) as network:
                table.compute(
                    draws,
                    network,
                    self.workers,
                    self.sampler.autocast,
                    f"round {number}: reference errors",
                )
        return table.table(draws)

    def _beta(self, data: RoundData, draws: int) -> float:
        """The round's beta, from a file where the round was begun before."""
        file = self.run.round(data.number).path / "beta.json"
        if not self.workers.agree(file.exists()):
            count = min(draws, self.calibration.draws)
            some = Draws(data, self.sampler.store, self.module.seed, count)
            errors = self._reference_errors(some, self.calibration.batch_size)
            u = torch.stack([some.u(place) for place in range(count)])
            beta = auto_beta(errors, u, self.calibration.logit)
            if self.workers.leads:
                write_atomically(file, json.dumps({"beta": beta, "draws": count}).encode())
            self.workers.barrier()
        return float(json.loads(file.read_text())["beta"])

    # ---------------------------------------------------------------- the end of a round

    def close_round(self, number: int) -> None:
        """Export, evaluate and record the policy of a trained round; 0 is the base model."""
        if self.workers.agree(self.run.line(number) is not None):
            return
        self._new_directory(self.run.round(number).path)
        if number:
            self._export(number)
        with self._stage("evaluation", number), self._policy_of(number) as network:
            rows = self.evaluation.judge(
                self._fingerprint(number),
                network,
                self.workers,
                f"round {number}",
                self._base_rows() if number else None,
            )
            real = self.evaluation.real_error(self.module.policy, network, self.module.objective)
            if self.workers.leads:
                one = self.run.round(number)
                one.write(one.evaluation_file, rows)
        if self.workers.leads:
            line = self._line(number, rows, real)
            self._write_card(number, line)
            self.run.append(line)
        self.workers.barrier()
        self._tell(number)

    def _line(
        self, number: int, rows: Sequence[EvaluatedVideo], real: float | None
    ) -> dict[str, Any]:
        one = self.run.round(number)
        figures = summary(rows, self._base_rows())
        if real is not None:
            figures["gauges"]["real_error"] = round(real, 8)
        labels = self._label_counts(one) if number else {}
        health = {name: round(value, 8) for name, value in self._health(number).items()}
        return {
            "round": number,
            **figures,
            "n_pairs": labels.get("kept", 0),
            "labelling": labels,
            "seconds": one.seconds(),
            "train": health or None,
            "policy": self._fingerprint(number),
        }

    def _base_rows(self) -> list[EvaluatedVideo]:
        """The base model's evaluation."""
        return [EvaluatedVideo(**row) for row in read_jsonl(self.run.round(0).evaluation_file)]

    def _label_counts(self, one: RoundDir) -> dict[str, Any]:
        """How many labels were kept and dropped; labels written by hand come without a count."""
        if one.labelling_file.exists():
            counts: dict[str, Any] = json.loads(one.labelling_file.read_text())
            return counts
        return {"kept": len(read_jsonl(one.labels_file(self.module.label_kind))), "dropped": {}}

    def _write_card(self, number: int, line: Mapping[str, Any]) -> None:
        policy = self.module.policy
        if number:
            config, units = self.run.config_file, self.evaluation.units
            card = model_card(
                name=self.run.path.name,
                base=Base(policy.name, policy.path, policy.revision, *policy.diffusers_classes),
                adapter=policy.adapter is not None,
                lines=[*(old for old in self.run.lines() if old["round"] < number), line],
                data=[self._data(one) for one in range(1, number + 1)],
                held_out=Data(number, len(units), sum(len(unit.seeds) for unit in units)),
                settings=config.read_text() if config.exists() else "",
                command=started_with(),
            )
            write_atomically(self.run.round(number).policy / "README.md", card.encode())

    def _data(self, number: int) -> Data:
        """How much a round was trained on; a round whose list was removed by hand counts none."""
        one = self.run.round(number)
        rows = one.candidates() if one.candidates_file.exists() else []
        return Data(number, len({row.prompt_index for row in rows}), len(rows))

    def _health(self, number: int) -> dict[str, float]:
        if not number:
            return {}
        return json.loads((self.run.round(number).path / "training.json").read_text())

    def _tell(self, number: int) -> None:
        folder, line = self.run.round(number).path, self.run.line(number) or {}
        figures = {name: line.get(name) for name in ("score", "eval_score", "win_rate")}
        figures |= {f"gauge/{name}": value for name, value in line.get("gauges", {}).items()}
        figures |= {f"dims/{name}": value for name, value in line.get("dims", {}).items()}
        figures["beta"] = (line.get("train") or {}).get("beta")  # where it was settled by itself
        shown = {f"round/{name}": value for name, value in figures.items() if value is not None}
        for logger in self.trainer.loggers:
            logger.log_metrics({**shown, "round": number}, step=self.trainer.global_step)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, "on_round_end") and self.workers.leads:
                cast(RoundListener, callback).on_round_end(self.trainer, number, folder)

    # ---------------------------------------------------------------- policies

    def _export(self, number: int) -> None:
        """Write the policy that the module holds as the round's; its presence ends training."""
        one = self.run.round(number)
        health = self.module.health.compute()
        if self.workers.agree(one.fingerprint() is not None):
            return
        weights = whole_tensors(self.module.trained())
        mark = self._mark(weights)
        if self.workers.leads:
            one.add_seconds("training", self._training_seconds)
            beta = one.path / "beta.json"
            if beta.exists():
                health["beta"] = json.loads(beta.read_text())["beta"]
            write_atomically(one.path / "training.json", json.dumps(health).encode())
            with replaced_folder(one.policy) as folder:
                self.module.policy.export(self._exportable(weights), folder)
            content = {"fingerprint": mark, "round": number}
            write_atomically(one.policy_file, json.dumps(content).encode())
        self.workers.barrier()

    def _exportable(self, weights: Mapping[str, Tensor]) -> torch.nn.Module:
        """A network that this rank alone can write: the module's own, or a copy of its shards."""
        network = self.module.network
        if mesh_of(network) is None:
            return network
        copy = self.module.policy.build()
        put_weights(copy, weights)
        return copy

    def _mark(self, weights: Mapping[str, Tensor]) -> str:
        """Fingerprint of a policy: its base, its adapter's settings, its trained weights."""
        policy = self.module.policy
        return fingerprint([policy.identity, policy.adapter, fingerprint_tensors(weights)])

    def _fingerprint(self, number: int) -> str:
        if number == 0:
            return self.module.policy.identity
        found = self.run.round(number).fingerprint()
        if found is None:
            raise OSError(
                f"{self.run.round(number).policy_file} is missing: round {number} must be trained "
                "again; remove its folder and those of later rounds"
            )
        return found

    def _weights(self, number: int) -> dict[str, Tensor] | None:
        """The trained weights that a round ended with, from disk; None for the base model's."""
        if number == 0:
            return None
        folder = self.run.round(number).policy
        weights = self.module.policy.load_export(folder)
        if self._mark(weights) != self._fingerprint(number):
            raise InputError(
                f"{folder} is not what round {number} was trained to (damaged, or changed by "
                "hand): remove the folders of that round and later ones"
            )
        return weights

    @contextmanager
    def _policy_of(self, number: int) -> Iterator[torch.nn.Module]:
        """The network with the weights of a finished round, whatever it holds now.

        It mostly holds them already; where a store lost videos in mid-round it does not.
        """
        network, current = self.module.network, self.module.trained()
        weights = self._base_weights() if number == 0 else self._weights(number)
        same = weights is None or self._mark(whole_tensors(current)) == self._mark(weights)
        kept = None if same else {name: w.clone() for name, w in current.items()}
        if not same:
            put_weights(network, cast(Mapping[str, Tensor], weights))
        network.eval()
        try:
            with gathered(network):  # ranks have unequal work in a stage
                yield network
        finally:
            network.train()
            if kept is not None:
                put_weights(network, kept)

    def _base_weights(self) -> dict[str, Tensor] | None:
        """The base model's weights, where the network may have moved away from them."""
        if self.trainer.global_step == 0:
            return None
        return {n: w.cpu() for n, w in trained_weights(self.module.policy.build()).items()}

    # ---------------------------------------------------------------- files

    def _save_checkpoint(self, optimizer_steps: int) -> None:
        """Write a checkpoint under a temporary name and rename it; keep the newest of the round."""
        folder = self.run.round(self.module.round).checkpoints
        path = folder / f"update-{optimizer_steps:06d}.ckpt"
        temporary = folder / f".{path.name}"
        self.trainer.save_checkpoint(temporary)
        if self.workers.leads:
            sync(temporary)
            _remove(path)
            os.replace(temporary, path)
            for old in folder.glob("*.ckpt"):
                if old != path:
                    _remove(old)
        self.workers.barrier()

    @contextmanager
    def _stage(self, stage: str, number: int) -> Iterator[None]:
        """Time a stage; stop after it where it is the one that was asked for."""
        started = time.monotonic()
        yield
        if self.workers.leads:
            self.run.round(number).add_seconds(stage, time.monotonic() - started)
        self.workers.barrier()
        if stage == self.until and number == self.last_round:
            raise StageReached(self.until, number)

    def _new_directory(self, path: Path) -> None:
        if self.workers.leads:
            path.mkdir(parents=True, exist_ok=True)
        self.workers.barrier()


def cores_of_a_rank(trainer: L.Trainer) -> int:
    """CPU cores that a rank has to itself; 1 where a GPU does the work, or the weights are shards:
    their state knows one forward at a time."""
    if trainer.strategy.root_device.type != "cpu" or isinstance(
        trainer.strategy, ModelParallelStrategy
    ):
        return 1
    return max(1, (os.cpu_count() or 1) // trainer.num_devices)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of ``folder`` once it is filled."""
    temporary = folder.with_name(f".{folder.name}.{uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        sync(temporary)
        _remove(folder)
        os.replace(temporary, folder)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
