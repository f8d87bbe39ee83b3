"""The tables of AWS's guide, row by row: target tracking, step scaling, cooldowns, reasons for not scaling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from endpoint.autoscaling.decisions import (
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
    within_bounds,
)

BACKLOG = TrackingPolicy(name="backlog", target=5.0)
LATENCY = TrackingPolicy(name="latency", target=100.0)
ADD_ONE = StepPolicy(
    name="add one", adjustment_type="ChangeInCapacity", steps=(Step(lower=0, upper=None, adjustment=1),)
)
REMOVE_ONE = StepPolicy(
    name="remove one", adjustment_type="ChangeInCapacity", steps=(Step(lower=None, upper=0, adjustment=-1),)
)
STEPS_UP = ((0, 10, 0), (10, 20, 10), (20, None, 30))
STEPS_DOWN = ((-10, 0, 0), (-20, -10, -10), (None, -20, -30))
NOW = 1000.0


def target(desired: int, **changes: Any) -> Target:
    return Target(**{"min_capacity": 0, "max_capacity": 10, "desired": desired, "running": desired} | changes)


def trigger(policy: Policy, value: float, *, is_above: bool = True, threshold: float | None = None) -> Trigger:
    """Return a firing of an alarm whose last three values are all `value`."""
    if threshold is None:
        threshold = policy.target * (1 if is_above else 0.9) if isinstance(policy, TrackingPolicy) else 1.0
    return Trigger(policy=policy, alarm="alarm", values=(value,) * 3, threshold=threshold, is_above=is_above)


def tracked(policy: TrackingPolicy, metric: float) -> Trigger:
    """Return a firing of that alarm of the policy's two which the metric is nearer to breaching."""
    return trigger(policy, metric, is_above=metric >= policy.target)


def percentages(*steps: tuple[float | None, float | None, int], **changes: Any) -> StepPolicy:
    made = tuple(Step(lower=lower, upper=upper, adjustment=adjustment) for lower, upper, adjustment in steps)
    return StepPolicy(**{"name": "steps", "adjustment_type": "PercentChangeInCapacity", "steps": made} | changes)


def codes(decision: Decision) -> list[tuple[str, int | None]]:
    return [(each.code, each.capacity) for each in decision.not_scaled]


def decide_one(here: Target, one: Trigger, **cooldowns: Cooldown) -> Decision:
    by_name = {name.replace("_", " "): cooldown for name, cooldown in cooldowns.items()}
    return decide(replace(here, policies=here.policies or (one.policy,)), [one], by_name, NOW)


# Target tracking

TRACKING = [
    # current, metric, target, desired, code
    (1, 12, 5, 3, None),
    (2, 12, 5, 5, None),
    (1, 5, 5, 1, None),
    (1, 1, 5, 1, "AlreadyAtDesiredCapacity"),
    (3, 1, 5, 1, None),
    (3, 0, 5, 0, None),
    (0, 4, 5, 0, "AlreadyAtMinCapacity"),
    (0, 6, 5, 1, None),
    (0, 600, 5, 1, None),
    (4, 4.6, 5, 4, None),
    (4, 4.4, 5, 4, "AlreadyAtDesiredCapacity"),
    (10, 6, 5, 10, "AlreadyAtMaxCapacity"),
    (9, 50, 5, 10, None),
    (3, 0.1, 0.3, 1, None),
]


@pytest.mark.parametrize(
    ("current", "metric", "goal", "desired", "code"),
    [pytest.param(*row, id=f"{row[0]} with {row[1]} of {row[2]} gives {row[3]}") for row in TRACKING],
)
def test_target_tracking_gives_the_tables_capacity(
    current: int, metric: float, goal: float, desired: int, code: str | None
) -> None:
    decision = decide_one(target(current), tracked(TrackingPolicy(name="p", target=goal), metric))
    assert decision.capacity == (None if desired == current else desired)
    assert [each.code for each in decision.not_scaled] == ([code] if code else [])


def test_tracking_metric_is_the_mean() -> None:
    values = Trigger(policy=BACKLOG, alarm="high", values=(3.0, 9.0, 24.0), threshold=5.0, is_above=True)
    assert decide_one(target(1), values).capacity == 3


@pytest.mark.parametrize(
    ("is_above", "metric"),
    [pytest.param(True, 5.0, id="high at the target"), pytest.param(False, 4.5, id="low at nine tenths of it")],
)
def test_firing_that_is_no_breach_does_nothing(is_above: bool, metric: float) -> None:
    decision = decide_one(target(2), trigger(BACKLOG, metric, is_above=is_above))
    assert (decision.capacity, decision.not_scaled) == (None, ())


