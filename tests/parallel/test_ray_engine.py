"""``stages=ray`` on three nodes of this machine: the results of one process, whatever is lost."""

import importlib.util
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.entry import build
from ipo_lightning.backbones.cogvideox import CogVideoX
from ipo_lightning.critics.stage.critique import PointCritique
from ipo_lightning.errors import InputError
from ipo_lightning.parallel.ray_engine import CriticActors, RayEngine
from ipo_lightning.parallel.runtime import Runtime
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.policy import Sampling
from ipo_lightning.sampling import PromptSeeds, Sampler
from ipo_lightning.storage.records import Candidate
from ipo_lightning.storage.store import Store, read_jsonl
from tests.conftest import ComposeTrain
from tests.helpers import tiny
from tests.helpers.nodes import Bright, Nodes, nodes
from train import train

SOME = [PromptSeeds(i, f"a ring, {i}", (2 * i, 2 * i + 1)) for i in range(8)]
COMMON = (
    "rollout.prompts=3", "rollout.n=2", "rollout.steps=2", "data.optimizer_steps=2",
    "labelling.pair_rule.margin=0", "labelling.filters.motion_ratio=0", "evaluation.n=1",
    "evaluation.split=select", "evaluation.prompts=2", "callbacks.progress=null",
    "callbacks.videos=null", "callbacks.report=null", "trainer.enable_progress_bar=false",
    "trainer.accelerator=cpu", "logger=none", "name=run", "round=1",
)  # fmt: skip


def test_the_extra_is_named_where_ray_is_missing(
    monkeypatch: pytest.MonkeyPatch, compose_train: ComposeTrain
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"ipo_lightning\[ray\]"):
        build(compose_train("stages=ray").stages, "stages")


def test_critics_need_room_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with pytest.raises(InputError, match="workers=null: would leave"):
        RayEngine(critics=CriticActors(workers=1))


def test_the_choice_of_an_engine_is_no_setting_of_a_result(compose_train: ComposeTrain) -> None:
    assert compose_train("stages=ray").name == compose_train().name


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    pytest.importorskip("ray")
    with nodes(3) as found:
        yield found


@pytest.fixture(scope="module")
def shared_engine(cluster: Nodes) -> Iterator[RayEngine]:
    found = RayEngine(address=cluster.address)
    yield found
    found.close()


@pytest.fixture
def engine(cluster: Nodes, shared_engine: RayEngine) -> RayEngine:
    """On three nodes, also after a test that has lost one."""
    while len(cluster.ids()) < 3:
        cluster.add()
    return shared_engine


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> CogVideoX:
    return tiny.policy(tiny.save_pipeline(tmp_path_factory.mktemp("tiny") / "policy"))


Draw = Callable[..., list[Candidate]]


@pytest.fixture(scope="module")
def draw(policy: CogVideoX) -> Draw:
    """Candidates of a tiny policy."""

    def drawn(
        root: Path, runtime: Runtime, on_candidates: Callable[[Any], Any] | None = None
    ) -> list[Candidate]:
        sampler = Sampler(policy, Store(root), Sampling(2), lossless=True)
        network = policy.build().eval()
        return sampler.generate(policy.identity, SOME, network, runtime, "test", on_candidates)

    return drawn


@pytest.fixture(scope="module")
def made(draw: Draw, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Candidate]]:
    """A store, and the candidates that one process makes there."""
    root = tmp_path_factory.mktemp("made")
    return root, draw(root, Runtime())


@pytest.fixture(scope="module")
def alone(made: tuple[Path, list[Candidate]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The verdicts of one process on them."""
    return asked(Bright(tmp_path_factory.mktemp("alone")), None, made)


def by(engine: RayEngine) -> Runtime:
    return Runtime(workers=Workers(bars=False, engine=engine))


def asked(
    critic: Bright, engine: RayEngine | None, made: tuple[Path, list[Candidate]]
) -> list[Any]:
    """Verdicts without the store's earlier ones."""
    root, candidates = made
    critic.folder.mkdir(exist_ok=True)
    critic.identity = f"bright {critic.folder}"
    workers = Workers(bars=False, engine=engine)
    verdicts = PointCritique(critic, Store(root)).ask(candidates, workers, "cpu", "critique")
    return [replace(one, critic="") for one in verdicts]


@pytest.mark.slow
def test_a_run_is_that_of_one_process(
    cluster: Nodes, compose_train: ComposeTrain, tmp_path: Path
) -> None:
    train(compose_train(*COMMON, outputs=tmp_path / "one"))
    words = ("stages=ray", f"stages.address='{cluster.address}'")
    train(compose_train(*COMMON, *words, outputs=tmp_path / "ray"))
    lines = [read_jsonl(tmp_path / kind / "run/rounds.jsonl") for kind in ("one", "ray")]
    one, ray = ([line | {"seconds": 0} for line in some] for some in lines)
    assert ray == one
    for name in ("candidates.jsonl", "verdicts.jsonl", "pairs.jsonl", "evaluation.jsonl"):
        files = [tmp_path / kind / "run/round_1" / name for kind in ("one", "ray")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_nodes_are_lost_and_join_in_mid_rollout(
    cluster: Nodes,
    engine: RayEngine,
    draw: Draw,
    made: tuple[Path, list[Candidate]],
    tmp_path: Path,
) -> None:
    once = threading.Lock()

    def change(_: Any) -> None:
        if once.acquire(blocking=False):
            cluster.kill(cluster.ids()[0])
            cluster.add()

    assert draw(tmp_path, by(engine), change) == made[1]
    assert once.locked()


@pytest.mark.slow
def test_a_node_is_lost_in_mid_critique(
    cluster: Nodes,
    engine: RayEngine,
    made: tuple[Path, list[Candidate]],
    alone: Any,
    tmp_path: Path,
) -> None:
    """It has begun a call that it would never end."""
    victim = cluster.ids()[-1]
    critic = Bright(tmp_path, hangs=[victim])
    over = threading.Event()

    def kill() -> None:
        while not (critic.calls(victim) or over.wait(0.05)):
            pass
        if not over.is_set():
            cluster.kill(victim)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert asked(critic, engine, made) == alone
    finally:
        over.set()
        killer.join()
    assert critic.calls(victim) == 1
    assert victim not in cluster.ids()


@pytest.mark.slow
def test_a_slow_node_gets_fewer_units_and_a_new_one_some(
    cluster: Nodes,
    engine: RayEngine,
    made: tuple[Path, list[Candidate]],
    alone: Any,
    tmp_path: Path,
) -> None:
    slow, *others = cluster.ids()
    critic = Bright(tmp_path, slow=[slow], seconds=3.0)
    assert asked(critic, engine, made) == alone
    assert critic.calls(slow) < max(map(critic.calls, others))


@pytest.mark.slow
def test_an_error_there_is_raised_here(
    engine: RayEngine, made: tuple[Path, list[Candidate]], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="^weights=none: give some$"):
        asked(Bright(tmp_path, fails=True), engine, made)


@pytest.mark.slow
def test_a_signal_ends_the_actors_and_what_is_finished_is_found(
    engine: RayEngine, draw: Draw, made: tuple[Path, list[Candidate]], tmp_path: Path
) -> None:
    kept: list[Any] = []

    def leave(candidates: Any) -> None:
        kept.append(candidates)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path, by(engine), leave)
    again: list[Any] = []
    assert draw(tmp_path, by(engine), again.append) == made[1]
    assert kept
    assert len(again) <= len(SOME) - len(kept)
