"""Preference losses: pure functions of per-sample denoising errors.

An *error* is one network's mean squared error on its own target, float32, (B,). The *implicit
reward* of a video is the reference's error minus the policy's: above zero where the policy denoises
the video better than the reference does. The *margin* of a pair is the winner's implicit reward
minus the loser's.

``beta`` multiplies mean errors as they stand. Diffusion-DPO's script halves it first, so its
``beta_dpo=5000`` is ``beta=2500`` here; it also works on epsilon errors, which weigh timesteps
differently from the v errors of CogVideoX (epsilon error = alpha_bar times v error): betas do not
transfer between the two. Published betas of DPO, converted to this convention, are 1000 to 2500 on
epsilon errors (Diffusion-DPO), and 1 (VideoGPA), 50 (Flow-GRPO's DPO) and 2500 (RealDPO) on v
errors: the usual range is wide, so each loss names its own, and ``beta=auto`` takes it from the
data. docs/losses.md compares all losses, docs/beta.md converts betas.

A loss of one's own is a function of the same arguments and a YAML that names it. What a loss needs
is read off its parameters: ``policy_win`` makes it pairwise, ``desirable`` pointwise; other inputs
of a pointwise loss are listed at `extra_inputs`.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ipo_lightning.errors import InputError, within
from ipo_lightning.settings import (
    Above,
    AtLeast,
    Below,
    NotNegative,
    Positive,
    Word,
    check,
    checked,
)

Beta = Annotated[float, Above(0), Word("auto")]
"""Of losses whose beta multiplies errors; ``auto`` is settled before they are called."""
Minority = Annotated[float, AtLeast(0), Below(0.5)]
"""A share that is the smaller part."""
Safeguard = Annotated[float, AtLeast(0), Below(1)]
"""Mu of `safeguard_scale`."""
Utility = Literal["sigmoid", "loss_averse", "risk_seeking"]
"""How `kto_loss` feels a gain."""
Baseline = Literal["mean", "classes", "mismatched"]
"""The kinds of `kto_baseline`."""


class PreferenceLoss(NamedTuple):
    """What every loss returns, one value a pair or a point; the caller weights and reduces."""

    loss: Tensor
    """(B,) float, differentiable."""
    margin: Tensor
    """(B,) detached, in units of error; above 0 where the policy agrees with the label. It is
    measured against the reference, also by losses that do not learn from it."""


@checked
def dpo_loss(
    policy_win: Tensor,
    policy_lose: Tensor,
    ref_win: Tensor,
    ref_lose: Tensor,
    *,
    beta: Beta,
    label_smoothing: Minority = 0.0,
) -> PreferenceLoss:
    """Diffusion-DPO: ``-logsigmoid(beta * margin)``.

    Wallace et al. 2023, arXiv 2311.12908, equation 14.

    Args:
        beta: > 0; larger keeps the policy closer to the reference. Usually 50 to 2500 on v errors
            and 1000 to 2500 on epsilon errors; 1000 on the embedded model.
        label_smoothing: chance that a label is the wrong way round, in [0, 0.5); above 0 this is
            cDPO. The loss at policy = reference is log 2 for any value.
    """
    margin = _margin(policy_win, policy_lose, ref_win, ref_lose)
    agree, disagree = F.logsigmoid(beta * margin), F.logsigmoid(-beta * margin)
    loss = -(1 - label_smoothing) * agree - label_smoothing * disagree
    return PreferenceLoss(loss, margin.detach())


@checked
def identity_loss(
    policy_win: Tensor,
    policy_lose: Tensor,
    ref_win: Tensor,
    ref_lose: Tensor,
    *,
    beta: Beta,
) -> PreferenceLoss:
    """Identity preference optimisation (Azar et al. 2023, arXiv 2310.12036, eq. 17).

    ``(beta * margin - 1/2)^2``: the logit is drawn to 1/2 and no further, so that a pair that is
    already learnt stops pulling. With tau the paper's regulariser, this is their
    ``(margin - 1/(2 tau))^2`` at ``beta = tau``, times beta^2 to keep its scale near one. Its
    value at policy = reference is 1/4.

    Args:
        beta: > 0; the margin aimed at is ``1 / (2 beta)``, in units of mean squared error. Usually
            a tenth of `dpo_loss`'s beta, 5 to 250, so that DPO's logit is 5 at that margin; 100 on
            the embedded model. Published values are for text and do not transfer.
    """
    margin = _margin(policy_win, policy_lose, ref_win, ref_lose)
    return PreferenceLoss((beta * margin - 0.5).square(), margin.detach())


@checked
def robust_dpo_loss(
    policy_win: Tensor,
    policy_lose: Tensor,
    ref_win: Tensor,
    ref_lose: Tensor,
    *,
    beta: Beta,
    flip_rate: Minority = 0.1,
) -> PreferenceLoss:
    """Robust DPO (Chowdhury et al. 2024, arXiv 2403.00409): DPO's own loss under flipped labels.

    ``(-(1 - eps) logsigmoid(z) + eps logsigmoid(-z)) / (1 - 2 eps)`` with ``z = beta * margin``:
    its mean over labels of which a share eps is the wrong way round is DPO's loss on the true ones,
    where cDPO's is biased. It may be negative and has no lower bound: a pair that is learnt goes on
    pulling with weight ``eps / (1 - 2 eps)``. log 2 at policy = reference.

    Args:
        beta: > 0, usually as in `dpo_loss`, 50 to 2500.
        flip_rate: eps, in [0, 0.5); 0 is DPO. TRL calls it ``label_smoothing``.
    """
    margin = _margin(policy_win, policy_lose, ref_win, ref_lose)
    agree, disagree = F.logsigmoid(beta * margin), F.logsigmoid(-beta * margin)
    loss = (flip_rate * disagree - (1 - flip_rate) * agree) / (1 - 2 * flip_rate)
    return PreferenceLoss(loss, margin.detach())


@checked
def hinge_loss(
    policy_win: Tensor, policy_lose: Tensor, ref_win: Tensor, ref_lose: Tensor, *, beta: Beta
) -> PreferenceLoss:
    """Hinge: ``relu(1 - beta * margin)``; a pair that reaches its margin has no gradient left.

    SLiC (Zhao et al. 2023, arXiv 2305.10425) in the form with a reference of RSO (Liu et al. 2023,
    arXiv 2309.06657); SLiC's own term on the winners is the module's ``winner_weight``. 1 at
    policy = reference.

    Args:
        beta: > 0; the margin aimed at is ``1 / beta``, in units of mean squared error. Usually as
            in `dpo_loss`, 50 to 2500.
    """
    margin = _margin(policy_win, policy_lose, ref_win, ref_lose)
    return PreferenceLoss(F.relu(1 - beta * margin), margin.detach())


@checked
def dpop_loss(
    policy_win: Tensor,
    policy_lose: Tensor,
    ref_win: Tensor,
    ref_lose: Tensor,
    *,
    beta: Beta,
    winner_penalty: NotNegative = 5.0,
) -> PreferenceLoss:
    """DPO-Positive, "Smaug" (Pal et al. 2024, arXiv 2402.13228): the winner must not get worse.

    ``-logsigmoid(beta * (margin - winner_penalty * relu(policy_win - ref_win)))``: DPO, but a
    margin that comes from a winner that got less worse than the loser is penalised. log 2 at
    policy = reference.

    Args:
        beta: > 0, usually as in `dpo_loss`, 50 to 2500; it multiplies the penalty too.
        winner_penalty: lambda, >= 0, without unit; 0 is DPO. The paper's 50 was chosen on
            log-probabilities of text; on errors, which change from draw to draw, the penalty would
            outweigh all else, hence 5 here.
    """
    margin = _margin(policy_win, policy_lose, ref_win, ref_lose)
    logit = beta * (margin - winner_penalty * F.relu(policy_win - ref_win))
    return PreferenceLoss(-F.logsigmoid(logit), margin.detach())


@checked
def linear_dpo_loss(
    policy_win: Tensor,
    policy_lose: Tensor,
    ref_win: Tensor,
    ref_lose: Tensor,
    *,
    beta: Beta,
    floor: Minority = 1e-3,
) -> PreferenceLoss:
    """Linear-DPO (arXiv 2605.21123): DPO's weight of a pair as a clipped straight line.

    ``-c * beta * margin`` with ``c = clip(1/2 - 0.2 beta margin, floor, 1 - floor)``, detached. DPO
    has ``c = sigmoid(-beta * margin)``. 0 at policy = reference; only the gradient has a meaning.

    The authors' code returns ``c (policy_win - policy_lose)``: the same gradient over beta, which
    is back here so that learning rate and regularisers mean the same as in DPO. Their 0.2 stands
    beside an undivided ``beta_dpo``, so their beta is this one. Their reference is a moving average
    of the policy (reference=ema); the loss takes any.

    Args:
        beta: > 0; the coefficient leaves its line at margins of about ``2.5 / beta``. Usually 100
            to 1000: the authors' 100 (SD1.5) and 500 (SDXL) on epsilon errors, 1000 on the embedded
            model.
        floor: eta, the least and, from above, the most of the coefficient, in [0, 0.5).
    """
    margin = _margin(policy_win, policy_lose, ref_win, ref_lose)
    coefficient = (0.5 - 0.2 * beta * margin.detach()).clamp(floor, 1 - floor)
    return PreferenceLoss(-coefficient * beta * margin, margin.detach())


@checked
def simpo_loss(
    policy_win: Tensor,
    policy_lose: Tensor,
    ref_win: Tensor,
    ref_lose: Tensor,
    *,
    beta: Beta,
    gamma: NotNegative = 0.5,
) -> PreferenceLoss:
    """SimPO (Meng et al. 2024, arXiv 2405.14734) on errors: no reference in the loss.

    ``-logsigmoid(beta * (policy_lose - policy_win) - gamma)``, with the negative error in the place
    of the paper's mean log-probability. At policy = reference it is no constant, since two videos
    are not equally hard to denoise; where their errors are equal it is ``log(1 + exp(gamma))``.

    Args:
        beta: > 0; multiplies the difference of two videos' errors, which is larger than a margin.
            So usually half of `dpo_loss`'s beta, 25 to 1250; 500 on the embedded model. Published
            values are for text and do not transfer.
        gamma: >= 0, in units of the logit: the gap aimed at is ``gamma / beta``. The paper's
            ``gamma / beta`` of 0.5 is in units of log-probability and does not transfer.
    """
    margin = _margin(policy_win, policy_lose, ref_win, ref_lose)
    loss = -F.logsigmoid(beta * (policy_lose - policy_win) - gamma)
    return PreferenceLoss(loss, margin.detach())


@checked
def mapo_loss(
    policy_win: Tensor,
    policy_lose: Tensor,
    ref_win: Tensor,
    ref_lose: Tensor,
    *,
    beta: Positive = 0.1,
    snr: Positive = 0.5,
    scale: Positive = 1000.0,
) -> PreferenceLoss:
    """MaPO (Hong et al. 2024, arXiv 2406.06424): fine-tuning plus a margin, without a reference.

    ``policy_win - beta * logsigmoid(scale * (f(snr * policy_win) - f(snr * policy_lose)))`` with
    ``f(x) = x / (exp(x) - 1)``, which falls from 1 at no error. Two equal errors e cost
    ``e + beta log 2``; at policy = reference it is no constant.

    As in the authors' code, but finite at any error: theirs is 0/0 at none. They work on epsilon
    errors.

    Args:
        beta: weight of the margin against the winner's own error, > 0; it multiplies no error.
            Usually 0.1, the authors' value.
        snr: factor of the errors, > 0; the authors' ``snr_value``.
        scale: factor of the margin, > 0; the authors' number of timesteps. For small errors the
            logit is ``scale * snr / 2 * (policy_lose - policy_win)``.
    """
    margin = _margin(policy_win, policy_lose, ref_win, ref_lose)
    gap = _x_over_expm1(snr * policy_win) - _x_over_expm1(snr * policy_lose)
    return PreferenceLoss(policy_win - beta * F.logsigmoid(scale * gap), margin.detach())


def sft_loss(
    policy_win: Tensor, policy_lose: Tensor, ref_win: Tensor, ref_lose: Tensor
) -> PreferenceLoss:
    """Fine-tuning on the winners: the winner's own error, the baseline of every preference loss.

    Loser and reference enter the margin alone, which tells what the training does to the pairs.
    """
    margin = _margin(policy_win, policy_lose, ref_win, ref_lose)
    return PreferenceLoss(policy_win, margin.detach())


@checked
def kto_loss(
    policy: Tensor,
    ref: Tensor,
    desirable: Tensor,
    *,
    beta: Beta,
    desirable_weight: NotNegative = 1.0,
    undesirable_weight: NotNegative = 1.0,
    utility: Utility = "sigmoid",
    baseline: Tensor | Baseline = "mean",
) -> PreferenceLoss:
    """Diffusion-KTO (Li et al. 2024, arXiv 2404.04465, eq. 8): ``weight * (1 - U(x))``.

    ``x = w * beta * (implicit reward - baseline)``, w = +1 for a desirable video and -1 for an
    undesirable one. At policy = reference the default utility costs half the weight.

    Args:
        policy, ref: errors, (B,). desirable: (B,) bool.
        beta: > 0, usually 1000 to 5000: the paper has 2000 to 5000 and its code 1000, on epsilon
            errors and without a half. 2000 on the embedded model.
        desirable_weight, undesirable_weight: lambda_D and lambda_U, >= 0; raise the one of the
            rarer kind of label.
        utility: U, how a gain or loss is felt: a key of `UTILITIES`.
        baseline: the implicit reward that counts as no gain: a kind of `kto_baseline`, or the
            scalar itself, which the training module takes over all ranks.
    """
    side = _side(policy, ref, desirable)
    reward = ref - policy
    if not isinstance(baseline, Tensor):
        baseline = _baseline_of_batch(reward, desirable, baseline)
    weight = torch.where(desirable, desirable_weight, undesirable_weight).to(reward)
    shortfall = UTILITIES[utility](beta * (side * (reward - baseline)))
    return PreferenceLoss(weight * shortfall, (side * reward).detach())


UTILITIES: dict[str, Callable[[Tensor], Tensor]] = {
    # 1 - sigmoid(x) is written sigmoid(-x): equal, and exact where sigmoid(x) rounds to one.
    "sigmoid": lambda x: torch.sigmoid(-x),
    "loss_averse": lambda x: 1 - F.logsigmoid(x),
    "risk_seeking": lambda x: 1 + F.logsigmoid(-x),
}
"""``1 - U(x)`` of `kto_loss` by the name of the utility U, the three of the paper:

============  ====================  ==================  ============
utility       U(x)                  authors' ``halo``   1 - U(0)
============  ====================  ==================  ============
sigmoid       ``sigmoid(x)``                            1/2
loss_averse   ``logsigmoid(x)``                         1 + log 2
risk_seeking  ``-logsigmoid(-x)``   risk_seeking_3      1 - log 2
============  ====================  ==================  ============

All but the first are unbounded.
"""


def kto_baseline(
    reward: Tensor, desirable: Tensor | None = None, kind: Baseline | str = "mean"
) -> Tensor:
    """KTO's reference point of implicit rewards, a scalar without gradient.

    ==========  ========================================  ========  ==========================
    kind        mean of the implicit rewards              at least  authors' ``bce_offset``
    ==========  ========================================  ========  ==========================
    mean        of all videos                             0         none
    classes     of all videos: midway between the mean    -         sigmoid
                of desirable and of undesirable ones
    mismatched  of videos with other prompts, which the   0         original (without the 0)
                caller has computed
    ==========  ========================================  ========  ==========================

    ``classes`` does not depend on how many videos of each class a batch happens to hold. It is not
    clamped, as in the authors' code: it lies midway between the classes, wherever these are. A
    class without a video counts as 0, the reward of the reference itself, again as theirs; they
    average the means of the ranks, this takes all ranks' videos together. ``mismatched`` estimates
    the divergence from the reference as KTO for text does (Ethayarajh et al. 2024, arXiv
    2402.01306); a divergence is not negative, so their code clamps it and so does this, where
    Diffusion-KTO's does not.

    Args:
        reward: (N,) implicit rewards of all ranks, or for ``mean`` of the ranks' means.
        desirable: (N,) bool, for ``classes``.
    """
    check("baseline", kind, Baseline)
    reward = reward.detach()
    if kind != "classes":
        return reward.mean().clamp_min(0)
    if desirable is None:
        raise ValueError("baseline=classes needs to know which videos are desirable")
    classes = desirable.to(reward), (~desirable).to(reward)
    good, bad = ((reward * members).sum() / members.sum().clamp_min(1) for members in classes)
    return (good + bad) / 2


def _baseline_of_batch(reward: Tensor, desirable: Tensor, kind: str) -> Tensor:
    if kind == "mismatched":
        raise InputError(
            "baseline=mismatched: the caller must compute the errors of policy and reference with "
            "other prompts, and pass the scalar that kto_baseline makes of them"
        )
    return kto_baseline(reward, desirable, kind)


@checked
def rwr_loss(
    policy: Tensor,
    ref: Tensor,
    desirable: Tensor,
    *,
    desirable_reward: NotNegative = 0.9,
    undesirable_reward: NotNegative = 0.05,
    graded: bool = False,
    reward: Tensor | None = None,
) -> PreferenceLoss:
    """Reward-weighted regression, as LiFT (arXiv 2412.04814) does: ``reward * policy``.

    A video's own error, weighted by how good the video is; nothing is pushed away. The reference
    enters the margin alone. At policy = reference it is the reward times the video's error.

    LiFT's reward is the mean over three dimensions of 0.9 (good), 0.2 (normal) and 0.05 (bad).
    Here it is one of two constants by label, or with ``graded`` the critic's score among its
    siblings, see `ipo_lightning.storage.records.Point.reward`.

    Args:
        desirable_reward, undesirable_reward: >= 0; 1 and 0 fine-tune on desirable videos alone.
        graded: weigh by ``reward`` in place of the two constants.
        reward: (B,) in [0, 1], needed where ``graded``.
    """
    side = _side(policy, ref, desirable)
    if not graded:
        reward = torch.where(desirable, desirable_reward, undesirable_reward).to(policy)
    elif reward is None:
        raise ValueError("graded=true needs the rewards of the videos")
    check_errors(policy, reward)
    return PreferenceLoss(reward * policy, (side * (ref - policy)).detach())


@checked
def nft_loss(
    policy: Tensor,
    ref: Tensor,
    desirable: Tensor,
    *,
    drift: Tensor,
    reward: Tensor,
    beta: Positive = 1.0,
) -> PreferenceLoss:
    """DiffusionNFT (Zheng et al. 2025, arXiv 2509.16117): reinforcement on the forward process.

    ``reward |v+ - t|^2 + (1 - reward) |v- - t|^2`` with t the target, v the policy's prediction,
    v_old the reference's, ``v+ = v_old + beta (v - v_old)`` and ``v- = v_old - beta (v - v_old)``.
    By the parallelogram identity both squares, and so the loss, need three numbers only: with
    ``s = 2 reward - 1`` it is ``ref + beta s (policy - ref) + beta (beta - s) drift``. A video's
    own optimum lies ``s / beta`` of the way from v_old to t: away from it where s < 0. At policy =
    reference it is the reference's error.

    The authors differ: they measure x0 errors, divide each square by the mean absolute x0 error of
    its prediction (self-normalised, without gradient) and the loss by beta; add 1e-4 times the
    squared distance to the base model; and let v_old follow the policy by a moving average, where
    here it is whatever ``reference`` names (the policy at the round's start). Their s is the
    advantage over 5 standard deviations, see `Point.reward`, which has 1: up to a factor, their
    beta of 1 (0.1 in some of their runs) is 5 (0.5) here.

    Args:
        policy, ref: errors, (B,). desirable: (B,) bool, for the margin alone.
        drift: (B,) mean squared difference of the two networks' predictions, differentiable and
            weighted like the errors.
        reward: (B,) in [0, 1], how good each video is; 1/2 is as good as its siblings.
        beta: > 0; multiplies no error but the policy's step away from the reference: larger stays
            closer. Usually 0.5 to 5, which are the authors' 0.1 and 1.
    """
    side = _side(policy, ref, desirable)
    check_errors(policy, drift, reward)
    praise = 2 * reward - 1
    loss = ref + beta * praise * (policy - ref) + beta * (beta - praise) * drift
    return PreferenceLoss(loss, (side * (ref - policy)).detach())


# -------------------------------------------------------------------- around a pairwise loss


@checked
def safeguard_scale(residual_win: Tensor, residual_lose: Tensor, *, mu: Safeguard) -> Tensor:
    """Diffusion-SDPO (arXiv 2511.03317): a scale of the loser's gradient that spares the winner.

    ``clip((1 - mu) |g_w|^2 / <g_w, g_l>, 0, 1)`` where ``<g_w, g_l> > 0``, else 1, with g the
    gradients of the errors on the predictions, which are the residuals up to a common factor. With
    the loser's gradient scaled by it, a step along both lowers the winner's error, to first order,
    by at least the share mu of what a step along the winner's alone would. The paper takes outputs
    for parameters, and a loss that weighs both errors alike: dpo and its kin, not dpop.

    The authors take one scale over the batch of a device; this is one a pair, which does not depend
    on its neighbours.

    Args:
        residual_win, residual_lose: prediction minus target, (B, ...).
        mu: in [0, 1). 0 only forbids that the winner gets worse; the larger, the less is left of
            the loser's gradient. The authors' scripts have 0.9 for Diffusion-DPO.

    Returns:
        (B,) float32 in [0, 1] without gradient, for `scale_gradient`.
    """
    if residual_win.shape != residual_lose.shape:
        raise ValueError(f"residuals {residual_win.shape} and {residual_lose.shape} differ")
    win, lose = (part.detach().float().flatten(1) for part in (residual_win, residual_lose))
    along = (win * lose).sum(1)
    free = along <= 0
    bound = (1 - mu) * win.square().sum(1) / torch.where(free, 1.0, along)
    return torch.where(free, 1.0, bound.clamp(0, 1))


def scale_gradient(error: Tensor, scale: Tensor) -> Tensor:
    """The error as it is, (B,), with its gradient multiplied by a scale, (B,)."""
    check_errors(error, scale)
    return error.detach() + scale.detach() * (error - error.detach())


# -------------------------------------------------------------------- what a loss is


def check_errors(*errors: Tensor) -> None:
    """Refuse errors that are not all (B,): a stray axis would broadcast, not fail."""
    if any(error.ndim != 1 or error.shape != errors[0].shape for error in errors):
        raise ValueError(f"errors must all be (B,), got {[tuple(error.shape) for error in errors]}")


def label_kind(loss: Callable[..., PreferenceLoss]) -> Literal["pairwise", "pointwise"]:
    """Whether a loss takes pairs or single videos, by the names of its parameters.

    Raises:
        InputError: it takes neither.
    """
    try:
        names = list(inspect.signature(loss).parameters)
    except ValueError as error:  # a builtin
        raise InputError(f"loss: {error}; write it as a Python function") from error
    if names[:4] == ["policy_win", "policy_lose", "ref_win", "ref_lose"]:
        return "pairwise"
    if names[:3] == ["policy", "ref", "desirable"]:
        return "pointwise"
    raise InputError(
        f"loss: its parameters start with {names[:4]}; a pairwise loss takes (policy_win, "
        "policy_lose, ref_win, ref_lose), a pointwise one (policy, ref, desirable)"
    )


def baseline_kind(loss: Callable[..., PreferenceLoss]) -> str | None:
    """Which `kto_baseline` a loss is set to; None where it takes none or was given a tensor.

    A ``baseline`` without a default, or of None, as a loss of one's own may have it, is the mean.

    Raises:
        InputError: there is no such kind.
    """
    settings = _settings(loss)
    kind = settings.get("baseline")
    if "baseline" not in settings or isinstance(kind, Tensor):
        return None
    if kind is None or kind is inspect.Parameter.empty:
        return "mean"
    check("baseline", kind, Baseline)
    return str(kind)


def extra_inputs(loss: Callable[..., PreferenceLoss]) -> frozenset[str]:
    """Names of the tensors that a loss takes from the training module besides errors and labels.

    - ``baseline``: scalar, see `kto_baseline`.
    - ``drift``: (B,) mean squared difference of policy's and reference's predictions.
    - ``reward``: (B,) in [0, 1]; of a loss with a switch ``graded``, only where that is on.
    """
    settings = _settings(loss)
    taken = {
        "baseline": baseline_kind(loss) is not None,
        "drift": "drift" in settings,
        "reward": "reward" in settings and settings.get("graded", True),
    }
    return frozenset(name for name, yes in taken.items() if yes)


def beyond_errors(loss: Callable[..., PreferenceLoss]) -> str | None:
    """What a loss needs beyond the reference's errors, as a sentence; None: the errors suffice."""
    plain: Callable[..., Any] = loss
    while isinstance(plain, partial):
        plain = plain.func
    name = getattr(plain, "__name__", "this loss")
    if "drift" in extra_inputs(loss):
        return f"{name} compares predictions (drift)"
    if baseline_kind(loss) == "mismatched":
        return f"{name} with baseline=mismatched asks the reference about other prompts"
    return None


def reference_free(loss: Callable[..., PreferenceLoss]) -> bool:
    """Whether a loss learns nothing from a reference, which then only enters its margin.

    Such a loss and its gradient are finite where the reference's errors are NaN; this calls it so.
    """
    policy, other = torch.tensor([0.2, 0.5]), torch.tensor([0.4, 0.3])
    nowhere = torch.full_like(policy, math.nan)
    if label_kind(loss) == "pairwise":
        own, rest = [policy, other], [nowhere, nowhere]
    else:
        own, rest = [policy], [nowhere, torch.tensor([True, False])]
    value, slope = _value_and_slope(loss, own, rest, _neutral_inputs(loss, policy))
    return bool((value + slope).isfinite().all())


def saturation(loss: Callable[..., PreferenceLoss], *inputs: Tensor, **extra: Tensor) -> Tensor:
    """(B,) float32: 1 where the gradient of a pair or a point has nearly vanished, else 0.

    That is: the sum of the loss's absolute slopes in the policy's errors is below a tenth of what
    it was while the policy still was the reference (with no drift and a baseline of 0). NaN where
    the reference's error is.

    Args:
        inputs: the loss's positional arguments; they are detached.
        extra: its `extra_inputs`, by name.
    """
    count = 2 if label_kind(loss) == "pairwise" else 1
    fixed = [part.detach() for part in inputs]
    own, reference, rest = fixed[:count], fixed[count : 2 * count], fixed[count:]
    now = {name: part.detach() for name, part in extra.items()}
    start = {n: part if n == "reward" else torch.zeros_like(part) for n, part in now.items()}
    _, slope = _value_and_slope(loss, own, rest, now)
    _, first = _value_and_slope(loss, reference, rest, start)
    known = ~torch.stack(reference).isnan().any(0)
    return torch.where(known, (slope < first / 10).float(), math.nan)


def try_loss(loss: Callable[..., PreferenceLoss]) -> None:
    """Call a loss once on zeros, so that a wrong setting fails before anything is loaded.

    Raises:
        InputError: the loss does not accept its settings, or does not return (B,) losses.
    """
    zeros = torch.zeros(2)
    inputs = [zeros] * 4 if label_kind(loss) == "pairwise" else [zeros, zeros, zeros > 0]
    try:
        with within("loss"):
            result = loss(*inputs, **_neutral_inputs(loss, zeros))
        check_errors(zeros, result.loss, result.margin)
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"loss: {error}") from error