@pytest.mark.parametrize("policy", [BACKLOG, ADD_ONE], ids=["tracking", "step"])
@pytest.mark.parametrize("is_above", [True, False], ids=["above", "below"])
def test_firing_without_values_does_nothing(policy: Policy, is_above: bool) -> None:
    decision = decide_one(target(2), replace(trigger(policy, 0, is_above=is_above), values=()))
    assert (decision.capacity, decision.not_scaled) == (None, ())


@pytest.mark.parametrize(("metric", "capacity"), [(float("inf"), 10), (-float("inf"), 0), (1e300, 10), (-1e300, 0)])
def test_boundless_metric_leads_to_a_bound(metric: float, capacity: int) -> None:
    policy = TrackingPolicy(name="tiny", target=1e-100)
    assert decide(target(3), [tracked(policy, metric)], {}, NOW).capacity == capacity


def test_metric_counts_per_running_instance() -> None:
    assert decide_one(target(2, running=1), tracked(BACKLOG, 12)).capacity == 3
    assert decide_one(target(2, running=0), tracked(BACKLOG, 12)).capacity == 3
    assert decide_one(target(2, running=0), tracked(BACKLOG, 1)).capacity == 1


def test_disabled_scale_in_does_nothing() -> None:
    decision = decide_one(target(3), tracked(replace(BACKLOG, can_scale_in=False), 0))
    assert (decision.capacity, decision.not_scaled) == (None, ())


# Several policies


def decide_both(here: Target, *triggers: Trigger, cooldowns: dict[str, Cooldown] | None = None) -> Decision:
    return decide(replace(here, policies=(BACKLOG, LATENCY, ADD_ONE, REMOVE_ONE)), triggers, cooldowns or {}, NOW)


def test_largest_scale_out_wins() -> None:
    triggers = [trigger(ADD_ONE, 1), tracked(BACKLOG, 20), tracked(LATENCY, 150)]
    decision = decide_both(target(2), *triggers)
    assert (decision.capacity, decision.trigger) == (8, triggers[1])
    assert decision.cooldowns == {"backlog": Cooldown(asked=6)}


def test_scale_out_beats_scale_in() -> None:
    assert decide_both(target(2), tracked(BACKLOG, 0), tracked(LATENCY, 150)).capacity == 3


def test_tracking_scales_in_if_all_agree() -> None:
    assert decide_both(target(4), tracked(BACKLOG, 0), tracked(LATENCY, 30)).capacity == 2


@pytest.mark.parametrize(
    "others",
    [
        pytest.param([], id="no alarm"),
        pytest.param([tracked(LATENCY, 89)], id="same capacity"),
        pytest.param([trigger(LATENCY, 95, is_above=False)], id="no breach"),
        pytest.param([replace(tracked(LATENCY, 0), values=())], id="no data"),
    ],
)
def test_tracking_stays_unless_all_agree(others: list[Trigger]) -> None:
    assert decide_both(target(4), tracked(BACKLOG, 0), *others).capacity is None


def test_policy_in_cooldown_does_not_agree() -> None:
    cooldowns = {"latency": Cooldown(in_until=NOW + 1)}
    assert decide_both(target(4), tracked(BACKLOG, 0), tracked(LATENCY, 0), cooldowns=cooldowns).capacity is None


def test_disabled_scale_in_has_no_veto() -> None:
    policies = (BACKLOG, replace(LATENCY, can_scale_in=False))
    decision = decide(target(4, policies=policies), [tracked(BACKLOG, 0)], {}, NOW)
    assert decision.capacity == 0


def test_step_policy_needs_no_agreement() -> None:
    assert decide_both(target(4), trigger(REMOVE_ONE, 0, is_above=False)).capacity == 3


def test_step_policy_has_no_veto() -> None:
    agreed = (tracked(BACKLOG, 0), tracked(LATENCY, 0))
    assert decide_both(target(4), *agreed).capacity == 0
    assert decide_both(target(4), *agreed, trigger(REMOVE_ONE, 0, is_above=False)).capacity == 3


# Step scaling

STEPPING = [
    # current, steps, value, desired; the thresholds are 50
    *((10, STEPS_UP, value, desired) for value, desired in ((59.9, 10), (60, 11), (69.9, 11), (70, 13))),
    (11, STEPS_UP, 70, 14),
    *((14, STEPS_DOWN, value, desired) for value, desired in ((40.1, 14), (40, 13), (30.1, 13), (30, 10))),
    (13, STEPS_DOWN, 30, 10),
]


