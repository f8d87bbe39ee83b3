"""What holds of every decision, whatever the policies, the metrics and the past are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from endpoint.autoscaling.decisions import (
    LOW_RATIO,
    Cooldown,
    Decision,
    Policy,
    Step,
    StepPolicy,
    Target,
    TrackingPolicy,
    Trigger,
    abandoned,
    decide,
    fulfilled,
)

NOW = 1000.0
MAX_COOLDOWN_S = 300.0
METRICS = st.floats(0, 200) | st.sampled_from([0.0, 1.0, 4.5, 5.0, 90.0, 100.0])
SECONDS = st.floats(0, MAX_COOLDOWN_S)


@st.composite
def tracking_policies(draw: st.DrawFn, name: str = "p") -> TrackingPolicy:
    return TrackingPolicy(
        name=name,
        target=draw(st.sampled_from([1.0, 5.0, 100.0]) | st.floats(1e-3, 200)),
        scale_out_cooldown_s=draw(SECONDS),
        scale_in_cooldown_s=draw(SECONDS),
        can_scale_in=draw(st.booleans()),
    )


@st.composite
def step_policies(draw: st.DrawFn, name: str = "p") -> StepPolicy:
    kind = draw(st.sampled_from(["ChangeInCapacity", "PercentChangeInCapacity", "ExactCapacity"]))
    low = 0 if kind == "ExactCapacity" else -100
    bounds: list[float | None] = [None, *sorted(draw(st.sets(st.integers(-50, 50), max_size=3))), None]
    steps = [
        Step(lower=lower, upper=upper, adjustment=draw(st.integers(low, 100))) for lower, upper in pairwise(bounds)
    ]
    return StepPolicy(
        name=name,
        adjustment_type=kind,
        steps=tuple(steps),
        cooldown_s=draw(SECONDS),
        min_magnitude=draw(st.integers(1, 5)),
        aggregation=draw(st.sampled_from(["Average", "Minimum", "Maximum"])),
    )


@st.composite
def targets(draw: st.DrawFn, policies: Sequence[Policy]) -> Target:
    low = draw(st.integers(0, 5))
    desired = draw(st.integers(0, 20))
    return Target(
        min_capacity=low,
        max_capacity=draw(st.integers(low, 12)),
        desired=desired,
        running=draw(st.just(desired) | st.integers(0, 20)),
        is_scalable=draw(st.booleans()),
        is_out_suspended=draw(st.booleans()),
        is_in_suspended=draw(st.booleans()),
        policies=tuple(policies),
    )


@st.composite
def triggers_of(draw: st.DrawFn, policy: Policy) -> Trigger:
    is_above = draw(st.booleans())
    threshold = draw(st.floats(0, 100))
    if isinstance(policy, TrackingPolicy):
        threshold = policy.target * (1 if is_above else LOW_RATIO)
    values = tuple(draw(st.lists(METRICS, max_size=4)))
    return Trigger(policy=policy, alarm="alarm", values=values, threshold=threshold, is_above=is_above)


COOLDOWNS = st.builds(
    Cooldown,
    asked=st.integers(-3, 3),
    added=st.integers(0, 5),
    out_until=st.none() | st.floats(NOW - 300, NOW + 300),
    in_until=st.none() | st.floats(NOW - 300, NOW + 300),
)

Situation = tuple[Target, list[Trigger], dict[str, Cooldown]]


@st.composite
def situations(draw: st.DrawFn, steps: int = 2) -> Situation:
    kinds = draw(st.lists(st.sampled_from([tracking_policies, step_policies][:steps]), min_size=1, max_size=3))
    policies = [draw(kind(name=str(number))) for number, kind in enumerate(kinds)]
    fired = draw(st.lists(st.sampled_from(policies), max_size=4))
    cooldowns = draw(st.dictionaries(st.sampled_from([policy.name for policy in policies]), COOLDOWNS))
    return draw(targets(policies)), [draw(triggers_of(policy)) for policy in fired], cooldowns


def is_unfulfilled(trigger: Trigger) -> bool:
    if not trigger.values:
        return True
    if not isinstance(trigger.policy, TrackingPolicy):
        return False
    metric = sum(trigger.values) / len(trigger.values)
    goal = trigger.policy.target
    slack = 1e-9 * goal
    return metric <= goal - slack if trigger.is_above else metric >= LOW_RATIO * goal + slack


@given(situations())
def test_capacity_is_a_change_within_bounds(situation: Situation) -> None:
    target, triggers, cooldowns = situation
    capacity = decide(target, triggers, cooldowns, NOW).capacity
    if capacity is not None:
        assert target.min_capacity <= capacity <= target.max_capacity
        assert capacity != target.desired
        assert target.is_scalable


@given(situations())
def test_unfulfilled_triggers_change_no_decision(situation: Situation) -> None:
    target, triggers, cooldowns = situation
    fulfilling = [trigger for trigger in triggers if not is_unfulfilled(trigger)]
    assert decide(target, triggers, cooldowns, NOW) == decide(target, fulfilling, cooldowns, NOW)


@given(situations())
def test_data_that_cease_never_scale_in(situation: Situation) -> None:
    target, triggers, cooldowns = situation
    silent = [replace(trigger, values=()) for trigger in triggers]
    assert decide(target, silent, cooldowns, NOW).capacity is None
    some = [*silent[::2], *triggers[1::2]]
    with_silence, alone = (decide(target, each, cooldowns, NOW).capacity for each in (some, triggers[1::2]))
    assert with_silence == alone


@given(situations())
def test_largest_capacity_wins(situation: Situation) -> None:
    target, triggers, cooldowns = situation
    decision = decide(target, triggers, cooldowns, NOW)
    for trigger in triggers:
        alone = decide(target, [trigger], cooldowns, NOW).capacity
        if alone is not None and (alone > target.desired or decision.capacity is not None):
            assert (decision.capacity or 0) >= alone


@given(situations(steps=1), st.booleans())
def test_tracking_scales_in_if_all_agree(situation: Situation, is_cooling: bool) -> None:
    target, triggers, cooldowns = situation
    cooldowns = cooldowns if is_cooling else {}
    idle = replace(target, min_capacity=0, desired=4, running=4, is_scalable=True, is_in_suspended=False)
    low = [replace(each, is_above=False, values=(0.0,) if each.values else ()) for each in triggers]
    able = {each.name for each in target.policies if isinstance(each, TrackingPolicy) and each.can_scale_in}
    ready = {each.policy.name for each in low if each.values and each.policy.name in able}
    ready -= {name for name in able if name in cooldowns and cooldowns[name].blocks_scale_in(NOW)}
    capacity = decide(idle, low, cooldowns, NOW).capacity
    assert capacity == (0 if able and able <= ready else None)


@given(situations(steps=1))
def test_tracking_leaves_zero_by_one(situation: Situation) -> None:
    target, triggers, cooldowns = situation
    decision = decide(replace(target, desired=0, running=0, min_capacity=0), triggers, cooldowns, NOW)
    assert decision.capacity in (None, 1)
    if decision.capacity and decision.trigger:
        assert decision.trigger.is_above and not is_unfulfilled(decision.trigger)


@given(situations())
def test_suspended_directions_do_nothing(situation: Situation) -> None:
    target, triggers, cooldowns = situation
    capacity = decide(target, triggers, cooldowns, NOW).capacity
    if capacity is not None:
        assert not (target.is_out_suspended and capacity > target.desired)
        assert not (target.is_in_suspended and capacity < target.desired)
    both = replace(target, is_out_suspended=True, is_in_suspended=True)
    assert decide(both, triggers, cooldowns, NOW).capacity is None


@given(situations())
def test_reasons_for_not_scaling_are_true(situation: Situation) -> None:
    target, triggers, cooldowns = situation
    for reason in decide(target, triggers, cooldowns, NOW).not_scaled:
        assert reason.trigger in triggers and not is_unfulfilled(reason.trigger)
        match reason.code:
            case "AlreadyAtMaxCapacity":
                assert target.desired >= target.max_capacity == reason.capacity
            case "AlreadyAtMinCapacity":
                assert target.desired <= target.min_capacity == reason.capacity
            case "AlreadyAtDesiredCapacity":
                assert reason.capacity == target.desired
            case "TargetServicePutResourceAsUnscalable":
                assert not target.is_scalable
            case code:
                raise AssertionError(code)


@given(situations())
def test_credit_never_makes_scale_out_larger(situation: Situation) -> None:
    target, triggers, cooldowns = situation
    fresh = {name: replace(each, added=0, out_until=None, asked=min(each.asked, 0)) for name, each in cooldowns.items()}
    capacity = decide(target, triggers, cooldowns, NOW).capacity or target.desired
    without = decide(target, triggers, fresh, NOW).capacity or target.desired
    if capacity > target.desired:
        assert capacity <= without


# What cooldowns are after any past, and that they end

Event = tuple[Trigger | bool, float]
"""A firing, or the end of what is under way (whether it succeeded), and the seconds until the next one."""


@st.composite
def pasts(draw: st.DrawFn) -> tuple[list[Policy], list[Event]]:
    policies = [draw(kind(name=str(number))) for number, kind in enumerate([tracking_policies, step_policies])]
    events = st.one_of(*(triggers_of(policy) for policy in policies), st.booleans())
    return policies, draw(st.lists(st.tuples(events, st.floats(0, 200)), max_size=30))


class Endpoint:
    """A target with its cooldowns, changed by decisions and by the ends of what they ask for."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self.now = NOW
        self.target = Target(min_capacity=0, max_capacity=8, desired=1, running=1, policies=tuple(policies))
        self.cooldowns: Mapping[str, Cooldown] = {}
        self.before = 1
        self.under_way: Policy | None = None

    def fire(self, *triggers: Trigger) -> Decision:
        decision = decide(self.target, triggers, self.cooldowns, self.now)
        self.cooldowns = decision.cooldowns
        if decision.capacity is not None and decision.trigger is not None:
            self.before = self.target.desired
            self.under_way = decision.trigger.policy
            self.target = replace(self.target, desired=decision.capacity, is_scalable=False)
        return decision

    def end(self, *, has_succeeded: bool) -> None:
        if self.under_way is None:
            return
        if has_succeeded:
            self.cooldowns = fulfilled(self.under_way, self.cooldowns, self.now)
        else:
            self.cooldowns = abandoned(self.under_way.name, self.cooldowns, self.now)
            self.target = replace(self.target, desired=self.before)
        self.under_way = None
        self.target = replace(self.target, running=self.target.desired, is_scalable=True)

    def live(self, events: Sequence[Event]) -> None:
        for event, seconds in events:
            if isinstance(event, Trigger):
                self.fire(event)
            else:
                self.end(has_succeeded=event)
            self.now += seconds


