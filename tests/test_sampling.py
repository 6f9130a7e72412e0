"""The choices of a rollout: schedulers, guidance, batches, caches; and how units are worked off."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    FasterCacheConfig,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
    TextKVCacheConfig,
    UniPCMultistepScheduler,
    WanPipeline,
)
from diffusers.hooks import LayerSkipConfig
from omegaconf import DictConfig
from torch import Tensor, nn

from ipo_lightning.backbones.caching import cache_kinds
from ipo_lightning.critics.protocols import Rating
from ipo_lightning.critics.stage.critique import PointCritique
from ipo_lightning.errors import InputError
from ipo_lightning.evaluation import Evaluation
from ipo_lightning.parallel.runtime import Runtime
from ipo_lightning.parallel.workers import WAITING, Workers
from ipo_lightning.policy import Sampling
from ipo_lightning.sampling import PromptSeeds, Sampler
from ipo_lightning.seeds import derive_seed, gaussian, generator
from ipo_lightning.storage.layout import RunDir
from ipo_lightning.storage.store import Store
from ipo_lightning.video import Clip
from tests.conftest import ComposeTrain
from tests.helpers import tiny, tiny_wan
from train import train

CPU = torch.device("cpu")
PROMPTS = ["a red ring moving left", "a blue cross"]
SEEDS = [11, 12, 13]
FAMILIES = pytest.mark.parametrize("family", ["cogvideox", "wan"])
Folders = Callable[..., Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """(scheduler, its changes) -> a pipeline's folder, each built once."""
    root = tmp_path_factory.mktemp("pipelines")

    def folder(kind: str, **changes: Any) -> Path:
        path = root / "-".join([kind, *map(str, changes.values())])
        if not path.exists():
            (tiny if kind in ("ddim", "dpm") else tiny_wan).save_pipeline(path, kind=kind)
            file = path / "scheduler/scheduler_config.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
        return path

    return folder


@pytest.fixture(scope="module")
def policies(folders: Folders) -> Callable[[str], Any]:
    """A policy by its family's name."""
    return lambda family: (
        tiny.policy(folders("ddim")) if family == "cogvideox" else tiny_wan.policy(folders("unipc"))
    )


# -------------------------------------------------------------------- schedulers and guidance


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("own", ["ddim", "dpm"])
@pytest.mark.parametrize(
    ("name", "kind"), [("ddim", CogVideoXDDIMScheduler), ("dpm", CogVideoXDPMScheduler)]
)
@torch.no_grad()
def test_cogvideox_samples_as_its_authors_do(
    folders: Folders, name: str, kind: Any, own: str, dynamic: bool
) -> None:
    """Any checkpoint, by either sampler, trailing: the same latents as the stock pipeline."""
    folder = folders(own, timestep_spacing="leading")
    policy, pipe = tiny.policy(folder), CogVideoXPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = kind.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    sampling = Sampling(7, 6.0, "a cross", scheduler=name, dynamic_guidance=dynamic)
    text = policy.embed([*PROMPTS, "a cross"], CPU)
    ours = policy.sample(policy.build(), SEEDS[:2], text[:2], text[2:], sampling)
    theirs = pipe(
        prompt=PROMPTS,
        negative_prompt=["a cross"] * 2,
        num_inference_steps=7,
        guidance_scale=6.0,
        use_dynamic_cfg=dynamic,
        max_sequence_length=tiny.NUM_TOKENS,
        latents=torch.stack([gaussian(seed, policy.latent_shape) for seed in SEEDS[:2]]),
        generator=[generator(derive_seed(seed, "sampler")) for seed in SEEDS[:2]],
        output_type="latent",
    ).frames
    assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4)
    plain = policy.sample(policy.build(), SEEDS[:2], text[:2], text[2:], Sampling(7, 6.0))
    assert not torch.allclose(ours, plain, atol=1e-2)  # leading steps end elsewhere


