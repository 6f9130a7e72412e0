"""Videos from a server with OpenAI's video endpoint: vLLM-Omni, SGLang Diffusion.

``POST /videos`` begins a job, ``GET /videos/ID`` tells its status, ``GET /videos/ID/content`` gives
the mp4 file. What a video depends on is in each request, its seed too.
"""

import json
import os
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Literal, TypeVar

import httpx2

from ipo_lightning.critics.pretrained.http_errors import (
    MOST_BYTES,
    AskAgain,
    Away,
    checked_url,
    complaint_in,
    network_errors,
    retry_after,
)
from ipo_lightning.critics.vlm.calls import ADVICE, ASK_AGAIN, CONNECT_AGAIN, pause_before
from ipo_lightning.critics.vlm.server import Server
from ipo_lightning.errors import InputError
from ipo_lightning.serving.protocols import POLICY, Served, ServedPolicy
from ipo_lightning.settings import Positive, Text, checked
from ipo_lightning.storage.store import canonical
from ipo_lightning.video import read_video

T = TypeVar("T")
Json = dict[str, Any]

PATH = "/videos"
OWN_FIELDS = {"prompt", "model", "size", "num_frames", "fps", "seed", "num_inference_steps",
              "guidance_scale", "negative_prompt"}  # fmt: skip
DONE, FAILED = {"completed", "succeeded"}, {"failed", "cancelled", "expired", "error"}
OTHER_ADVICE = "a field of the request is not for this server (form, extra)"
_RELOADING = threading.Lock()

BEING_STARTED = (502, 503, 504)
"""What stands before a server that is being started answers; it may have lost its policy."""


