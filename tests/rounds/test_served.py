"""Candidates from a server of videos: requests, policies, latents, faults, resumption."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from app.assembly import assemble
from app.entry import settings
from app.planning.plan import plan
from ipo_lightning.backbones.cogvideox import CogVideoX
from ipo_lightning.critics.vlm.server import Server
from ipo_lightning.errors import InputError
from ipo_lightning.parallel.runtime import Runtime
from ipo_lightning.policy import Policy, Sampling
from ipo_lightning.rounds.served import ServedSampler
from ipo_lightning.sampling import PromptSeeds, Sampler
from ipo_lightning.serving.videos import VideoServer
from ipo_lightning.storage.layout import RunDir
from ipo_lightning.storage.store import Store
from ipo_lightning.video import Clip, encode_video, read_video
from tests.conftest import SMALL, ComposeTrain
from tests.helpers import tiny
from tests.helpers.video_server import VideoJobs, serving
from train import train

ITEMS = [PromptSeeds(i, prompt, (2 * i + 2**40, 2 * i + 1)) for i, prompt in enumerate("ab")]
PLAIN = Sampling(3)
SERVED = ("rollout=served", "rollout.served.model=tiny", "rollout.served.poll=0.001",
          "rollout.served.server.backoff=0", "rollout.served.server.connect_timeout=1")  # fmt: skip


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> CogVideoX:
    tiny.save_pipeline(tmp_path_factory.mktemp("tiny") / "tiny")
    return tiny.policy(tmp_path_factory.getbasetemp() / "tiny0" / "tiny")


def noise(fields: dict[str, Any]) -> bytes:
    """The mp4 file of a video that is a function of the request's seed."""
    width, height = map(int, fields["size"].split("x"))
    made = torch.Generator().manual_seed(int(fields["seed"]))
    shape = (int(fields["num_frames"]), height, width, 3)
    frames = torch.randint(0, 256, shape, generator=made, dtype=torch.uint8)
    return encode_video(Clip(frames, float(fields["fps"])), lossless=True)


def nodes(address: str, **own: Any) -> dict[str, Any]:
    """The arguments of a server that is asked with haste."""
    server = {"base_url": address, "key_variable": None, "backoff": 0.0, "patience": 0.2,
              "connect_timeout": 1.0}  # fmt: skip
    return {"model": "tiny", "poll": 0.001, "server": server | own.pop("server", {}), **own}


@contextmanager
def sampler(
    policy: CogVideoX, folder: Path, jobs: VideoJobs, sampling: Sampling = PLAIN, **own: Any
) -> Iterator[ServedSampler]:
    with serving(jobs) as address:
        node = nodes(address, **own)
        server = VideoServer(Server(**node.pop("server")), **node)
        plain = Sampler(policy, Store(folder / "store"), sampling)
        yield ServedSampler(plain, server, RunDir(folder / "run"))


def made(one: Sampler, policy: CogVideoX) -> list[Any]:
    network = policy.build().eval()
    return list(one.generate(policy.identity, ITEMS, network, Runtime(), "rollout"))


@pytest.mark.parametrize("form", ["multipart", "json"])
def test_each_video_is_asked_for_with_all_that_it_depends_on(
    policy: CogVideoX, tmp_path: Path, form: str
) -> None:
    jobs = VideoJobs(noise)
    sampling = Sampling(3, guidance_scale=2.0, negative_prompt="dull")
    more = {"extra": {"flow_shift": 3, "lora": {"path": "{policy}"}}, "form": form}
    with sampler(policy, tmp_path, jobs, sampling, **more) as one:
        found = made(one, policy)
    frames, height, width = policy.size
    wanted = {"model": "tiny", "prompt": "a", "size": f"{width}x{height}", "num_frames": frames,
              "fps": policy.fps, "num_inference_steps": 3, "guidance_scale": 2.0, "seed": 0,
              "negative_prompt": "dull", "flow_shift": 3}  # fmt: skip
    (told,) = [field for field in jobs.fields if str(field["seed"]) == "0"]
    assert {k: float(v) if k == "guidance_scale" else str(v) for k, v in told.items()} == {
        k: v if k == "guidance_scale" else str(int(v) if k == "fps" else v)
        for k, v in wanted.items()
    }
    assert [one.prompt for one in found] == ["a", "a", "b", "b"]
    assert jobs.jobs == {}, "the server's copies are deleted"