@pytest.mark.parametrize(
    ("current", "steps", "value", "desired"),
    [pytest.param(*row, id=f"{row[0]} at {row[2]} gives {row[3]}") for row in STEPPING],
)
def test_percentage_steps_give_the_tables_capacity(
    current: int, steps: tuple[tuple[float | None, float | None, int], ...], value: float, desired: int
) -> None:
    fired = trigger(percentages(*steps), value, threshold=50, is_above=steps is STEPS_UP)
    assert (decide_one(target(current, max_capacity=100), fired).capacity or current) == desired


@pytest.mark.parametrize(
    ("current", "percent", "least", "desired"),
    [
        pytest.param(4, 25, 2, 6, id="MinAdjustmentMagnitude"),
        pytest.param(127, 10, 1, 139, id="12.7 is 12"),
        pytest.param(67, 1, 1, 68, id="0.67 is 1"),
        pytest.param(58, -1, 1, 57, id="-0.58 is -1"),
        pytest.param(667, -1, 1, 661, id="-6.67 is -6"),
        pytest.param(0, 10, 1, 1, id="of 0 instances"),
        pytest.param(0, 10, 3, 3, id="of 0 instances with MinAdjustmentMagnitude"),
        pytest.param(10, -10, 3, 7, id="MinAdjustmentMagnitude of a scale-in"),
    ],
)
def test_percentages_are_rounded_as_aws_does(current: int, percent: int, least: int, desired: int) -> None:
    policy = percentages((None, None, percent), min_magnitude=least)
    assert decide_one(target(current, max_capacity=1000), trigger(policy, 1)).capacity == desired


@pytest.mark.parametrize(
    ("kind", "adjustment", "desired"),
    [pytest.param("ChangeInCapacity", 5, 8, id="change by 5"), pytest.param("ExactCapacity", 5, 5, id="exactly 5")],
)
def test_adjustments_of_three_instances(kind: Any, adjustment: int, desired: int) -> None:
    policy = StepPolicy(name="p", adjustment_type=kind, steps=(Step(lower=0, upper=None, adjustment=adjustment),))
    assert decide_one(target(3), trigger(policy, 1)).capacity == desired


@pytest.mark.parametrize(
    ("aggregation", "desired"), [("Average", 12), ("Minimum", 11), ("Maximum", 13)], ids=lambda value: str(value)
)
def test_aggregation_chooses_the_step(aggregation: Any, desired: int) -> None:
    steps = (Step(lower=0, upper=2, adjustment=1), Step(lower=2, upper=4, adjustment=2))
    policy = StepPolicy(
        name="p",
        adjustment_type="ChangeInCapacity",
        steps=(*steps, Step(lower=4, upper=None, adjustment=3)),
        aggregation=aggregation,
    )
    values = Trigger(policy=policy, alarm="a", values=(11.0, 12.0, 15.0), threshold=10.0, is_above=True)
    assert decide_one(target(10, max_capacity=20), values).capacity == desired


def test_value_outside_all_steps_does_nothing() -> None:
    policy = percentages((5, 10, 100))
    assert decide_one(target(2), trigger(policy, 1, threshold=0)) == Decision()


# Cooldowns

TWO_STEPS = StepPolicy(
    name="steps",
    adjustment_type="ChangeInCapacity",
    steps=(Step(lower=0, upper=10, adjustment=1), Step(lower=10, upper=None, adjustment=2)),
)


def test_scale_out_window_counts_what_it_added() -> None:
    """The runtime table: a low and a high breach while instances come up."""
    low, high = trigger(TWO_STEPS, 55, threshold=50), trigger(TWO_STEPS, 65, threshold=50)
    desired, running, cooldowns = 1, 1, dict[str, Cooldown]()
    for at, event, expected in [
        (0, low, 2),
        (10, low, 2),
        (20, "up", 2),
        (21, high, 3),
        (30, "up", 3),
        (31, high, 3),
        (329, high, 3),
        (330, high, 5),
        (340, "up", 5),
        (341, high, 5),
        (639, high, 5),
        (640, high, 7),
    ]:
        if isinstance(event, Trigger):
            decision = decide(target(desired, running=running), [event], cooldowns, at)
            desired, cooldowns = decision.capacity or desired, dict(decision.cooldowns)
        else:
            running, cooldowns = desired, dict(fulfilled(TWO_STEPS, cooldowns, at))
        assert desired == expected, at


