"""The policies that rounds end with: read from disk, and put into the module's network."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor, nn

from ipo_lightning.errors import InputError, readable
from ipo_lightning.module import PreferenceModule
from ipo_lightning.parallel.sharding import gathered, whole_tensors
from ipo_lightning.policy import put_weights
from ipo_lightning.storage.layout import RunDir, before, start_of
from ipo_lightning.storage.store import fingerprint, fingerprint_tensors


class RoundPolicies:
    """Finds a round's policy by its number; 0 is the base model.

    Args:
        run: where exported policies lie.
        module: holds the one network, which takes the weights of any of them.
    """

    def __init__(self, run: RunDir, module: PreferenceModule) -> None:
        self.run, self.module = run, module

    def reference_of(self, number: int) -> int:
        """The round whose policy is the reference of round ``number``."""
        return self.before(number) if self.module.reference.of == "round_start" else 0

    def before(self, number: int) -> int:
        """The round whose policy round ``number`` starts from, see `layout.before`."""
        return before(self.run, number)

    def go_to_start(self, number: int) -> None:
        """Give the network the weights that a round starts from, where it has others.

        For a round that is begun anew: one that is resumed has its own.
        """
        start = start_of(self.run.round(number))
        self.module.lr_scale = 1.0 if start is None else float(start["lr_scale"])
        if start is None or self.module.round == number:
            return
        if (weights := self._others(int(start["round"]))) is not None:
            put_weights(self.module.network, weights)

    def fingerprint(self, number: int) -> str:
        """Of the policy that a round ended with.

        Raises:
            InputError: it is not on disk.
        """
        if number == 0:
            return self.module.policy.identity
        found = self.run.round(number).fingerprint()
        if found is None:
            raise InputError(
                f"{self.run.round(number).policy_file} is missing: round {number} must be trained "
                "again; remove its folder and those of later rounds"
            )
        return found

    def fingerprint_of(self, weights: Mapping[str, Tensor]) -> str:
        """Of a policy: its base, its adapter's settings, its trained weights."""
        policy = self.module.policy
        return fingerprint([policy.identity, policy.adapter, fingerprint_tensors(weights)])

    def weights(self, number: int) -> dict[str, Tensor] | None:
        """The trained weights that a round ended with, from disk; None for the base model's.

        Raises:
            InputError: they are not what the round was trained to.
        """
        if number == 0:
            return None
        one = self.run.round(number)
        one.check_policy()
        with readable(one.policy):
            weights = self.module.policy.load_export(one.policy)
        known = one.manifest().policy  # else of an older version, whose files have no hashes
        if known is None and self.fingerprint_of(weights) != self.fingerprint(number):
            raise InputError(
                f"{one.policy} is not what round {number} was trained to (damaged, or changed by "
                "hand): remove the folders of that round and later ones"
            )
        return weights

    @contextmanager
    def network(self, number: int) -> Iterator[nn.Module]:
        """The network with a finished round's weights, for forwards without gradients.

        It mostly holds them already. It does not where videos were lost from the store and a run
        goes on in the middle of a round; then it gets its own weights back at the end.
        """
        network = self.module.network
        with (
            self.holding(self._others(number)),
            eval_mode(network),
            self._unequal_forwards(network),
        ):
            yield network

    def _unequal_forwards(self, network: nn.Module) -> AbstractContextManager[None]:
        """Ranks have unequal work in a stage, and may share the network's weights."""
        strategy = getattr(self.module._trainer, "strategy", None)
        return getattr(strategy, "unequal_forwards", gathered)(network)

    @contextmanager
    def holding(self, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
        """Let the network have other trained weights meanwhile; None: it keeps its own."""
        if weights is None:
            yield
            return
        kept = {name: weight.clone() for name, weight in self.module.trained().items()}
        put_weights(self.module.network, weights)
        try:
            yield
        finally:
            put_weights(self.module.network, kept)

    def _others(self, number: int) -> Mapping[str, Tensor] | None:
        """The weights that a round ended with, where the network has others."""
        if number:
            return None if self._holds(self.fingerprint(number)) else self.weights(number)
        base = self._base_weights()
        return None if base is None or self._holds(self.fingerprint_of(base)) else base

    def _holds(self, fingerprint: str) -> bool:
        """Whether the network has the weights of a fingerprint."""
        return self.fingerprint_of(whole_tensors(self.module.trained())) == fingerprint

    def _base_weights(self) -> Mapping[str, Tensor] | None:
        """The base model's weights, where the network may have moved away from them."""
        try:
            if self.module.trainer.global_step == 0:
                return None
        except RuntimeError:  # no trainer counts the steps
            pass
        return self.module.policy.base_weights()


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode meanwhile; afterwards each submodule is in the mode that it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