@pytest.mark.parametrize(
    ("own", "name", "kind", "shift"),
    [
        ("unipc", "euler", FlowMatchEulerDiscreteScheduler, "shift"),
        ("euler", "unipc", UniPCMultistepScheduler, "flow_shift"),
    ],
)
@torch.no_grad()
def test_wan_takes_either_sampler(
    folders: Folders, own: str, name: str, kind: Any, shift: str
) -> None:
    policy, pipe = tiny_wan.policy(folders(own)), WanPipeline.from_pretrained(folders(own))
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    chosen = {shift: tiny_wan.SHIFT, **(flow if name == "unipc" else {})}
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = kind(**chosen)
    text = policy.embed([*PROMPTS, ""], CPU)
    sampling = Sampling(5, 4.0, scheduler=name)
    ours = policy.sample(policy.build(), SEEDS[:2], text[:2], text[2:], sampling)
    theirs = pipe(
        prompt=PROMPTS,
        negative_prompt=[""] * 2,
        num_frames=tiny_wan.FRAMES,
        height=tiny_wan.HEIGHT,
        width=tiny_wan.WIDTH,
        num_inference_steps=5,
        guidance_scale=4.0,
        max_sequence_length=tiny.NUM_TOKENS,
        latents=torch.stack([gaussian(seed, policy.latent_shape) for seed in SEEDS[:2]]),
        output_type="latent",
    ).frames
    assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4)
    own_sampler = policy.sample(policy.build(), SEEDS[:2], text[:2], text[2:], Sampling(5, 4.0))
    assert not torch.allclose(ours, own_sampler, atol=1e-3)


@pytest.mark.parametrize(
    ("family", "choice", "told"),
    [
        ("cogvideox", {"scheduler": "unipc"}, "ddim, dpm"),
        ("wan", {"scheduler": "dpm"}, "unipc, euler"),
        ("wan", {"dynamic_guidance": True}, "only CogVideoX"),
        ("wan", {"cache": FasterCacheConfig()}, "takes two"),
        ("cogvideox", {"cache": FasterCacheConfig()}, "BFCHW"),
        ("cogvideox", {"cache": PromptSeeds(0, "", ())}, "cache config"),
    ],
)
def test_a_choice_that_the_family_lacks_is_refused_early(
    policies: Callable[[str], Any], tmp_path: Path, family: str, choice: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        Sampler(policies(family), Store(tmp_path), Sampling(4, 2.0, **choice))


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ({"dynamic_guidance": True}, "guidance_scale above 1"),
        ({"guidance_interval": (0.7, 0.3)}, "low and high"),
        ({"guidance_interval": (0.3, 1.3)}, "low and high"),
        ({"guidance_interval": 0.3}, "low and high"),
        ({"shared": 1.0}, "below 1"),
        ({"shared": -0.1}, "at least 0"),
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": "all"}, "at least 1, or auto"),
        ({"cache": FasterCacheConfig}, "cache config"),
        (
            {"cache": PyramidAttentionBroadcastConfig(current_timestep_callback=lambda: 1)},
            "functions",
        ),
    ],
)
def test_impossible_choices_are_refused(choice: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Sampling(4, **choice)


def test_choices_count_only_where_they_are_made(
    policies: Callable[[str], Any], tmp_path: Path
) -> None:
    """Defaults leave a video's key as it was before there were choices."""
    policy, item = policies("cogvideox"), PromptSeeds(0, "a red ring", (1, 2))

    def key(precision: str = "32-true", **choice: Any) -> str:
        sampler = Sampler(policy, Store(tmp_path), Sampling(4, 2.0, **choice))
        return sampler.key("abc", item, precision)

    assert Sampling(4, 2.0).departures == {}
    assert key(scheduler=None, shared=0.0, cache=None, batch_size=None) == key()
    choices: list[dict[str, Any]] = [
        {"scheduler": "dpm"}, {"scheduler": "ddim"}, {"dynamic_guidance": True}, {"shared": 0.3},
        {"shared": 0.5}, {"batch_size": 2}, {"batch_size": "auto"},
        {"cache": FirstBlockCacheConfig(0.1)}, {"cache": FirstBlockCacheConfig(0.2)},
        {"cache": PyramidAttentionBroadcastConfig(2)},
    ]  # fmt: skip
    assert len({key(), *(key(**choice) for choice in choices)}) == len(choices) + 1
    branched = Sampler(policy, Store(tmp_path), Sampling(4, 2.0, shared=0.5))
    independent = branched.independent().key("abc", item, "bf16-mixed")
    assert independent == key("bf16-mixed") != key()
    assert branched.independent().sampling == Sampling(4, 2.0)


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["cogvideox", "wan", "branched"])
def test_shipped_rollouts_say_what_they_are(choice: str, compose_train: ComposeTrain) -> None:
    from app.assembly import make_sampling

    sampling = make_sampling(compose_train(f"rollout={choice}"))
    if choice == "branched":
        assert sampling == Sampling(10, shared=0.2)
    else:
        assert (sampling.steps, sampling.batch_size, sampling.shared) == (50, "auto", 0)
        assert sampling.dynamic_guidance is (choice == "cogvideox")
    cached = compose_train(
        f"rollout={choice}",
        "rollout.cache={_target_: diffusers.FirstBlockCacheConfig, threshold: 0.2}",
    )
    assert make_sampling(cached).cache == FirstBlockCacheConfig(0.2)


