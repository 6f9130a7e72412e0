"""A run that a signal, a time limit or a callback ends goes on as if nothing had happened.

Signals end a run with 128 + their number, after a checkpoint where optimizer steps would be lost; a
round is finished when all its optimizer steps were made; no checkpoint of another run is taken.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from omegaconf import DictConfig

from app.entry import REPO
from ipo_lightning.errors import InputError
from ipo_lightning.module import PreferenceModule
from ipo_lightning.parallel.signals import (
    LEADER,
    Stopped,
    StopSignals,
    requeue_job,
    stop_signals,
)
from ipo_lightning.rounds.iteration import IterationCallback
from ipo_lightning.rounds.trainer import check_trainer
from ipo_lightning.storage.layout import RunDir
from tests.helpers.commands import command, run
from tests.helpers.ranks import ranks
from train import train

Compose = Callable[..., DictConfig]
SIGNAL = "+callbacks.signal={{_target_:tests.helpers.interrupt.SignalAt,number:{number},{when}}}"
STOP = "+callbacks.stop={{_target_:tests.helpers.interrupt.StopAt,optimizer_steps:{steps}}}"


def results(outputs: Path) -> list[dict[str, Any]]:
    """rounds.jsonl but for the seconds."""
    lines = RunDir(outputs / "run").lines()
    return [{name: line[name] for name in line if name != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def known() -> Iterator[list[dict[str, Any]]]:
    """What a run that nothing interrupts comes to, once it has been made."""
    yield []


@pytest.fixture
def unbroken(begun: Compose, known: list[dict[str, Any]]) -> Sequence[Mapping[str, Any]]:
    if not known:
        cfg = begun("round=2", outputs="unbroken")
        train(cfg)
        known.extend(results(Path(cfg.paths.outputs)))
    return known


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SLURM job of one task; the file says what ``scontrol`` was called with."""
    called, tool = tmp_path / "called.txt", tmp_path / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" >> "{called}"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    for name, value in {"NTASKS": "1", "JOB_ID": "77", "JOB_NAME": "ipo", "PROCID": "0",
                        "LOCALID": "0", "NODEID": "0"}.items():  # fmt: skip
        monkeypatch.setenv(f"SLURM_{name}", value)
    return called


# ---------------------------------------------------------------- signals in a run

MOMENTS = {
    "the first rollout": (1, signal.SIGTERM, "videos_of:4", None),
    "round 1, after 3": (
        1, signal.SIGTERM, "optimizer_steps:3", "round_1/checkpoints/update-000003",
    ),
    "round 1, after 6": (
        2, signal.SIGINT, "optimizer_steps:6", "round_1/checkpoints/update-000006",
    ),
    "round 2, after 5": (
        2, signal.SIGHUP, "optimizer_steps:11", "round_2/checkpoints/update-000005",
    ),
}  # fmt: skip
"""When a signal comes -> of how many rounds the run is, the signal, the moment, the checkpoint that
it leaves."""


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_saves_and_the_run_goes_on_from_there(
    small: Compose, begun: Compose, unbroken: Sequence[Any], tmp_path: Path, moment: str
) -> None:
    last, number, when, checkpoint = MOMENTS[moment]
    rounds = f"round={last}"
    settings = begun if checkpoint else small  # in the rollout a store would have its videos
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    with pytest.raises(Stopped) as stopped, stop_signals():
        train(settings(rounds, SIGNAL.format(number=int(number), when=when)))
    assert stopped.value.code == 128 + number
    assert f"stopped by {number.name}" in str(stopped.value)
    if checkpoint:
        assert f"in {moment} of 6 optimizer steps; the same command goes on" in str(stopped.value)
        assert (tmp_path / "outputs" / "run" / f"{checkpoint}.ckpt").is_file()
        assert not (tmp_path / "outputs" / "run" / checkpoint[:7] / "policy.json").exists()
    after = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    assert after == handlers, "the signals are not given back"
    train(settings(rounds))
    assert results(tmp_path / "outputs") == unbroken[: last + 1]


