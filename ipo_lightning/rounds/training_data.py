"""What a round's training needs beside its labels: embeddings, real clips, reference errors, beta.

All but beta lies in the store, where other rounds and runs find it.
"""

import json
from typing import cast

import torch
from torch import Tensor

from ipo_lightning.draws.calibration import Calibration, auto_beta
from ipo_lightning.draws.dataset import Draws
from ipo_lightning.draws.encoding import RealSource
from ipo_lightning.draws.reference_errors import ReferenceErrors
from ipo_lightning.references import CachedReference
from ipo_lightning.rounds.files import check_files
from ipo_lightning.rounds.stage import Round, RoundStage
from ipo_lightning.sampling import Sampler
from ipo_lightning.storage.layout import REFERENCE_ERRORS, RoundData, RoundDir
from ipo_lightning.storage.records import RealClip
from ipo_lightning.storage.run_files import DamagedFile, read_object
from ipo_lightning.storage.store import Store, write_atomically


class InputsStage(RoundStage):
    """Text embeddings of the labels, and real clips for lambda_2.

    Args:
        sampler: embeds prompts.
        real: the clips; None: there are none.
    """

    def __init__(self, sampler: Sampler, real: RealSource | None = None) -> None:
        self.sampler, self.real = sampler, real

    def load(self, round: Round) -> RoundData:
        """Find them in the store, or make them: rollouts have mostly embedded the prompts."""
        real = self._clips(round)
        prompts = {row.prompt: None for row in round.data.rows}
        prompts |= {clip.caption: None for clip in real}
        self.sampler.embed(prompts, round.runtime)
        texts = round.workers.agree(
            lambda: {prompt: self.sampler.text_blob(prompt) for prompt in prompts}
        )
        data = round.data._replace(texts=texts, real=real)
        check_files(data, self.sampler.store, round.workers)
        return data

    def _clips(self, round: Round) -> list[RealClip]:
        """The real clips, encoded on the first call of a run."""
        module, runtime = round.module, round.runtime
        if not module.real_weight or self.real is None:
            return []
        store = self.sampler.store
        data = self.real.prepare(module.policy, store, runtime.workers, runtime.device)
        if runtime.workers.leads:
            counts = {"kept": len(data.rows), "dropped": data.dropped}
            write_atomically(round.run.path / "real.json", json.dumps(counts).encode())
        return data.rows


class ReferenceErrorsStage(RoundStage):
    """The errors of a `CachedReference` at all draws of the round, before it trains."""

    name = REFERENCE_ERRORS

    def __init__(self, store: Store) -> None:
        self.store = store

    def done(self, round: Round) -> bool:
        """Whether the store has them all, or the reference is asked in another way."""
        reference = round.module.reference
        if not isinstance(reference, CachedReference):
            return True
        return not errors_of(round, self.store, reference.batch_size).missing(self._draws(round))

    def run(self, round: Round) -> None:
        """Compute those that the store lacks."""
        reference = cast(CachedReference, round.module.reference)
        compute_errors(round, self.store, self._draws(round), reference.batch_size)

    def load(self, round: Round) -> RoundData:
        """The table of errors."""
        reference = round.module.reference
        if not isinstance(reference, CachedReference):
            return round.data
        table = errors_of(round, self.store, reference.batch_size)
        errors = round.workers.agree(lambda: table.table(self._draws(round)))
        return round.data._replace(errors=errors)

    def _draws(self, round: Round) -> Draws:
        return Draws(round.data, self.store, round.module.seed, round.draws)


class BetaStage(RoundStage):
    """Beta of a loss with ``beta=auto``, from the reference's errors at some draws: ``beta.json``.

    A round that is begun keeps its beta. The time counts as that of the reference errors.
    """

    name = REFERENCE_ERRORS

    def __init__(self, store: Store, calibration: Calibration) -> None:
        self.store, self.calibration = store, calibration

    def done(self, round: Round) -> bool:
        """Whether beta is known, or a setting."""
        return not round.module.auto_beta or round.folder.intact(round.folder.beta_file)

    def run(self, round: Round) -> None:
        """Measure how far the errors of two videos lie apart."""
        count = min(round.draws, self.calibration.draws)
        draws = Draws(round.data, self.store, round.module.seed, count)
        errors = compute_errors(round, self.store, draws, self.calibration.batch_size)
        u = torch.stack([draws.u(place) for place in range(count)])
        beta = auto_beta(errors, u, self.calibration.logit)
        if round.workers.leads:
            round.folder.write_object(round.folder.beta_file, {"beta": beta, "draws": count})

    def load(self, round: Round) -> RoundData:
        """Give the loss its beta."""
        if round.module.auto_beta:
            round.module.set_beta(beta_of(round.folder))
        return round.data


def beta_of(folder: RoundDir) -> float:
    """The beta that a round was given.

    Raises:
        DamagedFile: its file says none.
    """
    beta = read_object(folder.beta_file).get("beta")
    if isinstance(beta, bool) or not isinstance(beta, int | float) or beta <= 0:
        raise DamagedFile(folder.beta_file, f"beta={beta}")
    return float(beta)


def errors_of(round: Round, store: Store, batch_size: int) -> ReferenceErrors:
    """Where the errors of the round's reference lie."""
    reference = round.policies.reference_of(round.number)
    return ReferenceErrors(
        round.module.policy,
        round.module.objective,
        store,
        network=round.policies.fingerprint(reference),
        precision=round.runtime.precision,
        batch_size=batch_size,
    )


def compute_errors(round: Round, store: Store, draws: Draws, batch_size: int) -> Tensor:
    """The reference's errors at the draws, found in the store or computed: see `RoundData`."""
    table = errors_of(round, store, batch_size)
    if round.workers.agree(lambda: table.missing(draws)):
        with round.policies.network(round.policies.reference_of(round.number)) as network:
            table.compute(
                draws,
                network,
                round.workers,
                round.runtime.autocast,
                round.label(REFERENCE_ERRORS),
            )
    return round.workers.agree(lambda: table.table(draws))