# -------------------------------------------------------------------- guidance in an interval


@FAMILIES
@pytest.mark.parametrize("choice", [{}, {"shared": 0.4}, {"dynamic_guidance": True}])
def test_guidance_in_an_interval_asks_once_outside(
    policies: Callable[[str], Any], family: str, choice: dict[str, Any]
) -> None:
    """The whole interval is plain guidance and an empty one none, to the bit; each evaluation of
    the network is counted."""
    if family == "wan" and "dynamic_guidance" in choice:
        pytest.skip("Wan has none")
    policy, seen = policies(family), list[int]()
    network, text = policy.build(), policy.embed([PROMPTS[0], "a cross"], CPU)
    network.register_forward_pre_hook(
        lambda *call: seen.append(len(call[2]["hidden_states"])), with_kwargs=True
    )

    def ask(scale: float = 3.0, interval: Any = None, **more: Any) -> Tensor:
        sampling = Sampling(5, scale, guidance_interval=interval, **{**choice, **more})
        seen.clear()
        latents: Tensor = policy.sample(network, SEEDS, text[:1], text[1:], sampling)
        assert sum(seen) == sampling.evaluations(len(SEEDS))
        return latents

    whole, plain = ask(), ask(1.0, **({"dynamic_guidance": False} if choice else {}))
    assert torch.equal(ask(interval=(0, 1)), whole)
    assert torch.equal(ask(interval=(0.4, 0.4)), plain)
    some = {interval: ask(interval=interval) for interval in [(0, 0.4), (0.4, 0.8), (0.2, 1)]}
    different = [whole, plain, *some.values()]
    assert not any(
        torch.allclose(one, other) for i, one in enumerate(different) for other in different[:i]
    )


def test_an_interval_is_in_the_key_where_it_changes_a_step() -> None:
    assert Sampling(10, 3.0, guidance_interval=[0.3, 0.7]).departures == {"guided_steps": [3, 7]}
    for same in (
        Sampling(10, 3.0, guidance_interval=(0, 1)),
        Sampling(10, guidance_interval=(0, 0.5)),
    ):
        assert same.departures == {}
    assert Sampling(10, 3.0, guidance_interval=(0.3, 0.3)).guided is False
    drafts = Sampling(10, 3.0).draft(guidance_interval=(0, 0.5))
    assert drafts.evaluations(2) == 30 and Sampling(10, 3.0).independent().evaluations(2) == 40
    in_part = Sampling(10, 3.0, guidance_interval=(0, 0.5))
    assert in_part.independent() == in_part  # it is measured as it is sampled


# -------------------------------------------------------------------- batches


@FAMILIES
def test_the_batch_changes_no_more_than_rounding(
    policies: Callable[[str], Any], family: str
) -> None:
    policy = policies(family)
    network, text = policy.build(), policy.embed(PROMPTS, CPU)
    whole = policy.sample(network, SEEDS, text[:1], None, Sampling(4))
    for size in (1, 2, 3, 9):
        some = policy.sample(network, SEEDS, text[:1], None, Sampling(4, batch_size=size))
        assert torch.allclose(some, whole, atol=1e-5), size
    own = policy.sample(network, SEEDS[:2], text, None, Sampling(4))
    assert torch.allclose(
        policy.sample(network, SEEDS[:2], text, None, Sampling(4, batch_size=1)), own, atol=1e-5
    )