def test_larger_step_adds_the_difference() -> None:
    steps = (Step(lower=0, upper=10, adjustment=2), Step(lower=10, upper=None, adjustment=3))
    policy = replace(TWO_STEPS, steps=steps)
    window = {"steps": Cooldown(added=2, out_until=NOW + 1)}
    assert decide(target(3), [trigger(policy, 5, threshold=0)], window, NOW).capacity is None
    assert decide(target(3), [trigger(policy, 10, threshold=0)], window, NOW).capacity == 4


def test_tracking_window_counts_what_it_added() -> None:
    window = Cooldown(added=2, out_until=NOW + 1)
    assert decide_one(target(3), tracked(BACKLOG, 12), backlog=window).capacity == 6
    assert decide_one(target(3), tracked(BACKLOG, 6), backlog=window).capacity is None


def test_window_counts_no_instances_that_are_gone() -> None:
    """Somebody else has set the capacity to 0 within the window."""
    assert decide_one(target(0), tracked(BACKLOG, 12), backlog=Cooldown(added=2, out_until=NOW + 1)).capacity == 1


def test_exact_capacity_is_reached_within_the_window() -> None:
    policy = replace(ADD_ONE, adjustment_type="ExactCapacity", steps=(Step(lower=0, upper=None, adjustment=5),))
    assert decide_one(target(3), trigger(policy, 1), add_one=Cooldown(added=2, out_until=NOW + 1)).capacity == 5


@pytest.mark.parametrize(
    ("until", "capacity"), [pytest.param(NOW + 0.1, None, id="within"), pytest.param(NOW, 1, id="at its end")]
)
def test_scale_in_cooldown_blocks_scale_in(until: float, capacity: int | None) -> None:
    assert decide_one(target(3), tracked(BACKLOG, 1), backlog=Cooldown(in_until=until)).capacity == capacity


def test_scale_in_under_way_blocks_scale_in() -> None:
    assert decide_one(target(3), tracked(BACKLOG, 1), backlog=Cooldown(asked=-1)).capacity is None


def test_scale_in_is_possible_within_scale_out_window() -> None:
    decision = decide_one(target(5), tracked(BACKLOG, 1), backlog=Cooldown(added=3, out_until=NOW + 1))
    assert decision.capacity == 1
    assert decision.cooldowns == {"backlog": Cooldown(asked=-4, out_until=NOW + 1)}


def test_scale_out_ends_all_scale_in_cooldowns() -> None:
    cooldowns = {"latency": Cooldown(in_until=NOW + 100), "backlog": Cooldown(in_until=NOW + 100)}
    decision = decide_both(target(2), trigger(ADD_ONE, 1), cooldowns=cooldowns)
    assert decision.capacity == 3
    assert all(cooldown.in_until is None for cooldown in decision.cooldowns.values())


@pytest.mark.parametrize(("until", "limited"), [(NOW + 9000, NOW + 300), (NOW + 299, NOW + 299), (None, None)])
def test_windows_are_no_longer_than_cooldowns(until: float | None, limited: float | None) -> None:
    cooldown = Cooldown(asked=1, added=2, out_until=until, in_until=until)
    expected = Cooldown(asked=1, added=2, out_until=limited, in_until=limited)
    assert [cooldown.limited(policy, NOW) for policy in (BACKLOG, ADD_ONE)] == [expected, expected]


def test_cooldowns_belong_to_their_policies() -> None:
    window = {"add one": Cooldown(added=1, out_until=NOW + 1)}
    assert decide_both(target(1), tracked(BACKLOG, 12), cooldowns=window).capacity == 3


@pytest.mark.parametrize(
    ("policy", "asked", "after"),
    [
        pytest.param(BACKLOG, 2, Cooldown(added=2, out_until=NOW + 300), id="default scale-out"),
        pytest.param(BACKLOG, -2, Cooldown(in_until=NOW + 300), id="default scale-in"),
        pytest.param(ADD_ONE, 1, Cooldown(added=1, out_until=NOW + 300), id="default step"),
        pytest.param(replace(BACKLOG, scale_out_cooldown_s=7), 1, Cooldown(added=1, out_until=NOW + 7), id="out"),
        pytest.param(replace(BACKLOG, scale_in_cooldown_s=7), -1, Cooldown(in_until=NOW + 7), id="in"),
        pytest.param(replace(ADD_ONE, cooldown_s=0), 1, None, id="none"),
    ],
)
def test_cooldowns_begin_at_fulfilment(policy: Policy, asked: int, after: Cooldown | None) -> None:
    cooldowns = fulfilled(policy, {policy.name: Cooldown(asked=asked)}, NOW)
    assert cooldowns.get(policy.name) == after