UP_AND_DOWN = (Step(lower=0, upper=None, adjustment=1), Step(lower=None, upper=0, adjustment=-1))


@given(pasts(), st.booleans(), st.sampled_from([0, 1]))
def test_lasting_breach_acts_after_the_cooldown(
    past: tuple[list[Policy], list[Event]], is_above: bool, which: int
) -> None:
    (tracking, steps), events = past
    assert isinstance(tracking, TrackingPolicy) and isinstance(steps, StepPolicy)
    policies = (
        replace(tracking, can_scale_in=True),
        replace(steps, adjustment_type="ChangeInCapacity", steps=UP_AND_DOWN),
    )
    endpoint = Endpoint(policies)
    by_name = {policy.name: policy for policy in policies}
    endpoint.live(
        [
            (replace(event, policy=by_name[event.policy.name]) if isinstance(event, Trigger) else event, seconds)
            for event, seconds in events
        ]
    )
    endpoint.end(has_succeeded=True)
    at_end = endpoint.target.max_capacity if is_above else endpoint.target.min_capacity
    if endpoint.target.desired == at_end:
        return
    metric, policy = (tracking.target * 100, policies[which]) if is_above else (-1.0, policies[which])
    breach = Trigger(policy=policy, alarm="a", values=(metric,), threshold=0, is_above=is_above)
    cooldowns_s = (tracking.scale_out_cooldown_s, tracking.scale_in_cooldown_s, steps.cooldown_s)
    endpoint.now += (cooldowns_s[0 if is_above else 1] if which == 0 else cooldowns_s[2]) + 1e-6
    before = endpoint.target.desired
    capacity = endpoint.fire(breach).capacity
    assert capacity is not None and (capacity > before) == is_above


@given(pasts())
def test_nothing_stays_under_way(past: tuple[list[Policy], list[Event]]) -> None:
    policies, events = past
    endpoint = Endpoint(policies)
    endpoint.live(events)
    asked = {name for name, cooldown in endpoint.cooldowns.items() if cooldown.asked}
    assert asked == ({endpoint.under_way.name} if endpoint.under_way else set())
    endpoint.end(has_succeeded=True)
    endpoint.now += MAX_COOLDOWN_S + 1e-6
    endpoint.fire()
    assert endpoint.cooldowns == {}


@given(pasts())
def test_windows_have_added_no_more_than_there_is(past: tuple[list[Policy], list[Event]]) -> None:
    policies, events = past
    endpoint = Endpoint(policies)
    for event in events:
        endpoint.live([event])
        assert all(each.added >= 0 for each in endpoint.cooldowns.values())
        if endpoint.under_way is None:
            assert all(each.credit(endpoint.now) <= endpoint.target.desired for each in endpoint.cooldowns.values())