@checked
class VideoServer:
    """A server that makes videos.

    The address is not part of ``identity``: the same model gives the same videos anywhere.

    Args:
        server: how it is reached.
        model: its name on the server. revision: what distinguishes weights of the same name; only a
            part of the identity.
        form: ``multipart`` (vLLM-Omni) or ``json`` (SGLang Diffusion).
        extra: further fields of a request, in which ``{policy}`` stands for the folder of the
            round's exported policy, ``{fingerprint}`` and ``{round}`` for that policy's. A field
            with ``{policy}`` is left out for the base model.
        reload: how the server gets the policy of a round, once a round: a command, in which the
            same marks are put in, or an address that they are posted to. None: the server keeps
            what it was started with.
        wait: seconds in which a video must be finished. poll: seconds between two looks at it.
    """

    def __init__(
        self,
        server: Server,
        model: Text,
        *,
        revision: Text | None = None,
        form: Literal["multipart", "json"] = "multipart",
        extra: Mapping[str, Any] | None = None,
        reload: Text | None = None,
        wait: Positive = 1800.0,
        poll: Positive = 2.0,
    ) -> None:
        self.server, self.model, self.revision = server, model, revision
        self.form, self.extra, self.reload = form, dict(extra or {}), reload
        self.wait, self.poll = wait, poll
        self._lost = False
        """Whether the server was away, and may have forgotten the policy that it was given."""
        self._given = 0
        """How often it was given one again."""
        if own := sorted(OWN_FIELDS & self.extra.keys()):
            raise InputError(setting="extra", value=own[0],
                             expected="leave it out: other settings give it")  # fmt: skip
        if self.by_address and reload is not None:
            checked_url(reload)

    @property
    def identity(self) -> Json:
        """What its videos depend on beside the policy and the sampling."""
        return {"model": self.model, "revision": self.revision, "extra": self.extra}

    @property
    def concurrency(self) -> int:
        """Videos that are under way at the same time."""
        return self.server.concurrency

    @property
    def by_address(self) -> bool:
        """Whether a policy is given to the server by a request of its own."""
        return (self.reload or "").startswith(("http://", "https://"))

    @property
    def takes_policies(self) -> bool:
        """Whether the server is told which policy it is to serve."""
        return self.reload is not None or POLICY in json.dumps(self.extra)

    # ---------------------------------------------------------------- the policy

    def serve(self, policy: ServedPolicy) -> None:
        """Give the server a policy; it must serve it once this returns.

        Raises:
            InputError: it cannot be given, or the command or the server refuses it.
        """
        if policy.round and not self.takes_policies:
            raise InputError(setting="reload", value="null", expected=(
                f"the server would go on with the policy that it was started with, but needs that "
                f"of round {policy.round}: give a command or an address that loads "
                "{policy}, or name {policy} in extra"
            ))  # fmt: skip
        if self.reload is None:
            return
        if self.by_address:
            self._post_policy(policy)
        else:
            self._run_command(policy)

    def _post_policy(self, policy: ServedPolicy) -> None:
        given = {"policy": policy.path, "fingerprint": policy.fingerprint, "round": policy.round}
        with self._client() as client:
            self._patiently(
                canonical(given),
                lambda: self._ask(client, "POST", str(self.reload), json=given, timeout=self.wait),
            )

    def _run_command(self, policy: ServedPolicy) -> None:
        words = [policy.filled(word) for word in shlex.split(str(self.reload))]
        known = {"IPO_POLICY": policy.path, "IPO_FINGERPRINT": policy.fingerprint,
                 "IPO_ROUND": str(policy.round)}  # fmt: skip
        try:
            done = subprocess.run(words, env=os.environ | known, capture_output=True, text=True,
                                  timeout=self.wait)  # fmt: skip
            said = f"exit status {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}"
            failed = done.returncode != 0
        except (OSError, subprocess.TimeoutExpired) as error:
            said, failed = str(error), True
        if failed:
            raise InputError(setting="reload", value=shlex.join(words),
                             expected=f"the command must succeed, but: {said}")  # fmt: skip

    # ---------------------------------------------------------------- videos

    def videos(self, requests: Sequence[Json], policy: ServedPolicy) -> list[Served]:
        """The videos of some requests, several at a time, in order.

        Args:
            requests: the fields of each, but for ``model`` and ``extra``.

        Raises:
            InputError: the server refuses a request, or a video fails time and again.
        """
        kept = {key: policy.filled(value) for key, value in self.extra.items()
                if policy.round or POLICY not in json.dumps(value)}  # fmt: skip
        with (
            self._client() as client,
            ThreadPoolExecutor(min(self.concurrency, len(requests)), "served") as pool,
        ):
            whole = [{**one, "model": self.model, **kept} for one in requests]
            return list(pool.map(lambda fields: self._video(client, fields, policy), whole))

    def _client(self) -> httpx2.Client:
        limit = self.server.concurrency
        return httpx2.Client(
            timeout=httpx2.Timeout(self.server.timeout, connect=self.server.connect_timeout),
            limits=httpx2.Limits(max_connections=limit + 1),
            follow_redirects=False,
            trust_env=not self.server.local,
        )

    def _video(self, client: httpx2.Client, fields: Json, policy: ServedPolicy) -> Served:
        def attempt() -> Served:
            given = self._give_again(policy)
            made = self._job(client, fields)
            if self.reload is not None and (self._lost or self._given != given):
                raise AskAgain("the server was away meanwhile, and may have lost the policy")
            return made

        return self._patiently(canonical(fields), attempt, f" of the prompt {fields['prompt']!r}")

    def _give_again(self, policy: ServedPolicy) -> int:
        """Give a server the policy again that was away, and may have been started anew.

        Returns:
            How often that was done.
        """
        with _RELOADING:
            if self._lost:
                self.serve(policy)
                self._lost = False  # not before: others would ask a server that lacks the policy
                self._given += 1
            return self._given

    def _job(self, client: httpx2.Client, fields: Json) -> Served:
        """One attempt at a video.

        Raises:
            AskAgain: another may succeed. Away: the server cannot be reached.
            InputError: the server refuses the request.
        """
        address = self.server.base_url + PATH
        job = told(self._ask(client, "POST", address, **body_of(self.form, fields)))
        number = job.get("id")
        if not isinstance(number, str | int):
            raise AskAgain("malformed response")
        own = f"{address}/{number}"
        try:
            return self._made(client, own, job)
        finally:  # its copy there is of no more use
            with suppress(AskAgain, Away, InputError):
                self._ask(client, "DELETE", own)

    def _made(self, client: httpx2.Client, own: str, job: Json) -> Served:
        """The video of a job, once it is finished."""
        until = time.monotonic() + self.wait
        while (status := str(job.get("status")).lower()) not in DONE:
            if status in FAILED:
                said = job.get("error") or status
                raise AskAgain(f"failed: {self.server.key.cleaned(str(said))[:200]}")
            if time.monotonic() > until:
                raise AskAgain(f"not finished in {self.wait:g} s (wait)")
            time.sleep(self.poll)
            job = told(self._ask(client, "GET", own, lost=True))
        return _read(self._ask(client, "GET", f"{own}/content", lost=True))

    def _ask(
        self, client: httpx2.Client, method: str, url: str, *, lost: bool = False, **body: Any
    ) -> bytes:
        """What the server answers.

        Args:
            lost: whether "not found" means that the server has forgotten the job.
        """
        key = self.server.key
        headers = {k: v for k, v in key.headers().items() if k != "Content-Type"}
        try:
            with network_errors(self.server.base_url):
                response = client.request(method, url, headers=headers, **body)
        except Away:
            self._lost = True
            raise
        if response.is_success and len(response.content) <= MOST_BYTES:
            return response.content
        if response.is_success:
            raise AskAgain("endless response")
        status, error = response.status_code, complaint_in(response.content)
        if lost and status == 404:
            self._lost = True
            raise AskAgain("the server has forgotten the job")
        self._lost |= status in BEING_STARTED
        if status in ASK_AGAIN:
            raise AskAgain(f"HTTP {status}", retry_after(response.headers.get("Retry-After")))
        said = f" ({key.cleaned(error.message)})" if error.message else ""
        raise InputError(f"{url}: {status}{said}: {ADVICE.get(status, OTHER_ADVICE)}")

    def _patiently(self, content: bytes, attempt: Callable[[], T], what: str = "") -> T:
        """Try until it succeeds, as often and as long as the server's settings allow.

        Raises:
            InputError: it does not.
        """
        repetitions, since = 0, None
        while True:
            try:
                return attempt()
            except Away as away:
                since = since or time.monotonic()
                gone = time.monotonic() - since
                if gone >= self.server.patience:
                    raise InputError(f"{away}, for {gone:.0f} s now (patience): start the server "
                                     "again, and the same command goes on") from away  # fmt: skip
                time.sleep(min(max(gone / 4, CONNECT_AGAIN[0]), CONNECT_AGAIN[1]))
            except AskAgain as failure:
                since = None
                if repetitions == self.server.retries:
                    raise InputError(
                        f"{self.server.base_url}: no video{what} in {repetitions + 1} attempts "
                        f"({failure.reason}); what was made is kept, the same command goes on"
                    ) from failure
                time.sleep(pause_before(self.server, failure, content, repetitions))
                repetitions += 1


def _read(file: bytes) -> Served:
    """A video's file with its frames.

    Raises:
        AskAgain: it cannot be read.
    """
    with tempfile.NamedTemporaryFile(suffix=".mp4") as held:
        held.write(file)
        held.flush()
        try:
            return Served(file, read_video(held.name))
        except InputError as error:
            said = str(error).replace(held.name, "")
            raise AskAgain(f"unreadable video: {said[:200]}") from error


def body_of(form: str, fields: Json) -> Json:
    """The arguments of a request: fields of a form, or JSON."""
    if form == "json":
        return {"json": fields}
    texts = {key: value if isinstance(value, str) else json.dumps(value)
             for key, value in fields.items()}  # fmt: skip
    return {"files": {key: (None, value.encode()) for key, value in texts.items()}}


def told(body: bytes) -> Json:
    """A job as a server tells of it.

    Raises:
        AskAgain: it does not.
    """
    with suppress(ValueError, RecursionError):
        job = json.loads(body)
        if isinstance(job, dict):
            return job
    raise AskAgain("malformed response")