def test_the_servers_file_is_kept_and_its_encoding_is_the_latents(
    policy: CogVideoX, tmp_path: Path
) -> None:
    with sampler(policy, tmp_path, VideoJobs(noise)) as one:
        found = made(one, policy)
        file = one.store.path("videos", found[0].video, ".mp4").read_bytes()
        fields = one._fields(ITEMS[0], ITEMS[0].seeds[0])
        assert file == noise({key: str(value) for key, value in fields.items()})
        frames = read_video(one.store.path("videos", found[0].video, ".mp4")).frames
        latents = one.store.get_tensors("latents", found[0].latents)["latents"]
        assert torch.equal(latents, policy.encode(frames[None])[0])


def test_what_is_made_is_not_asked_for_again_wherever_the_server_is(
    policy: CogVideoX, tmp_path: Path
) -> None:
    with sampler(policy, tmp_path, VideoJobs(noise)) as one:
        first = made(one, policy)
    with sampler(policy, tmp_path, jobs := VideoJobs(noise)) as one:
        assert made(one, policy) == first
    assert jobs.requests == []
    with sampler(policy, tmp_path, jobs, revision="fp8") as one:
        assert len(one.missing(policy.identity, ITEMS, "32-true")) == 2


FAULTS = {
    "busy": lambda number, method, path: 503 if number == 0 else 0,
    "forgotten": lambda number, method, path: 404 if number == 1 and method == "GET" else 0,
    "no content": lambda number, method, path: 500 if number == 3 else 0,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_once_is_tried_again(policy: CogVideoX, tmp_path: Path, fault: str) -> None:
    jobs = VideoJobs(noise, FAULTS[fault])
    with sampler(policy, tmp_path, jobs, server={"concurrency": 1}) as one:
        assert len(made(one, policy)) == 4


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], bytes], Any, str]] = {
    "wrong frames": (lambda f: noise({**f, "num_frames": 5}), None, "5 frames of 24 x 16"),
    "wrong size": (lambda f: noise({**f, "size": "32x16"}), None, "9 frames of 32 x 16"),
    "no video": (lambda f: b"no video", None, "unreadable video"),
    "bad request": (noise, lambda *_: 422, "as planned.*extra"),
    "always busy": (noise, lambda *_: 503, "5 attempts .HTTP 503.*goes on"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_used_ends_the_run(policy: CogVideoX, tmp_path: Path, fault: str) -> None:
    make, spoil, message = REFUSED[fault]
    jobs = VideoJobs(make, spoil or (lambda *_: 0))
    with (
        sampler(policy, tmp_path, jobs, server={"concurrency": 1}) as one,
        pytest.raises(InputError, match=message),
    ):
        made(one, policy)


def test_a_server_that_stays_away_ends_the_run(policy: CogVideoX, tmp_path: Path) -> None:
    with sampler(policy, tmp_path, VideoJobs(noise)) as one:
        pass
    with pytest.raises(InputError, match="cannot be reached.*goes on"):
        made(one, policy)


# -------------------------------------------------------------------- policies


def exported(folder: Path, fingerprint: str) -> RunDir:
    run = RunDir(folder / "run")
    run.round(1).policy.mkdir(parents=True)
    run.round(1).write_policy_file(fingerprint)
    return run


@pytest.mark.parametrize("way", ["command", "address", "request"])
def test_the_server_is_told_of_each_rounds_policy(
    policy: CogVideoX, tmp_path: Path, way: str
) -> None:
    run, jobs, log = exported(tmp_path, "f" * 64), VideoJobs(noise), tmp_path / "log"
    script = f"open({str(log)!r}, 'a').write('{{policy}} {{round}}\\n')"
    own: dict[str, Any] = {}
    if way == "command":
        own["reload"] = shlex.join([sys.executable, "-c", script])
    if way == "request":
        own["extra"] = {"lora": {"path": "{policy}", "name": "{fingerprint}"}}
    with sampler(policy, tmp_path, jobs, **own) as one:
        if way == "address":
            one.server.reload = one.server.server.base_url.replace("/v1", "/load")
        network = policy.build().eval()
        for known in (policy.identity, "f" * 64):
            one.generate(known, ITEMS, network, Runtime(), "rollout")
    path = str(run.round(1).policy.resolve())
    if way == "command":
        assert log.read_text() == f"{policy.path} 0\n{path} 1\n"
    if way == "address":
        assert [told["policy"] for told in jobs.loaded] == [str(policy.path), path]
    if way == "request":
        told = [json.loads(fields["lora"]) for fields in jobs.fields if "lora" in fields]
        assert told == [{"path": path, "name": "f" * 64}] * 4 and len(jobs.fields) == 8


def test_a_policy_that_the_server_cannot_get_is_refused(policy: CogVideoX, tmp_path: Path) -> None:
    exported(tmp_path, "f" * 64)
    network = policy.build().eval()
    with (
        sampler(policy, tmp_path, VideoJobs(noise)) as one,
        pytest.raises(InputError, match="policy that it was started with"),
    ):
        one.generate("f" * 64, ITEMS, network, Runtime(), "rollout")
    with (
        sampler(policy, tmp_path, VideoJobs(noise), reload="false {policy}") as one,
        pytest.raises(InputError, match="must succeed"),
    ):
        one.generate("f" * 64, ITEMS, network, Runtime(), "rollout")


def test_evaluation_samples_here(policy: CogVideoX, tmp_path: Path) -> None:
    with sampler(policy, tmp_path, VideoJobs(noise)) as one:
        assert type(one.independent()) is Sampler
        assert type(one.drafter(steps=2)) is ServedSampler


# -------------------------------------------------------------------- a run


@pytest.fixture
def served(compose_train: ComposeTrain) -> Callable[..., DictConfig]:
    return lambda *more: compose_train(*SMALL, *SERVED, *more)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("round=2",), "reload=null with round=2"),
        (("round=1", "rollout.shared=0.4"), "shared=0.4"),
        (("round=1", "rollout.served.extra={seed: 1}"), "seed"),
        (("round=1", "rollout.draft.prune_at=0.3"), "prune_at"),
    ],
)
def test_what_a_server_cannot_do_is_refused_by_name(
    served: Callable[..., DictConfig], words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        assemble(served(*words))


def sampled_by(policy: Policy) -> Callable[[dict[str, Any]], bytes]:
    """What makes the mp4 files of a policy's own videos."""
    network, lock = policy.build().eval(), Lock()

    def make(fields: dict[str, Any]) -> bytes:
        with lock, torch.no_grad():
            text = policy.embed([fields["prompt"]], torch.device("cpu"))
            sampling = Sampling(int(fields["num_inference_steps"]))
            latents = policy.sample(network, [int(fields["seed"])], text, None, sampling)
            return encode_video(policy.decode(latents)[0], lossless=True)

    return make


@pytest.mark.slow
def test_a_run_goes_through_and_a_moved_server_changes_nothing(
    served: Callable[..., DictConfig],
) -> None:
    load = f"{shlex.join([sys.executable, '-c', 'pass'])} {{policy}}"
    jobs = VideoJobs(sampled_by(assemble(served("round=1")).policy))
    with serving(jobs) as address:
        words = (f"rollout.served.server.base_url={address}", f"rollout.served.reload='{load}'",
                 "round=2")  # fmt: skip
        cfg = served(*words)
        assert "their latents are the VAE's encoding" in plan(cfg)
        line = train(cfg)
    assert line is not None and line["round"] == 2
    assert len(jobs.fields) == 2 * 9
    moved = served("round=2", f"rollout.served.reload='{load}'")
    assert settings(moved) == settings(cfg)
    assert train(moved) == line