@pytest.mark.slow
def test_a_slurm_job_saves_is_requeued_and_goes_on(
    begun: Compose, unbroken: Sequence[Any], tmp_path: Path, scontrol: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In round 1, which is all that it is asked for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hpc_ckpt_9.ckpt").write_bytes(b"of another run, which Lightning would go on with")
    usr1 = SIGNAL.format(number=int(signal.SIGUSR1), when="optimizer_steps:3")
    with pytest.raises(Stopped, match="after 3 of 6 optimizer steps; job 77 is requeued;") as found:
        train(begun("round=1", "requeue=true", usr1))
    assert found.value.code == 128 + signal.SIGUSR1
    assert scontrol.read_text() == "requeue 77\n"
    assert [*tmp_path.rglob("hpc_ckpt*")] == [tmp_path / "hpc_ckpt_9.ckpt"]
    train(begun("round=1", "requeue=true"))
    assert results(tmp_path / "outputs") == unbroken[:2]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_leave_together(tmp_path: Path, rank: int) -> None:
    """Whichever rank hears of it, in the training (0) or in the rollout (1)."""
    when = "optimizer_steps:2" if rank == 0 else "rollout:1,videos_of:1"
    words = [
        "rollout.prompts=4", "rollout.n=2", "rollout.steps=2", "data.optimizer_steps=4",
        "data.batch_size=1", "labelling.pair_rule.margin=0", "labelling.filters.motion_ratio=0",
        "evaluation.n=1", "evaluation.split=select", "evaluation.prompts=4", "logger=none",
        "callbacks.progress=null", "callbacks.videos=null", "trainer=ddp", "trainer.devices=2",
        "trainer.accelerator=cpu", "name=run", "round=1", f"paths.outputs={tmp_path}",
        SIGNAL.format(number=int(signal.SIGTERM), when=f"{when},rank:{rank}"),
    ]  # fmt: skip
    if rank == 0:
        status = ranks(run, str(tmp_path), dict(os.environ), "train.py", words, end=False)
        told = (tmp_path / "stderr").read_text()
    else:  # the second process is started by the first one
        done = command("train.py", *words)
        status, told = done.returncode, done.stderr
    assert status == 143, told
    assert told.count("stopped by SIGTERM") == 1 and "Traceback" not in told
    saved = [file.name for file in (tmp_path / "run" / "round_1").glob("checkpoints/*")]
    assert saved == (["update-000002.ckpt"] if rank == 0 else [])


# ---------------------------------------------------------------- rounds that are cut short


@pytest.mark.slow
@pytest.mark.parametrize(
    ("last", "words", "said", "kept"),
    [
        (
            1,
            STOP.format(steps=3),
            "in round 1, after 3 of 6 optimizer steps;",
            ["update-000003.ckpt"],
        ),
        (2, STOP.format(steps=6), "before the next round;", ["update-000006.ckpt"]),
        (1, "+trainer.max_time={seconds:0}", "before the next round;", []),
    ],
    ids=["in a round", "after a round", "before a round"],
)
def test_a_round_cut_short_is_not_finished_and_goes_on(
    begun: Compose, unbroken: Sequence[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    last: int, words: str, said: str, kept: list[str],
) -> None:  # fmt: skip
    train(begun(f"round={last}", words))
    assert f"the trainer was stopped {said} the same command" in capsys.readouterr().out
    folder = tmp_path / "outputs" / "run" / "round_1"
    assert [file.name for file in folder.glob("checkpoints/*")] == kept
    assert (folder / "policy.json").exists() == ("000006" in str(kept))
    train(begun(f"round={last}"))
    assert results(tmp_path / "outputs") == unbroken[: last + 1]


@pytest.mark.slow
def test_a_module_that_skips_batches_leaves_its_round_open(
    begun: Compose, unbroken: Sequence[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Lightning ends an epoch where the module's hook returns -1."""
    original = PreferenceModule.on_train_batch_start

    def skipping(self: PreferenceModule, *args: Any) -> int | None:
        original(self, *args)
        return -1 if self.trainer.global_step >= 3 else None

    with monkeypatch.context() as patch:
        patch.setattr(PreferenceModule, "on_train_batch_start", skipping)
        train(begun("round=1"))
    assert "in round 1, after 3 of 6 optimizer steps; the same" in capsys.readouterr().out
    train(begun("round=1"))
    assert results(tmp_path / "outputs") == unbroken[:2]


CUT = ("fast_dev_run=true", "fast_dev_run=3", "limit_train_batches=1", "limit_train_batches=0.5",
       "overfit_batches=1", "max_steps=2")  # fmt: skip
OWN = ("max_epochs=5", "callbacks=[]", "enable_checkpointing=true", "logger=false",
       "default_root_dir=elsewhere", "plugins=[]", "reload_dataloaders_every_n_epochs=0",
       "use_distributed_sampler=true", "enable_model_summary=true")  # fmt: skip


@pytest.mark.parametrize("word", [*CUT, *OWN])
def test_arguments_of_the_trainer_that_change_a_round_are_refused(
    small: Compose, tmp_path: Path, word: str
) -> None:
    with pytest.raises(InputError, match=rf"trainer\.{word.partition('=')[0]}"):
        train(small(f"+trainer.{word}"))
    assert not (tmp_path / "outputs" / "run").exists()


@pytest.mark.parametrize(
    "words",
    ["GradientAccumulationScheduler,scheduling:{0:2}", "StochasticWeightAveraging,swa_lrs:0.1",
     "EMAWeightAveraging", "LearningRateFinder", "BatchSizeFinder"],
)  # fmt: skip
def test_callbacks_that_change_a_round_are_refused(small: Compose, words: str) -> None:
    name = words.partition(",")[0]
    with pytest.raises(InputError, match=f"the callback {name} would change what"):
        train(small(f"+callbacks.x={{_target_:lightning.pytorch.callbacks.{words}}}"))


@pytest.mark.parametrize("key", ["callbacks.x", "logger"])
def test_what_is_no_callback_or_logger_is_refused(small: Compose, key: str) -> None:
    word = f"{'+' * (key != 'logger')}{key}={{_target_:os.getcwd}}"
    with pytest.raises(InputError, match=rf"{key}\._target_=os.getcwd: give a class whose"):
        train(small("+" + word if key == "logger" else word))


def test_an_error_before_the_rounds_begin_is_told_itself() -> None:
    """Not that there is no module yet."""
    callback = IterationCallback(RunDir("nowhere"), [])
    callback.on_exception(L.Trainer(logger=False), L.LightningModule(), ValueError())


def test_a_trainer_of_ones_own_never_takes_another_runs_checkpoint(tmp_path: Path) -> None:
    trainer = L.Trainer(max_epochs=1, logger=False, enable_checkpointing=False)
    check_trainer(trainer, RunDir(tmp_path / "run"))
    trainer._checkpoint_connector._ckpt_path = str(tmp_path / "run" / "round_1" / "update.ckpt")
    check_trainer(trainer, RunDir(tmp_path / "run"))
    trainer._checkpoint_connector._ckpt_path = str(tmp_path / "hpc_ckpt_1.ckpt")
    with pytest.raises(InputError, match=r"hpc_ckpt_1\.ckpt, which is no checkpoint of the run"):
        check_trainer(trainer, RunDir(tmp_path / "run"))


# ---------------------------------------------------------------- the handlers alone


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_every_signal_ends_with_its_status(number: signal.Signals) -> None:
    code = (
        "import os, sys; from app.entry import friendly\n"
        f"with friendly(False): os.kill(os.getpid(), {int(number)}); sys.exit(7)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert done.returncode == 128 + number
    assert done.stderr == f"\nstopped by {number.name}; the same command goes on from there\n"


@pytest.mark.slow
def test_a_rank_ends_with_a_killed_leader() -> None:
    rank = (
        "import os, time; from ipo_lightning.parallel.signals import stop_signals\n"
        "with stop_signals(): print('up', flush=True); time.sleep(100)"
    )
    leader = (
        "import os, subprocess, sys\n"
        f"os.environ['{LEADER}'] = str(os.getpid())\n"
        f"rank = subprocess.Popen([sys.executable, '-c', {rank!r}], stdout=subprocess.PIPE)\n"
        "rank.stdout.readline(); print(rank.pid, flush=True); os._exit(9)"
    )
    told = subprocess.run([sys.executable, "-c", leader], cwd=REPO, stdout=subprocess.PIPE)
    left = int(told.stdout)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{left}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{left}").exists()


def test_an_ignored_signal_stays_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_deferred_signal_waits_to_be_asked_for() -> None:
    signals = StopSignals()
    signals.install()
    try:
        signals.leave("nothing has come, so nobody leaves")
        signals.deferred = True
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # a launcher's own: the first one counts
        with pytest.raises(Stopped, match="stopped by SIGTERM in round 2; the same") as stopped:
            signals.leave("round 2")
    finally:
        signals.restore()
    assert stopped.value.code == 143


def test_a_signal_within_a_finalizer_is_not_lost() -> None:
    """Python drops what is raised there."""

    class Odd:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    before = sys.unraisablehook
    with pytest.raises(Stopped), stop_signals():
        Odd()
        threading.Event().wait(20)
    assert sys.unraisablehook == before


def test_whoever_insists_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds later; what a launcher passes on at once counts as the same signal."""
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    signals = StopSignals()
    signals.install()
    try:
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signals._since -= 3
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    finally:
        signals.restore()
    assert left == [130]


def test_a_forked_worker_leaves_signals_to_its_parent() -> None:
    signals = StopSignals()
    signals.install()
    try:
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143
        assert signals.received is None
    finally:
        signals.restore()


def test_what_comes_of_a_requeue_is_said(
    scontrol: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert requeue_job() == "job 77 is requeued"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert requeue_job() == "job 70_3 is requeued"
    assert scontrol.read_text() == "requeue 77\nrequeue 70_3\n"
    tool = tmp_path / "bin" / "scontrol"
    tool.write_text("#!/bin/sh\necho 'Requested operation is disabled' >&2; exit 1\n")
    assert "could not be requeued (scontrol: Requested operation" in requeue_job()
    tool.unlink()
    assert "job 70_3 could not be requeued" in requeue_job()
    for name in ("JOB_ID", "ARRAY_JOB_ID"):
        monkeypatch.delenv(f"SLURM_{name}")
    assert requeue_job() == "not requeued, since SLURM_JOB_ID is not set"
