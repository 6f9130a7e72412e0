"""A whole round labelled by a server that garbles, dawdles and dies: nothing wrong is learnt."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

import pytest
from hydra import compose, initialize_config_dir

from app.entry import CONF, register_resolvers
from ipo_lightning.critics.protocols import PointCritic
from ipo_lightning.errors import InputError
from ipo_lightning.labelling.standings import no_verdict
from ipo_lightning.shapes.critic import ShapesCritic
from ipo_lightning.storage.layout import RoundDir, RunDir
from ipo_lightning.storage.records import Candidate, PairVerdict
from ipo_lightning.storage.store import Store
from ipo_lightning.video import read_video
from sample import sample
from tests.conftest import ComposeTrain
from tests.critics.vlm.test_endpoint import free_port
from tests.helpers.ranks import SERVER
from tests.helpers.vlm_server import MODEL, Plan, hashed, serve, served, truthful
from train import train

KEY = "sk-test-abcdefghij0123456789"
PLAN = Plan(garbled=0.2, slow=0.1, once=0.1, seconds=2.0)
EXPECTED = {
    "garbled": "unreadable", "cut": "cut short", "empty": "empty answer", "slow": "timeout",
    "once": "", "sound": "",
}  # fmt: skip
"""What becomes of a question: the fault, or none."""
PASSING = {"timeout", "empty answer"}
"""Faults that a later run asks again for."""
RETRIES = 3
"""What fails once fails once in each life of the server; its end may break one more attempt."""


@dataclass
class Process:
    """A server in a process of its own, killed after so many answers and started again."""

    plan: Plan
    port: int
    kill_after: int
    lives: list[list[dict[str, object]]] = field(default_factory=list)
    """What each of its lives was asked."""

    def run(self) -> None:
        """Live, die once, live again until the end."""
        for _ in range(2):
            self.live()

    def live(self) -> None:
        """Start, and read what it tells until it is dead."""
        received, sent = SERVER.Pipe(duplex=False)
        process = SERVER.Process(target=serve, args=(self.port, KEY, self.plan, sent))
        process.start()
        sent.close()
        told: list[dict[str, object]] = []
        first = not self.lives
        self.lives.append(told)
        self.process = process
        with received, suppress(EOFError, OSError):  # it ends with the process
            while True:
                told.append(received.recv())
                if first and len(told) > self.kill_after:
                    process.kill()
        process.join()

    def expected(self, *shown: str) -> str:
        """What must have become of the question about these videos: a fault, or nothing."""
        kinds = {str(told["kind"]) for told in self.asked if told["shown"] == list(shown)}
        (kind,) = kinds
        return EXPECTED[kind]

    @property
    def asked(self) -> list[dict[str, object]]:
        """Every question of all lives."""
        return [line for told in self.lives for line in told]


@contextmanager
def mortal(plan: Plan, kill_after: int) -> Iterator[Process]:
    """Such a server, for the time of a test."""
    server = Process(plan, free_port(), kill_after)
    living = Thread(target=server.run)
    living.start()
    try:
        yield server
    finally:
        while living.is_alive():
            server.process.kill()
            living.join(0.1)


def settings(port: int, critic: str, *more: str) -> list[str]:
    """A round whose critic is the server."""
    vlm = {
        "model": MODEL, "picture": "png", "top_logprobs": "null",
        "server.base_url": f"http://127.0.0.1:{port}/v1", "server.key_variable": "TEST_KEY",
        "server.timeout": 0.5, "server.backoff": 0.01, "server.patience": 120,
        "server.retries": RETRIES,
        "viewing.fps": 1000, "viewing.least_frames": 1, "viewing.min_pixels": 1,
        "viewing.most_frames": 100,
    }  # fmt: skip
    words = ["critic.prompt_template.prompt_text=own"] if critic.startswith("unifiedreward") else []
    return [
        f"critic={critic}", "critic/vlm=openai", *words, "rollout.prompts=10", "round=1",
        *(f"critic.vlm.{name}={value}" for name, value in vlm.items()), *more,
    ]  # fmt: skip


def truths(candidates: list[Candidate], store: Store) -> dict[str, tuple[float, str]]:
    """Name of a video -> its true score, and the name of its pixels."""
    critic: PointCritic = ShapesCritic()
    found = {}
    for one in candidates:
        clip = read_video(store.path("videos", one.video, ".mp4"))
        score = critic.rate([clip], [one.prompt])[0].score
        assert score is not None
        found[one.video] = score, hashed(clip.frames)
    return found


def contents(folder: Path) -> Iterator[bytes]:
    """All that lies on disk."""
    return (path.read_bytes() for path in folder.rglob("*") if path.is_file())


def outcome(verdict: PairVerdict) -> str:
    """Which of two is better."""
    assert verdict.outcome in (0.0, 0.5, 1.0) and verdict.consistent
    return {0.0: "second", 0.5: "tie", 1.0: "first"}[verdict.outcome]


def check_labels(one: RoundDir, true: Mapping[str, tuple[float, str]]) -> None:
    """What is kept is right, and what is missing is counted."""
    faults = Counter(answer.fault for answer in one.verdicts() if answer.fault)
    dropped = json.loads(one.labelling_file.read_text())["dropped"]
    told = {reason: count for reason, count in dropped.items() if "verdict: " in reason}
    assert told == {no_verdict(fault): count for fault, count in faults.items()}
    assert one.pairs()
    for pair in one.pairs():
        assert true[pair.winner_video][0] > true[pair.loser_video][0]


@pytest.mark.slow
def test_a_round_of_ratings_by_a_server_that_fails_in_every_way(
    small: ComposeTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    with mortal(PLAN, kill_after=15) as server:
        cfg = small(*settings(server.port, "unifiedreward_points"))
        line = train(cfg)
    assert line is not None and line["round"] == 1
    one, store = RunDir(f"{cfg.paths.outputs}/run").round(1), Store(cfg.paths.store)
    true = truths(one.candidates(), store)

    # It was killed in the midst, and the round went on.
    assert len(server.lives) == 2 and all(len(life) > 10 for life in server.lives)
    # Every failure is counted under its name; what failed once was asked again.
    expected = [server.expected(true[answer.video][1]) for answer in one.verdicts()]
    assert [answer.fault for answer in one.verdicts()] == expected
    assert {"", "unreadable", "timeout"} <= set(expected)
    # No score is wrong, and so is no label.
    for verdict in one.verdicts():
        right = None if verdict.fault else pytest.approx(1 + 4 * true[verdict.video][0], abs=1e-8)
        assert verdict.score == right
    check_labels(one, true)
    # The key was sent, or nothing would have been answered, and is nowhere.
    assert not any(KEY.encode() in content for content in contents(tmp_path))

    # A later run asks again for what failed in passing, and for nothing else.
    late = [true[v.video][1] for v in one.verdicts() if v.fault in PASSING]
    with mortal(Plan(), kill_after=10**6) as sound:
        again = small(
            *settings(sound.port, "unifiedreward_points"), "name=again", "until=labelling"
        )
        train(again)
        asked = [str(told["shown"][0]) for told in sound.asked]  # type: ignore[index]
    assert set(late) <= set(asked) and len(asked) == len(set(asked))
    passed = {server.expected(name) for name in asked}  # also of the evaluation
    assert {"timeout"} <= passed <= PASSING
    two = RunDir(f"{again.paths.outputs}/again").round(1)
    assert {v.fault for v in two.verdicts()} == set(expected) - PASSING
    check_labels(two, true)


@pytest.mark.slow
def test_a_round_of_comparisons_by_a_server_that_fails_in_every_way(
    small: ComposeTrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    with mortal(PLAN, kill_after=15) as server:
        many = (
            "rollout.n=4",
            "++labelling.max_missing=1",
            "rollout.prompts=5",
        )  # half of the couples lack an order
        cfg = small(*settings(server.port, "ipo_form", *many), "until=labelling")
        train(cfg)
    one = RunDir(f"{cfg.paths.outputs}/run").round(1)
    true = truths(one.candidates(), Store(cfg.paths.store))
    assert len(server.lives) == 2 and all(len(life) > 10 for life in server.lives)
    for verdict in one.verdicts():
        (first, a), (second, b) = true[verdict.first_video], true[verdict.second_video]
        orders = [server.expected(a, b), server.expected(b, a)]
        assert verdict.fault == next((fault for fault in orders if fault), "")
        if not verdict.fault:
            right = "first" if first > second else "second" if second > first else "tie"
            assert outcome(verdict) == right
    assert {"", "unreadable", "timeout"} <= {verdict.fault for verdict in one.verdicts()}
    check_labels(one, true)


@pytest.mark.slow
def test_samples_are_scored_by_a_server_and_kept_where_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)

    def words(port: int) -> list[str]:
        ours = settings(port, "unifiedreward_points", "critic.vlm.server.patience=0")
        return [word for word in ours if word.startswith("critic")]

    def draw(*more: str) -> list[Path]:
        given = [
            "ckpt=ipo_lightning/shapes/pipeline",
            "prompt='a red ring moving left'",
            f"paths.outputs={tmp_path}",
        ]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("sample", [*given, "steps=3", "trainer.accelerator=cpu", *more])
        return sample(cfg)

    register_resolvers()
    with served(truthful, key=KEY) as server:
        draw(*words(server.server_address[1]))
    assert f"{MODEL}@served#" in capsys.readouterr().out and len(server.requests) == 1
    with pytest.raises(InputError, match="cannot be reached .*start the server again"):
        draw(*words(free_port()), "seed=5")
    assert len(list(tmp_path.rglob("*.mp4"))) == 2
