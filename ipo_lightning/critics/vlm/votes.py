"""Several answers to one question as one answer: each is a vote.

An unreadable answer is a missing vote: it lowers the certainty. Where fewer than half of the
answers can be read there is no verdict. A verdict with votes missing for a transient fault is
transient itself.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import TypeVar

from ipo_lightning.critics.protocols import Comparison, Rating
from ipo_lightning.critics.vlm.client import Fault, Reply
from ipo_lightning.critics.vlm.templates.base import PairVote, PointVote, Unreadable
from ipo_lightning.metrics.preferences import Preference

V = TypeVar("V")

UNREADABLE = "unreadable"


def read_all(
    replies: Sequence[Reply | Fault], read: Callable[[Reply], V]
) -> tuple[list[V], list[Fault], str]:
    """The votes of a turn's answers, the faults of the others, and all texts in one."""
    votes: list[V] = []
    faults: list[Fault] = []
    words: list[str] = []
    for reply in replies:
        if isinstance(reply, Fault):
            faults.append(reply)
            words.append(f"[{reply.reason}]")
            continue
        try:
            votes.append(read(reply))
            words.append(reply.text)
        except Unreadable as error:
            faults.append(Fault(UNREADABLE))
            words.append(f"{reply.text}\n[{UNREADABLE}: {error}]")
    return votes, faults, "\n---\n".join(words)


def fault_of(votes: Sequence[object], faults: Sequence[Fault]) -> Fault | None:
    """The most common fault, where fewer than half of the answers are votes; else None.

    It is transient if asking again could bring enough votes.
    """
    asked = len(votes) + len(faults)
    if votes and 2 * len(votes) >= asked:
        return None
    reason = Counter(fault.reason for fault in faults).most_common(1)
    passing = sum(fault.transient for fault in faults)
    return Fault(reason[0][0] if reason else "no answer", 2 * (len(votes) + passing) >= asked > 0)


def compared(votes: Sequence[PairVote], faults: Sequence[Fault], raw: str) -> Comparison:
    """Votes on two videos as one comparison: the shares of first, tie and second.

    Certainty is the most frequent outcome's share of all answers.
    """
    fault = fault_of(votes, faults)
    if fault:
        return Comparison(None, raw=raw, fault=fault.reason, transient=fault.transient)
    shares = zip(*(vote.preference for vote in votes), strict=True)
    preference = Preference(*(fmean(share) for share in shares))
    readable = len(votes) / (len(votes) + len(faults))
    certainty = max(preference) * readable
    return Comparison(preference, _means(votes), certainty, raw, transient=_incomplete(faults))


def rated(
    votes: Sequence[PointVote], faults: Sequence[Fault], span: tuple[float, float], raw: str
) -> Rating:
    """Votes on a video as one rating: their mean.

    Certainty is the mean certainty of the votes, times their agreement, times the share of answers
    that could be read. Agreement is 1 where all votes are equal, and 0 where half of them are the
    lowest score and half the highest.

    Args:
        span: lowest and highest possible score.
    """
    fault = fault_of(votes, faults)
    if fault:
        return Rating(None, raw=raw, fault=fault.reason, transient=fault.transient)
    scores = [vote.score for vote in votes]
    agreement = 1 - min(1.0, pstdev(scores) / ((span[1] - span[0]) / 2))
    readable = len(votes) / (len(votes) + len(faults))
    certainty = fmean(vote.certainty for vote in votes) * agreement * readable
    return Rating(fmean(scores), _means(votes), certainty, raw, transient=_incomplete(faults))


def _incomplete(faults: Sequence[Fault]) -> bool:
    """Whether asking again could give more votes."""
    return any(fault.transient for fault in faults)


def _means(votes: Sequence[PairVote] | Sequence[PointVote]) -> Mapping[str, float]:
    """By dimension, the mean of the votes; votes of a template have the same dimensions."""
    return {name: fmean(vote.dims[name] for vote in votes) for name in votes[0].dims}
