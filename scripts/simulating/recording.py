"""Replay what `python -m endpoint up --record-scaling FILE` recorded, and compare decision by decision.

The endpoint's state isn't taken over: the cooldowns of each decision follow from the decision before, as in a
simulation. Only when a change was complete is read from the recording, as that is the instances' doing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from endpoint.autoscaling.decisions import Cooldown, Decision, Policy, TrackingPolicy, abandoned, decide, fulfilled
from endpoint.autoscaling.recording import Record, read_records

from .inputs import UnusableInputs

Cooldowns = Mapping[str, Cooldown]

_SAME_S = 1e-3


@dataclass(slots=True)
class Replay:
    """Owns the cooldowns of each target of a recording."""

    _cooldowns: dict[str, Cooldowns] = field(default_factory=dict)

    def decide(self, record: Record) -> Decision:
        """Decide as the simulation does."""
        before = self._cooldowns.get(record.resource_id, record.cooldowns)
        mine = _followed(before, record)
        decision = decide(record.target, record.triggers, mine, record.now)
        self._cooldowns[record.resource_id] = decision.cooldowns
        return decision


def check(path: Path) -> int:
    """Tell how the decisions compare, and return 1 if one differs. Raises UnusableInputs."""
    try:
        records = list(read_records(path))
    except (OSError, ValueError) as error:
        raise UnusableInputs(str(error)) from None
    if not records:
        raise UnusableInputs(f"{path} has no decisions")
    found = list(differences(records))
    for difference in found:
        print(difference)
    changes = sum(record.decision.capacity is not None for record in records)
    print(f"{len(records)} decisions compared, {changes} of them changes of the capacity: {len(found)} differ")
    return min(len(found), 1)


def differences(records: list[Record]) -> Iterator[str]:
    """Yield a sentence for each record that is decided otherwise, by its number."""
    replay = Replay()
    for number, record in enumerate(records, 1):
        mine = replay.decide(record)
        if mine != record.decision:
            yield f"decision {number}: {_told(record.decision)} was recorded, {_told(mine)} is decided here"


def _told(decision: Decision) -> str:
    codes = ", ".join(f"{each.trigger.policy.name} {each.code}" for each in decision.not_scaled)
    capacity = "no change" if decision.capacity is None else f"capacity {decision.capacity}"
    by = f" by {decision.trigger.policy.name}" if decision.trigger else ""
    return f"{capacity}{by} ({codes or 'no reasons'}; cooldowns {dict(decision.cooldowns)})"


def _followed(before: Cooldowns, record: Record) -> Cooldowns:
    """Return the cooldowns of a decision that follow from those of the one before it, with what was completed since."""
    for name, own in before.items():
        policy = next((each for each in record.target.policies if each.name == name), None)
        there = record.cooldowns.get(name, Cooldown())
        if not own.asked or policy is None or there.asked == own.asked:
            continue
        completed_at = _completed_at(policy, own, there)
        if completed_at is None:
            before = abandoned(name, before, record.now)
        else:
            before = fulfilled(policy, before, completed_at)
    # A time that was taken apart and put together again may differ in its last digits.
    return record.cooldowns if _are_close(before, record.cooldowns, record.now) else before


def _are_close(some: Cooldowns, others: Cooldowns, now: float) -> bool:
    live = [
        {name: each for name, cooldown in cooldowns.items() if (each := cooldown.at(now)) != Cooldown()}
        for cooldowns in (some, others)
    ]
    return live[0].keys() == live[1].keys() and all(
        (own.asked, own.added) == (other.asked, other.added)
        and _are_same(own.out_until, other.out_until)
        and _are_same(own.in_until, other.in_until)
        for own, other in ((live[0][name], live[1][name]) for name in live[0])
    )


def _are_same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) < _SAME_S


def _completed_at(policy: Policy, before: Cooldown, after: Cooldown) -> float | None:
    """Return when a change was complete, by the window that began then; None if there is none."""
    is_out = before.asked > 0
    until = after.out_until if is_out else after.in_until
    if until is None:
        return None
    if isinstance(policy, TrackingPolicy):
        return until - (policy.scale_out_cooldown_s if is_out else policy.scale_in_cooldown_s)
    return until - policy.cooldown_s
