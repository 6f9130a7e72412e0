"""The loop, as the list of its stages."""

from ipo_lightning.critics.stage.critique import Critique
from ipo_lightning.draws.calibration import Calibration
from ipo_lightning.draws.encoding import RealSource
from ipo_lightning.evaluation import Evaluation
from ipo_lightning.exchange.source import LabelSource
from ipo_lightning.guards import Guards
from ipo_lightning.labelling import Labelling
from ipo_lightning.rounds.closing import EvaluationStage, RecordStage
from ipo_lightning.rounds.drafts import Drafter, drafted_stages
from ipo_lightning.rounds.imported import FirstRounds, imported_stages
from ipo_lightning.rounds.labels import CritiqueStage, LabellingStage
from ipo_lightning.rounds.rollout import RolloutPlan, RolloutStage
from ipo_lightning.rounds.stage import RoundStage
from ipo_lightning.rounds.start import StartStage
from ipo_lightning.rounds.training import TrainingStage
from ipo_lightning.rounds.training_data import BetaStage, InputsStage, ReferenceErrorsStage
from ipo_lightning.rounds.trial import TrialStage
from ipo_lightning.sampling import Sampler


def round_stages(
    sampler: Sampler,
    evaluation: Evaluation,
    *,
    rollout: RolloutPlan | None = None,
    drafter: Drafter | None = None,
    critique: Critique | None = None,
    labelling: Labelling = Labelling(),  # noqa: B008 - frozen
    imported: LabelSource | None = None,
    real: RealSource | None = None,
    calibration: Calibration = Calibration(),  # noqa: B008 - frozen
    guards: Guards | None = None,
    choice: Evaluation | None = None,
    trial: TrialStage | None = None,
) -> list[RoundStage]:
    """What happens to a round, in order; round 0, the base model, begins after the training.

    Args:
        sampler: makes candidates and embeds prompts.
        evaluation: what a finished round is put to.
        rollout: prompts and seeds. critique: asks the critic. labelling: makes labels of verdicts.
            Rounds whose labels are imported need none of them.
        drafter: makes drafts first, see `drafted_stages`; None: all candidates are made in full.
        imported: labels in place of these three stages. real: real clips for lambda_2. None: none.
        calibration: of an ``auto`` beta. guards: look at each finished round; None: there are none.
        choice: an evaluation on other prompts, by which rounds are chosen; None: the reported one.
        trial: tries the critics before their first video; None: they are not tried.
    """
    labels = _label_stages(sampler, rollout, drafter, critique, labelling, imported)
    return [
        *([] if guards is None else [StartStage(guards)]),
        *labels,
        InputsStage(sampler, real),
        ReferenceErrorsStage(sampler.store),
        BetaStage(sampler.store, calibration),
        TrainingStage(),
        *filter(None, [trial]),
        EvaluationStage(evaluation, choice),
        RecordStage(evaluation, guards, labels),
    ]


def _label_stages(
    sampler: Sampler,
    rollout: RolloutPlan | None,
    drafter: Drafter | None,
    critique: Critique | None,
    labelling: Labelling,
    imported: LabelSource | None,
) -> list[RoundStage]:
    """Rollout, critique and labelling, or labels from elsewhere, or first these and then those."""
    first = [] if imported is None else imported_stages(imported, sampler)
    if imported is not None and imported.rounds is None:
        return first
    if rollout is None or critique is None:
        raise ValueError("round_stages: give rollout and critique, or labels for all rounds")
    own: list[RoundStage] = [
        RolloutStage(rollout, sampler, critique),
        CritiqueStage(critique, labelling),
        LabellingStage(labelling, sampler.store),
    ]
    if drafter is not None:
        own = drafted_stages(rollout, drafter, sampler, critique, labelling)
    if imported is None or imported.rounds is None:
        return own
    first = [*(RoundStage() for _ in own[len(first) :]), *first]  # nothing to draft
    return [FirstRounds(imported.rounds, *both) for both in zip(first, own, strict=True)]
