"""A whole round labelled by a server that garbles, dawdles and dies: nothing wrong is learnt."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Thread

import pytest

from conf.entry import REPO
from ipo_lightning.critics.base import PointCritic
from ipo_lightning.records import Candidate
from ipo_lightning.rounds import RunDir
from ipo_lightning.shapes.critic import ShapesCritic
from ipo_lightning.store import Store
from ipo_lightning.video import read_video
from tests.chat_server import MODEL, Plan, hashed
from tests.conftest import ComposeTrain
from tests.test_endpoint import free_port
from train import train

KEY = "sk-test-abcdefghij0123456789"
PLAN = Plan(garbled=0.2, slow=0.1, once=0.1, seconds=0.6)
EXPECTED = {"garbled": "unreadable", "slow": "timeout", "once": "", "sound": ""}
"""What becomes of a question: the fault, or none."""


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
        command = [sys.executable, "-m", "tests.chat_server", str(self.port), KEY]
        command += [json.dumps(asdict(self.plan))]
        self.process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True)
        told: list[dict[str, object]] = []
        first = not self.lives
        self.lives.append(told)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            told.append(json.loads(line))
            if first and len(told) > self.kill_after:
                self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    @property
    def asked(self) -> list[dict[str, object]]:
        """Every question of all lives."""
        return [line for told in self.lives for line in told if "kind" in line]


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


def settings(port: int, *more: str) -> list[str]:
    """A round whose critic is the server."""
    chat = {
        "model": MODEL, "picture": "png", "top_logprobs": "null",
        "server.base_url": f"http://127.0.0.1:{port}/v1", "server.key_variable": "TEST_KEY",
        "server.timeout": 0.4, "server.backoff": 0.01, "server.retries": 2, "server.patience": 120,
        "viewing.fps": 1000, "viewing.least_frames": 1, "viewing.min_pixels": 1,
        "viewing.most_frames": 100,
    }  # fmt: skip
    return [
        "critic=unifiedreward_points", "critic/chat=openai", "rollout.prompts=15", "round=1",
        *(f"critic.chat.{name}={value}" for name, value in chat.items()), *more,
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


@pytest.mark.slow
def test_a_round_by_a_server_that_fails_in_every_way(
    small: ComposeTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    with mortal(PLAN, kill_after=20) as server:
        cfg = small(*settings(server.port))
        line = train(cfg)
    assert line is not None and line["round"] == 1
    one = RunDir(f"{cfg.paths.outputs}/run").round(1)
    candidates, verdicts = one.candidates(), one.verdicts()
    true = truths(candidates, Store(cfg.paths.store))

    # It was killed in the midst, and went on.
    assert len(server.lives) == 2 and all(len(life) > 10 for life in server.lives)
    # Every failure is counted, under its name; whatever failed once was asked again.
    kinds = {tuple(told["shown"])[0]: str(told["kind"]) for told in server.asked}  # type: ignore[call-overload]
    expected = [EXPECTED[kinds[true[verdict.video][1]]] for verdict in verdicts]
    assert [verdict.fault for verdict in verdicts] == expected
    assert set(expected) == {"", "unreadable", "timeout"}
    dropped = json.loads(one.labelling_file.read_text())["dropped"]
    assert dropped["no verdict"] == sum(fault != "" for fault in expected)
    # No score is wrong, and so is no label.
    for verdict in verdicts:
        if verdict.fault:
            assert verdict.score is None
        else:
            assert verdict.score == pytest.approx(1 + 4 * true[verdict.video][0], abs=1e-8)
    assert one.pairs()
    for pair in one.pairs():
        assert true[pair.winner_video][0] > true[pair.loser_video][0]
    # The key was sent, or nothing would have been answered, and is nowhere.
    assert not any(KEY.encode() in content for content in contents(tmp_path))
    assert Counter(expected)[""] > len(expected) / 2