@FAMILIES
def test_auto_halves_the_batch_until_it_fits(
    folders: Folders, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    cog = family == "cogvideox"
    policy = tiny.policy(folders("ddim")) if cog else tiny_wan.policy(folders("unipc"))
    network, text = policy.build(), policy.embed(PROMPTS[:1], CPU)
    seeds, tried = [1, 2, 3, 4, 5], list[int]()

    def full(module: nn.Module, args: Any, kwargs: dict[str, Tensor]) -> None:
        tried.append(len(kwargs["hidden_states"]))
        if tried[-1] > room:
            raise torch.OutOfMemoryError(f"no room for {tried[-1]}")

    room, wanted = 9, policy.sample(network, seeds, text, None, Sampling(2))
    network.register_forward_pre_hook(full, with_kwargs=True)
    room = 2
    with caplog.at_level(logging.WARNING):
        got = policy.sample(network, seeds, text, None, Sampling(2, batch_size="auto"))
    assert tried == [5, 3, 2, 2, 2, 2, 1, 1] and "2 videos" in caplog.messages[-1]
    assert torch.allclose(got, wanted, atol=1e-5)
    tried.clear()
    policy.sample(network, seeds, text, None, Sampling(2, batch_size="auto"))
    assert max(tried) == 2  # remembered
    room = 0
    with pytest.raises(InputError, match="one video"):
        policy.sample(network, seeds, text, None, Sampling(2, batch_size="auto"))
    with pytest.raises(torch.OutOfMemoryError):
        policy.sample(network, seeds, text, None, Sampling(2))


# -------------------------------------------------------------------- caches

RATIOS = [1.0, 1.2, 1.1, 0.99, 1.01, 1.0, 0.98, 1.0, 1.02, 1.0]
CACHES = [
    *[(family, cache) for family in ("cogvideox", "wan") for cache in (
        FirstBlockCacheConfig(2.0), PyramidAttentionBroadcastConfig(2),
        MagCacheConfig(0.5, mag_ratios=RATIOS), SeaCacheConfig(5.0), TaylorSeerCacheConfig(3, 1),
        TaylorSeerCacheConfig(3, 1, use_lite_mode=True),
    )],
    ("cogvideox", FasterCacheConfig(tensor_format="BFCHW")),
    ("wan", FasterCacheConfig(unconditional_batch_timestep_skip_range=(-1, 1001))),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # in FasterCache itself
@pytest.mark.parametrize(("family", "cache"), CACHES)
@pytest.mark.parametrize("shared", [0.0, 0.3])
def test_a_cache_saves_work_and_leaves_no_trace(
    policies: Callable[[str], Any], family: str, cache: Any, shared: float
) -> None:
    policy = policies(family)
    network, text = policy.build(), policy.embed([*PROMPTS[:1], ""], CPU)
    calls = count_calls(network)
    plain = Sampling(10, 3.0, shared=shared, guidance_forwards=1)
    cached = replace(plain, cache=cache)

    def ask(sampling: Sampling) -> Tensor:
        return policy.sample(network, SEEDS, text[:1], text[1:], sampling)

    before, whole = ask(plain), len(calls)
    calls.clear()
    fast = ask(cached)
    assert len(calls) < whole, "the cache found no layer of this network"
    assert fast.isfinite().all() and not torch.equal(fast, before)
    assert torch.equal(ask(cached), fast)  # nothing is kept from one unit to the next
    assert torch.equal(ask(plain), before)
    copied = policy.sample(deepcopy(network), SEEDS, text[:1], text[1:], plain)
    assert torch.allclose(copied, before, atol=1e-5)  # its weights lie elsewhere: other roundings


@FAMILIES
@pytest.mark.parametrize("cache", [FirstBlockCacheConfig(2.0), SeaCacheConfig(5.0)])
@pytest.mark.parametrize("forwards", [1, 2])
@pytest.mark.slow
def test_a_cache_with_guidance_in_an_interval(
    policies: Callable[[str], Any], family: str, cache: Any, forwards: Any
) -> None:
    """The cache keeps guided and unguided predictions apart, also where they differ in number."""
    policy = policies(family)
    network, text = policy.build(), policy.embed([*PROMPTS[:1], ""], CPU)
    calls = count_calls(network)
    plain = Sampling(10, 3.0, guidance_interval=(0.3, 0.7), guidance_forwards=forwards)

    def ask(sampling: Sampling) -> Tensor:
        return policy.sample(network, SEEDS, text[:1], text[1:], sampling)

    before, whole = ask(plain), len(calls)
    calls.clear()
    fast = ask(replace(plain, cache=cache))
    assert 0 < len(calls) < whole and fast.isfinite().all() and not torch.equal(fast, before)
    assert torch.equal(ask(plain), before)


@FAMILIES
def test_a_calibrating_cache_changes_nothing_and_tells_the_ratios(
    policies: Callable[[str], Any], family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = policies(family)
    network, text = policy.build(), policy.embed(PROMPTS[:1], CPU)
    calibrating = Sampling(4, cache=MagCacheConfig(calibrate=True))
    latents = policy.sample(network, SEEDS, text, None, calibrating)
    assert torch.equal(latents, policy.sample(network, SEEDS, text, None, Sampling(4)))
    ratios = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert len(ratios) == 4 and ratios[0] == 1
    cached = Sampling(4, cache=MagCacheConfig(9.0, retention_ratio=0, mag_ratios=ratios))
    assert not torch.equal(policy.sample(network, SEEDS, text, None, cached), latents)
    assert json.loads(json.dumps(cached.departures))["cache"][0] == "MagCacheConfig"


@FAMILIES
def test_every_cache_of_diffusers_is_taken_or_refused_by_name(
    policies: Callable[[str], Any], family: str
) -> None:
    """Those for other models are refused before anything is sampled."""
    assert {type(cache).__name__ for _, cache in CACHES} <= cache_kinds().keys()
    policy = policies(family)
    with pytest.raises(InputError, match="cache=TextKVCacheConfig: it finds no layer"):
        policy.check_sampling(Sampling(4, cache=TextKVCacheConfig()))
    nothing = TaylorSeerCacheConfig(cache_identifiers=["none"])
    with pytest.raises(InputError, match="TaylorSeerCacheConfig: it finds no layer"):
        policy.check_sampling(Sampling(4, cache=nothing))
    with pytest.raises(InputError, match=r"LayerSkipConfig: choose one of .*MagCacheConfig"):
        policy.check_sampling(Sampling(4, cache=LayerSkipConfig([1])))
    in_part = Sampling(4, 3.0, guidance_interval=(0, 0.5), cache=TaylorSeerCacheConfig())
    with pytest.raises(InputError, match="guidance_interval with cache=TaylorSeerCacheConfig"):
        policy.check_sampling(in_part)
    apart = Sampling(4, 3.0, cache=PyramidAttentionBroadcastConfig(2), guidance_forwards=2)
    with pytest.raises(InputError, match="one forward"):
        policy.check_sampling(apart)


@FAMILIES
def test_guidance_takes_one_forward_or_two(policies: Callable[[str], Any], family: str) -> None:
    """The same videos within rounding; each family does by default as its pipeline does."""
    policy, seen = policies(family), list[int]()
    network, text = policy.build(), policy.embed([PROMPTS[0], "a cross"], CPU)
    network.register_forward_pre_hook(
        lambda *call: seen.append(len(call[2]["hidden_states"])), with_kwargs=True
    )

    def ask(forwards: Any) -> tuple[Tensor, list[int]]:
        seen.clear()
        sampling = Sampling(3, 3.0, guidance_forwards=forwards)
        assert sampling.guidance_videos(policy.guidance_videos) * 3 == (
            6 if forwards == 1 or (forwards is None and family == "cogvideox") else 3
        )
        return policy.sample(network, SEEDS, text[:1], text[1:], sampling), [*seen]

    own, one, two = ask(None), ask(1), ask(2)
    assert one[1] == [6] * 3 and two[1] == [3] * 6
    assert torch.allclose(one[0], two[0], atol=1e-4)
    same = one if family == "cogvideox" else two
    assert torch.equal(own[0], same[0]) and own[1] == same[1]
    assert Sampling(3, 3.0, guidance_forwards=1).departures == {"guidance_forwards": 1}


def count_calls(network: nn.Module) -> list[int]:
    """Grows at each call of a query projection of self-attention."""
    calls: list[int] = []
    for name, part in network.named_modules():
        if name.endswith("attn1.to_q"):
            part.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_a_cache_serves_one_unit_at_a_time(policies: Callable[[str], Any], tmp_path: Path) -> None:
    """Threads that work side by side wait for each other, and get what one alone gets."""
    policy, cached = policies("cogvideox"), Sampling(6, cache=FirstBlockCacheConfig(2.0))
    alone = draw(policy, tmp_path / "alone", cached)
    assert draw(policy, tmp_path / "together", cached, threads=3) == alone


# -------------------------------------------------------------------- units


def units(count: int = 4) -> list[PromptSeeds]:
    return [
        PromptSeeds(i, PROMPTS[i % 2], tuple(derive_seed("unit", i, k) for k in range(2)))
        for i in range(count)
    ]


def draw(policy: Any, root: Path, sampling: Sampling, threads: int = 1) -> list[Any]:
    """Latents' and videos' names, in order."""
    sampler = Sampler(policy, Store(root), sampling, lossless=True)
    runtime = Runtime(workers=Workers(threads=threads))
    candidates = sampler.generate("abc", units(), policy.build(), runtime, "test")
    return [(one.latents, one.video, one.gauges) for one in candidates]


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0.0, 0.5])
def test_units_are_the_same_however_they_are_worked_off(
    policies: Callable[[str], Any], tmp_path: Path, shared: float
) -> None:
    policy, sampling = policies("cogvideox"), Sampling(4, shared=shared)
    one = draw(policy, tmp_path / "one", sampling)
    assert draw(policy, tmp_path / "many", sampling, threads=3) == one
    for rank in (1, 0):  # the other rank's half is found, its own is made
        sampler = Sampler(policy, Store(tmp_path / "ranks"), sampling, lossless=True)
        mine, network = units()[rank::2], policy.build()
        sampler.generate("abc", mine, network, Runtime(), "rank")
    assert draw(policy, tmp_path / "ranks", sampling) == one


def test_a_unit_is_finished_while_the_next_is_made() -> None:
    """Neither could go on alone: each waits until it has seen the other at work."""
    making, log = [threading.Event() for _ in range(4)], list[str]()

    def work(number: int) -> int:
        making[number].set()
        return number

    def finish(number: int) -> None:
        if number < 2:
            assert making[number + 1].wait(10)
        assert threading.current_thread().name.startswith("finishing")
        log.append(f"finished {number}")

    Workers().run_finishing(range(4), work, finish, "test", "units")
    assert log == [f"finished {number}" for number in range(4)]


def test_few_units_wait_to_be_finished() -> None:
    held = 0
    most = 0

    def work(number: int) -> int:
        nonlocal held, most
        held += 1
        most = max(most, held)
        return number

    def finish(number: int) -> None:
        nonlocal held
        time.sleep(0.01)
        held -= 1

    Workers().run_finishing(range(12), work, finish, "test", "units")
    assert held == 0 and most <= WAITING + 2


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("fails", ["work", "finish"])
def test_a_failure_comes_up(threads: int, fails: str) -> None:
    """What was made before it is finished; nothing is begun long after."""
    begun, finished = list[int](), list[int]()

    def work(number: int) -> int:
        begun.append(number)
        if fails == "work" and number == 3:
            raise OSError("the disk is full")
        return number

    def finish(number: int) -> None:
        if fails == "finish" and number == 3:
            raise OSError("the disk is full")
        time.sleep(0.01)
        finished.append(number)

    with pytest.raises(OSError, match="full"):
        Workers(threads=threads).run_finishing(range(50), work, finish, "test", "units")
    assert set(finished) >= {0, 1, 2} and len(begun) < 20


def test_progress_counts_finished_units(capsys: pytest.CaptureFixture[str]) -> None:
    def finish(number: int) -> None:
        if number == 2:
            raise OSError

    with pytest.raises(OSError):
        Workers().run_finishing(range(3), lambda number: number, finish, "test", "units")
    assert "2/3" in capsys.readouterr().err


# -------------------------------------------------------------------- evaluation and critics


class Brightness:
    """A critic of the CPU; it may be told to fail."""

    identity = "brightness@1"

    def __init__(self, during_rollout: bool = True, failing: int = 0) -> None:
        self.during_rollout, self.failing = during_rollout, failing
        self.asked: list[int] = []
        self.loaded: list[str] = []

    def load(self, device: str) -> None:
        self.loaded.append(device)

    def release(self) -> None:
        self.loaded.append("released")

    def rate(self, clips: Sequence[Clip], prompts: Sequence[str]) -> list[Rating]:
        if self.failing:
            self.failing -= 1
            raise ConnectionError("nobody answers")
        self.asked.append(len(clips))
        return [Rating(float(clip.frames.float().mean())) for clip in clips]


@pytest.fixture
def sampler(policies: Callable[[str], Any], tmp_path: Path) -> Iterator[Sampler]:
    yield Sampler(policies("cogvideox"), Store(tmp_path), Sampling(4, shared=0.5), lossless=True)


def test_evaluation_shares_nothing(sampler: Sampler) -> None:
    """Paired seeds need videos that hang on their own seed alone."""
    critique = PointCritique(Brightness(), sampler.store)
    evaluation = Evaluation(
        PROMPTS, n=2, seed=0, sampler=sampler, critic=critique, eval_critic=critique
    )
    rows = evaluation.evaluate("abc", sampler.policy.build(), Runtime(), "test")
    plain = Sampler(sampler.policy, sampler.store, Sampling(4), lossless=True)
    assert not plain.missing("abc", evaluation.units, "32-true")
    assert len(sampler.missing("abc", evaluation.units, "32-true")) == len(PROMPTS)
    assert sampler.sampling.shared == 0.5 and len(rows) == 4


def test_a_critic_beside_the_rollout_leaves_nothing_to_the_stage(sampler: Sampler) -> None:
    critic = Brightness()
    critique = PointCritique(critic, sampler.store)
    with critique.during_rollout("cpu") as on_candidates:
        assert on_candidates is not None
        drawn = sampler.generate(
            "abc", units(), sampler.policy.build(), Runtime(), "test", on_candidates
        )
        on_candidates([]).result()  # the last of the queue
    assert sum(critic.asked) == len(drawn) and critic.loaded == ["cpu", "released"]
    assert critique.missing(drawn) == 0
    verdicts = critique.ask(drawn, Workers(), "cpu", "test")
    assert sum(critic.asked) == len(drawn)
    alone = PointCritique(
        Brightness(during_rollout=False), Store(sampler.store.root.parent / "other")
    )
    alone.store.root.mkdir()
    (alone.store.root / "videos").symlink_to(sampler.store.root / "videos")
    assert alone.ask(drawn, Workers(), "cpu", "test") == verdicts


def test_other_critics_wait_for_their_stage(sampler: Sampler) -> None:
    with PointCritique(Brightness(during_rollout=False), sampler.store).during_rollout(
        "cpu"
    ) as on_candidates:
        assert on_candidates is None


@pytest.mark.slow
def test_a_critic_that_fails_beside_is_asked_again(sampler: Sampler) -> None:
    critic = Brightness(failing=1)
    critique = PointCritique(critic, sampler.store)
    with (
        pytest.warns(UserWarning, match="asked again"),
        critique.during_rollout("cpu") as on_candidates,
    ):
        drawn = sampler.generate(
            "abc", units(), sampler.policy.build(), Runtime(), "test", on_candidates
        )
    assert critique.missing(drawn) == len(drawn)
    assert len(critique.ask(drawn, Workers(), "cpu", "test")) == len(drawn)


@pytest.mark.slow
def test_a_branched_run_is_measured_as_any_other(small: Callable[..., DictConfig]) -> None:
    """Its rollouts are others, its evaluation the same."""
    runs = {}
    for choice in ("shapes", "branched"):
        cfg = small(f"rollout={choice}", "round=1", "until=rollout", f"name={choice}")
        train(cfg)
        runs[choice] = RunDir(Path(cfg.paths.outputs) / choice)
    plain, branched = runs["shapes"], runs["branched"]
    assert branched.round(0).evaluation_file.read_text() == (
        plain.round(0).evaluation_file.read_text()
    )
    one, other = (run.round(1).candidates() for run in (plain, branched))
    assert [c.seed for c in one] == [c.seed for c in other]
    assert not {c.latents for c in one} & {c.latents for c in other}
