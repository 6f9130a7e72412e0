"""What ranks read of the store and of the network's files, and what of it they hold."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from ipo_lightning.backbones.cogvideox import CogVideoX
from ipo_lightning.backbones.network_settings import NetworkSettings
from ipo_lightning.backbones.weights import StoredWeights
from ipo_lightning.critics.protocols import Rating
from ipo_lightning.critics.stage.critique import PointCritique
from ipo_lightning.draws.dataset import Draws
from ipo_lightning.draws.reference_errors import ReferenceErrors
from ipo_lightning.errors import InputError
from ipo_lightning.parallel.runtime import Runtime
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.policy import Sampling
from ipo_lightning.sampling import PromptSeeds, Sampler
from ipo_lightning.storage.layout import RoundData
from ipo_lightning.storage.records import Candidate, Point
from ipo_lightning.storage.store import LostBlob, Store
from tests.helpers import tiny
from tests.helpers.ranks import ranks

ITEMS = [PromptSeeds(i, prompt, (2 * i, 2 * i + 1)) for i, prompt in enumerate(["a ring", "a"])]


class Even:
    """Rates all videos alike."""

    identity = "even"

    def load(self, device: str) -> None:
        """Nothing."""

    def release(self) -> None:
        """Nothing."""

    def rate(self, clips: Any, prompts: Any) -> list[Rating]:
        """1 each."""
        return [Rating(1.0) for _ in clips]


def a_round(folder: Path, runtime: Runtime) -> list[str]:
    """Rollout, critique and reference errors of a round; which files of the store it opened."""
    policy, store = tiny.policy(folder / "tiny"), Store(folder / "store")
    opened: list[str] = []

    def note(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and str(args[0]).startswith(str(store.root)):
            opened.append(Path(str(args[0])).relative_to(store.root).parts[0])

    sys.addaudithook(note)
    sampler, network = Sampler(policy, store, Sampling(2)), policy.build().eval()
    candidates = sampler.generate("base", ITEMS, network, runtime, "rollout")
    PointCritique(Even(), store).ask(candidates, runtime.workers, "cpu", "critique")
    errors = ReferenceErrors(policy, policy.objective(), store, network="base",
                             precision="32-true", batch_size=2)  # fmt: skip
    texts = runtime.workers.agree(lambda: {one.prompt: sampler.text_blob(one.prompt)
                                           for one in ITEMS})  # fmt: skip
    draws = Draws(RoundData(1, [point(one) for one in candidates], texts), store, 0, 8)
    errors.compute(draws, network, runtime.workers, nullcontext, "errors")
    runtime.workers.agree(lambda: errors.table(draws))
    return opened


def point(one: Candidate) -> Point:
    """A desirable video."""
    return Point(0, one.prompt_index, one.prompt, one.candidate, one.latents, one.video, True, 1.0)


def as_rank(folder: Path) -> None:
    """Go through the round; write down which kinds of files this rank opened."""
    distributed.init_process_group("gloo")

    def broadcast(value: Any) -> Any:
        held = [value]
        distributed.broadcast_object_list(held, 0)
        return held[0]

    rank = distributed.get_rank()
    workers = Workers(rank, 2, distributed.barrier, broadcast, bars=False)
    opened = a_round(folder, Runtime(workers=workers))
    (folder / f"opened_{rank}").write_text("\n".join(sorted(set(opened))))
    distributed.destroy_process_group()


@pytest.mark.slow
def test_the_leading_rank_alone_looks_what_is_there(tmp_path: Path) -> None:
    tiny.save_pipeline(tmp_path / "tiny")
    a_round(tmp_path, Runtime())
    assert ranks(as_rank, tmp_path) == 0
    assert {"rollouts", "verdicts"} <= set((tmp_path / "opened_0").read_text().split())
    assert (tmp_path / "opened_1").read_text() == ""


# -------------------------------------------------------------------- agreeing


class Others:
    """A rank that hears what the leading one said."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.leading = Workers(0, 2, broadcast=self.say)
        self.second = Workers(1, 2, broadcast=lambda _: self.said[-1])

    def say(self, value: Any) -> Any:
        """Kept for the other."""
        self.said.append(value)
        return value


def fail(error: Exception) -> Any:
    """What a search of the disk may end with."""
    raise error


def test_the_others_hear_what_the_leading_rank_found_and_do_not_look() -> None:
    both = Others()
    assert both.leading.agree(lambda: ["a"]) == ["a"]
    assert both.second.agree(lambda: fail(AssertionError("it looked"))) == ["a"]


@pytest.mark.parametrize("error", [InputError("verdicts.jsonl is damaged"), LostBlob("a is gone")])
def test_all_ranks_stop_with_what_stopped_the_leading_one(error: Exception) -> None:
    both = Others()
    for workers in (both.leading, both.second):
        with pytest.raises(type(error), match=str(error)):
            workers.agree(lambda: fail(error))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_unit_whose_file_is_lost_is_left_and_the_rest_done(threads: int) -> None:
    done: list[int] = []

    def work(one: int) -> int:
        return fail(LostBlob("gone")) if one == 1 else one

    workers = Workers(threads=threads, bars=False)
    workers.run_finishing([0, 1, 2], work, done.append, "work", "units")
    workers.run([0, 1, 2], lambda one: done.append(work(one)), "work", "units", together=True)
    assert sorted(done) == [0, 0, 2, 2]


# -------------------------------------------------------------------- the network's own files


def private() -> int:
    """Bytes of memory that this process has to itself; the pages of mapped files are not."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


def a_large_network(folder: Path) -> CogVideoX:
    """Twelve blocks, 48 MB in bfloat16 on disk."""
    tiny.save_pipeline(folder)
    policy = tiny.policy(folder)
    config = {
        **policy.config,
        "num_layers": 12,
        "num_attention_heads": 16,
        "attention_head_dim": 24,
    }
    network = policy.transformer_class.from_config(config)
    for parameter in network.parameters():
        parameter.data = parameter.data.bfloat16()
    network.save_pretrained(folder / "transformer")
    return tiny.policy(folder)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_network_that_leaves_the_cpu_is_there_a_block_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = a_large_network(tmp_path / "large")
    put, held = StoredWeights.put, list[int]()

    def measured(*args: Any) -> None:
        put(*args)
        held.append(private())

    monkeypatch.setattr(StoredWeights, "put", measured)
    policy.build(torch.device("meta"))  # as a GPU: what is moved leaves the memory
    before = private()
    network = policy.build(torch.device("meta"))
    size = sum(parameter.numel() * 4 for parameter in network.parameters())
    assert size > 60e6 and max(held[len(held) // 2 :]) - before < size / 8


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_in_the_networks_own_precision_stay_mapped(tmp_path: Path) -> None:
    policy = a_large_network(tmp_path / "large")
    policy.network_settings = NetworkSettings("bfloat16")
    policy.build()
    before = private()
    network = policy.build()
    assert private() - before < 0.1 * sum(one.nbytes for one in network.parameters())