def _settings(loss: Callable[..., PreferenceLoss]) -> dict[str, Any]:
    """A loss's parameters and their defaults; ``Parameter.empty`` where there is none."""
    return {name: one.default for name, one in inspect.signature(loss).parameters.items()}


def _neutral_inputs(loss: Callable[..., PreferenceLoss], like: Tensor) -> dict[str, Tensor]:
    """A loss's `extra_inputs` while the policy is the reference, shaped like an error (B,)."""
    values = {
        "baseline": like.new_zeros(()),
        "drift": torch.zeros_like(like),
        "reward": torch.full_like(like, 0.5),
    }
    return {name: values[name] for name in extra_inputs(loss)}


def _value_and_slope(
    loss: Callable[..., PreferenceLoss],
    own: Sequence[Tensor],
    rest: Sequence[Tensor],
    extra: Mapping[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """(B,) losses, and (B,) sums of their absolute slopes in the policy's own errors."""
    leaves = [part.detach().requires_grad_() for part in own]
    with torch.enable_grad():
        value = loss(*leaves, *rest, **extra).loss
        total = value.sum()
    slopes = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return value.detach(), torch.stack(slopes).abs().sum(0)


def _margin(policy_win: Tensor, policy_lose: Tensor, ref_win: Tensor, ref_lose: Tensor) -> Tensor:
    check_errors(policy_win, policy_lose, ref_win, ref_lose)
    return (ref_win - policy_win) - (ref_lose - policy_lose)


def _side(policy: Tensor, ref: Tensor, desirable: Tensor) -> Tensor:
    """+1 for desirable videos, -1 for the others, (B,)."""
    check_errors(policy, ref)
    if desirable.shape != policy.shape or desirable.dtype != torch.bool:
        raise ValueError(
            f"desirable must be bool {tuple(policy.shape)}, got {desirable.dtype} "
            f"{tuple(desirable.shape)}"
        )
    return torch.where(desirable, 1.0, -1.0).to(policy)


def _x_over_expm1(x: Tensor) -> Tensor:
    """``x / (exp(x) - 1)`` for x >= 0, finite with its gradient at zero and far away."""
    small = x < 1e-2
    near = torch.where(small, x, 0.0)
    far = torch.where(small, 1.0, x).clamp_max(50)  # 1e-20 there; exp overflows a little later
    series = 1 - near / 2 + near.square() / 12 - near.pow(4) / 720  # the next term is below 1e-16
    return torch.where(small, series, far / torch.expm1(far))