def test_failed_request_leaves_its_window_alone() -> None:
    window = Cooldown(added=1, out_until=NOW + 10)
    decision = decide_one(target(2), trigger(TWO_STEPS, 65, threshold=50), steps=window)
    assert decision.capacity == 3
    assert abandoned("steps", decision.cooldowns, NOW + 1) == {"steps": window}
    assert abandoned("steps", decision.cooldowns, NOW + 10) == {}


# Bounds, suspension, reasons


@pytest.mark.parametrize(
    ("desired", "within"), [pytest.param(0, 1, id="below"), pytest.param(2, 2, id="in"), pytest.param(9, 4, id="above")]
)
def test_capacity_is_brought_within_bounds(desired: int, within: int) -> None:
    assert within_bounds(target(desired, min_capacity=1, max_capacity=4)) == within


@pytest.mark.parametrize("fired", [trigger(ADD_ONE, 1), tracked(BACKLOG, 12)], ids=["step", "tracking"])
def test_suspended_scale_out_does_nothing(fired: Trigger) -> None:
    for here in (target(2, is_out_suspended=True), target(10, is_out_suspended=True)):
        assert decide_one(here, fired) == Decision()
    assert decide_one(target(2, is_in_suspended=True), fired).capacity


@pytest.mark.parametrize(
    "fired", [trigger(REMOVE_ONE, 0, is_above=False), tracked(BACKLOG, 0)], ids=["step", "tracking"]
)
def test_suspended_scale_in_does_nothing(fired: Trigger) -> None:
    for here in (target(2, is_in_suspended=True), target(0, is_in_suspended=True)):
        assert decide_one(here, fired) == Decision()
    assert decide_one(target(2, is_out_suspended=True), fired).capacity in (0, 1)


@pytest.mark.parametrize(
    ("here", "fired", "code", "capacity"),
    [
        pytest.param(target(10), trigger(ADD_ONE, 1), "AlreadyAtMaxCapacity", 10, id="max"),
        pytest.param(target(12), trigger(ADD_ONE, 1), "AlreadyAtMaxCapacity", 10, id="over max"),
        pytest.param(target(0), trigger(REMOVE_ONE, 0, is_above=False), "AlreadyAtMinCapacity", 0, id="min"),
        pytest.param(
            target(1, min_capacity=1), trigger(BACKLOG, 0, is_above=False), "AlreadyAtMinCapacity", 1, id="tracking min"
        ),
        pytest.param(target(0, min_capacity=1), tracked(BACKLOG, 0), "AlreadyAtMinCapacity", 1, id="under min"),
        pytest.param(target(4), tracked(BACKLOG, 4.4), "AlreadyAtDesiredCapacity", 4, id="same capacity"),
        pytest.param(
            target(3),
            trigger(replace(ADD_ONE, steps=(Step(lower=0, upper=None, adjustment=0),)), 1),
            "AlreadyAtDesiredCapacity",
            3,
            id="step of 0",
        ),
        pytest.param(
            target(3, is_scalable=False),
            trigger(ADD_ONE, 1),
            "TargetServicePutResourceAsUnscalable",
            None,
            id="updating",
        ),
    ],
)
def test_reason_for_not_scaling_is_aws_code(here: Target, fired: Trigger, code: str, capacity: int | None) -> None:
    decision = decide_one(here, fired)
    assert decision.capacity is None
    assert codes(decision) == [(code, capacity)]
    assert decision.not_scaled[0].trigger is fired


@pytest.mark.parametrize("desired", [0, 9], ids=["below the bounds", "above the bounds"])
def test_step_of_zero_never_changes_capacity(desired: int) -> None:
    policy = replace(ADD_ONE, steps=(Step(lower=None, upper=None, adjustment=0),))
    here = target(desired, min_capacity=1, max_capacity=4)
    assert codes(decide_one(here, trigger(policy, 1))) == [("AlreadyAtDesiredCapacity", desired)]


def test_nothing_to_ask_is_scalable_or_not() -> None:
    decision = decide_one(target(4, is_scalable=False), tracked(BACKLOG, 4.4))
    assert codes(decision) == [("AlreadyAtDesiredCapacity", 4)]


def test_loser_of_two_wishes_has_no_reason() -> None:
    assert decide_both(target(2), trigger(ADD_ONE, 1), tracked(BACKLOG, 20)).not_scaled == ()
