"""Rows of the table of Application Auto Scaling's answers about policies, and the alarms that they own."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest

from endpoint.alarms.alarms import Alarms
from testing.endpoint.autoscaling_server import AutoscalingServer
from testing.endpoint.scaling_calls import (
    BACKLOG,
    DIMENSION,
    RESOURCE,
    STEP,
    TRACKING,
    VARIANT,
    policy,
    put_step,
    put_tracking,
    refusal,
    refused,
    register,
)

UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
PREDEFINED = {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}
CUSTOMIZED = "The customized metric specification is not valid."
MISMATCH = "You must only provide a single scaling policy configuration, which must match the scaling policy type "


def put(client: Any, name: str = "policy", **parameters: Any) -> dict[str, Any]:
    answer: dict[str, Any] = client.put_scaling_policy(**VARIANT, PolicyName=name, **parameters)
    return answer


def put_steps(client: Any, *steps: tuple[float | None, float | None, int], **configuration: Any) -> dict[str, Any]:
    adjustments = []
    for lower, upper, adjustment in steps:
        bounds = {"MetricIntervalLowerBound": lower, "MetricIntervalUpperBound": upper}
        given = {name: bound for name, bound in bounds.items() if bound is not None}
        adjustments.append(given | {"ScalingAdjustment": adjustment})
    return put_step(client, StepAdjustments=adjustments, **configuration)


def alarms(server: AutoscalingServer) -> dict[str, dict[str, Any]]:
    """Return the parameters of all alarms that there are, by their names."""
    return {name: alarm.configuration for name, alarm in server.run(server.alarm_store.all()).items()}


@pytest.fixture
def client(server: AutoscalingServer) -> Any:
    register(server.client)
    return server.client


# Types


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        pytest.param({}, "Policy type must be specified", id="no type"),
        pytest.param(
            {"PolicyType": "StepScaling"},
            "StepScaling policy configuration must be specified",
            id="step without configuration",
        ),
        pytest.param(
            {"PolicyType": "TargetTrackingScaling"},
            "TargetTrackingScaling policy configuration must be specified",
            id="tracking without configuration",
        ),
        pytest.param(
            {
                "PolicyType": "StepScaling",
                "StepScalingPolicyConfiguration": STEP,
                "TargetTrackingScalingPolicyConfiguration": TRACKING,
            },
            f"{MISMATCH}specified.",
            id="both configurations",
        ),
        pytest.param(
            {"PolicyType": "StepScaling", "TargetTrackingScalingPolicyConfiguration": TRACKING},
            f"{MISMATCH}specified.",
            id="the other type's configuration",
        ),
        pytest.param(
            {"PolicyType": "PredictiveScaling"},
            "PolicyType PredictiveScaling is not supported by the local endpoint.",
            id="predictive",
        ),
    ],
)
def test_put_refuses_type(client: Any, parameters: dict[str, Any], message: str) -> None:
    assert refused(put, client, **parameters) == message


def test_policy_keeps_its_type(client: Any) -> None:
    put_step(client, "policy")
    message = "You cannot change a StepScaling policy to a non StepScaling policy, or vice versa."
    assert refused(put_tracking, client, "policy") == message


# Step scaling


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        pytest.param({}, "Adjustment type must be specified", id="empty"),
        pytest.param(STEP | {"StepAdjustments": []}, "There must be at least one step adjustment", id="no steps"),
        pytest.param(
            {"AdjustmentType": "ExactCapacity"}, "There must be at least one step adjustment", id="steps missing"
        ),
        pytest.param(STEP | {"Cooldown": -1}, "Cooldown must be nonnegative", id="negative cooldown"),
        pytest.param(
            STEP | {"AdjustmentType": "ExactCapacity", "MinAdjustmentMagnitude": 1},
            "Minimum adjustment magnitude is only allowed for adjustment type PercentChangeInCapacity",
            id="magnitude of exact capacity",
        ),
        pytest.param(
            STEP | {"AdjustmentType": "PercentChangeInCapacity", "MinAdjustmentMagnitude": 0},
            "Minimum adjustment magnitude must be positive",
            id="magnitude of zero",
        ),
    ],
)
def test_step_policy_is_refused(client: Any, configuration: dict[str, Any], message: str) -> None:
    assert refused(put, client, PolicyType="StepScaling", StepScalingPolicyConfiguration=configuration) == message


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        pytest.param(
            [(None, 0, -1), (1, None, 1)], "Step adjustment intervals cannot have gaps between them", id="gap"
        ),
        pytest.param([(None, 2, -1), (1, None, 1)], "Step adjustment intervals cannot overlap", id="overlap"),
        pytest.param(
            [(None, None, 1)], "A step adjustment must have a lower bound or an upper bound", id="no bounds at all"
        ),
        pytest.param(
            [(None, 0, 1), (None, -1, 2)],
            "At most one step adjustment may have an unspecified lower bound",
            id="two without lower bound",
        ),
        pytest.param(
            [(0, None, 1), (1, None, 2)],
            "At most one step adjustment may have an unspecified upper bound",
            id="two without upper bound",
        ),
        pytest.param(
            [(-5, 0, -1)],
            "There must be a step adjustment with an unspecified lower bound when one step adjustment has a negative "
            "lower bound",
            id="lowest bound negative",
        ),
        pytest.param(
            [(0, 5, 1)],
            "There must be a step adjustment with an unspecified upper bound when one step adjustment has a positive "
            "upper bound",
            id="highest bound positive",
        ),
        pytest.param(
            [(0, 0, 1), (0, None, 1)],
            "The lower bound of a step adjustment must be less than its upper bound",
            id="empty interval",
        ),
    ],
)
def test_step_intervals_are_refused(
    client: Any, steps: list[tuple[float | None, float | None, int]], message: str
) -> None:
    assert refused(put_steps, client, *steps) == message


def test_exact_capacity_is_never_negative(client: Any) -> None:
    message = "Scaling adjustment cannot be less than 0 when adjustment type is ExactCapacity"
    assert refused(put_steps, client, (0, None, -1), AdjustmentType="ExactCapacity") == message


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([(0, None, 1)], id="upwards"),
        pytest.param([(None, 0, -1)], id="downwards"),
        pytest.param([(1, None, 2), (0, 1, 1)], id="in any order"),
        pytest.param([(None, -10, -2), (-10, 0, -1), (0, None, 1)], id="both ways"),
    ],
)
def test_step_intervals_are_taken(client: Any, steps: list[tuple[float | None, float | None, int]]) -> None:
    assert put_steps(client, *steps)["Alarms"] == []


def test_step_policy_has_at_most_twenty_steps(client: Any) -> None:
    steps: list[tuple[float, float | None, int]] = [(float(n), float(n + 1), 1) for n in range(20)]
    steps[-1] = (19.0, None, 1)
    put_steps(client, *steps)
    code, message = refusal(put_steps, client, *[(float(n), float(n + 1), 1) for n in range(21)])
    assert (code, message) == ("LimitExceededException", "A scaling policy can have at most 20 step adjustments")


def test_step_policy_update_drops_omitted_options(client: Any) -> None:
    put_step(client, Cooldown=17, MetricAggregationType="Maximum")
    put(client, "step", PolicyType="StepScaling", StepScalingPolicyConfiguration={})
    assert policy(client, "step")["StepScalingPolicyConfiguration"] == STEP


def test_policy_update_without_configuration_changes_nothing(client: Any) -> None:
    put_step(client, Cooldown=17)
    created = policy(client, "step")
    assert put(client, "step")["PolicyARN"] == created["PolicyARN"]
    assert policy(client, "step") == created


def test_step_policy_is_described_as_given(server: AutoscalingServer, client: Any) -> None:
    arn = put_step(client)["PolicyARN"]
    described = policy(client, "step")
    assert described.pop("CreationTime").timestamp() == server.now
    assert described == VARIANT | {
        "PolicyARN": arn,
        "PolicyName": "step",
        "PolicyType": "StepScaling",
        "StepScalingPolicyConfiguration": STEP,
        "Alarms": [],
    }


# Target tracking


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        pytest.param(
            {"TargetValue": 0.0, "PredefinedMetricSpecification": PREDEFINED},
            "For target tracking scaling, target value must be between '8.51592E-109' and '1.174271E108', but was "
            "'0.0'.",
            id="target of zero",
        ),
        pytest.param(
            {"TargetValue": -1.0, "PredefinedMetricSpecification": PREDEFINED},
            "For target tracking scaling, target value must be between '8.51592E-109' and '1.174271E108', but was "
            "'-1.0'.",
            id="negative target",
        ),
        pytest.param(
            {"TargetValue": 5.0},
            "PredefinedMetricSpecification or CustomizedMetricSpecification must be set for target tracking scaling.",
            id="no metric",
        ),
        pytest.param(
            TRACKING | {"PredefinedMetricSpecification": PREDEFINED},
            "Only one of PredefinedMetricSpecification or CustomizedMetricSpecification can be set for target tracking "
            "scaling.",
            id="both metrics",
        ),
        pytest.param(TRACKING | {"ScaleInCooldown": -1}, "Cooldown must be nonnegative", id="negative cooldown"),
        pytest.param(
            {"TargetValue": 5.0, "PredefinedMetricSpecification": {"PredefinedMetricType": "ALBRequestCountPerTarget"}},
            f"Predefined metric type ALBRequestCountPerTarget is not supported for scalable dimension {DIMENSION}.",
            id="another service's metric",
        ),
        pytest.param(
            {"TargetValue": 5.0, "PredefinedMetricSpecification": PREDEFINED | {"ResourceLabel": "x"}},
            "ResourceLabel is not supported for predefined metric type SageMakerVariantInvocationsPerInstance.",
            id="resource label",
        ),
        pytest.param(
            {"TargetValue": 5.0, "CustomizedMetricSpecification": {"Metrics": [{"Id": "a", "Expression": "1"}]}},
            "CustomizedMetricSpecification.Metrics (metric math) is not supported by the local endpoint: give one "
            "metric.",
            id="metric math",
        ),
        pytest.param(
            {"TargetValue": 5.0, "CustomizedMetricSpecification": {"MetricName": "x", "Namespace": "y"}},
            f"{CUSTOMIZED} Statistic must be specified.",
            id="no statistic",
        ),
        pytest.param(
            {"TargetValue": 5.0, "CustomizedMetricSpecification": BACKLOG | {"Namespace": ":x"}},
            f"{CUSTOMIZED} Value ':x' at 'namespace' failed to satisfy constraint: Member must satisfy "
            "regular expression pattern: [^:].*",
            id="namespace that alarms can't have",
        ),
        pytest.param(
            {"TargetValue": 5.0, "CustomizedMetricSpecification": BACKLOG | {"Unit": "Pages"}},
            f"{CUSTOMIZED} Value 'Pages' at 'unit' failed to satisfy constraint: Member must satisfy enum value set: ",
            id="unknown unit",
        ),
    ],
)
def test_tracking_policy_is_refused(
    server: AutoscalingServer, client: Any, configuration: dict[str, Any], message: str
) -> None:
    given = {"PolicyType": "TargetTrackingScaling", "TargetTrackingScalingPolicyConfiguration": configuration}
    assert refused(put, client, **given).startswith(message)
    assert client.describe_scaling_policies(**VARIANT)["ScalingPolicies"] == [] and alarms(server) == {}


@pytest.mark.parametrize(
    ("other", "is_refused"),
    [
        pytest.param({}, True, id="the same"),
        pytest.param({"Dimensions": [BACKLOG["Dimensions"][0], {"Name": "A", "Value": "b"}]}, False, id="dimensions"),
        pytest.param({"Statistic": "Maximum"}, False, id="statistic"),
        pytest.param({"Namespace": "Other"}, False, id="namespace"),
        pytest.param({"MetricName": "Other"}, False, id="name"),
        pytest.param({"Unit": "Count"}, True, id="unit"),
    ],
)
def test_metric_has_one_policy(client: Any, other: dict[str, Any], is_refused: bool) -> None:
    put_tracking(client, "first")
    specification = {"CustomizedMetricSpecification": BACKLOG | other}
    if is_refused:
        message = "Only one TargetTrackingScaling policy for a given metric specification is allowed."
        assert refused(put_tracking, client, "second", **specification) == message
    else:
        put_tracking(client, "second", **specification)


def test_order_of_dimensions_makes_no_other_metric(client: Any) -> None:
    dimensions = [BACKLOG["Dimensions"][0], {"Name": "A", "Value": "b"}]
    put_tracking(client, "first", CustomizedMetricSpecification=BACKLOG | {"Dimensions": dimensions})
    again = BACKLOG | {"Dimensions": dimensions[::-1]}
    message = refused(put_tracking, client, "second", CustomizedMetricSpecification=again)
    assert message == "Only one TargetTrackingScaling policy for a given metric specification is allowed."


def test_tracking_policy_has_two_alarms(server: AutoscalingServer, client: Any) -> None:
    answer = put_tracking(client, TargetValue=70.0)
    arn, high, low = answer["PolicyARN"], *(alarm["AlarmName"] for alarm in answer["Alarms"])
    assert re.fullmatch(
        rf"arn:aws:autoscaling:us-east-1:000000000000:scalingPolicy:{UUID}:resource/sagemaker/{RESOURCE}"
        ":policyName/track",
        arn,
    )
    assert [alarm["AlarmARN"] for alarm in answer["Alarms"]] == [
        f"arn:aws:cloudwatch:us-east-1:000000000000:alarm:{name}" for name in (high, low)
    ]
    for name, kind in ((high, "AlarmHigh"), (low, "AlarmLow")):
        assert re.fullmatch(f"TargetTracking-{RESOURCE}-{kind}-{UUID}", name)
    action = alarms(server)[high]["AlarmActions"][0]
    assert re.fullmatch(f"{re.escape(arn)}:createdBy/{UUID}", action)
    shared = BACKLOG | {
        "AlarmDescription": f"DO NOT EDIT OR DELETE. For TargetTrackingScaling policy {action}.",
        "ActionsEnabled": True,
        "AlarmActions": [action],
        "OKActions": [],
        "InsufficientDataActions": [],
        "Period": 60,
    }
    above = {"ComparisonOperator": "GreaterThanThreshold", "Threshold": 70.0, "EvaluationPeriods": 3}
    below = {"ComparisonOperator": "LessThanThreshold", "Threshold": 63.0, "EvaluationPeriods": 15}
    assert alarms(server) == {
        high: shared | above | {"AlarmName": high},
        low: shared | below | {"AlarmName": low},
    }


@pytest.mark.parametrize(("target", "low"), [(50.0, 45.0), (0.1, 0.09), (5.0, 4.5), (1e9, 9e8)])
def test_low_alarm_is_a_tenth_below_target(server: AutoscalingServer, client: Any, target: float, low: float) -> None:
    name = put_tracking(client, TargetValue=target)["Alarms"][1]["AlarmName"]
    assert alarms(server)[name]["Threshold"] == low


def test_policy_without_scale_in_has_one_alarm(server: AutoscalingServer, client: Any) -> None:
    answer = put_tracking(client, DisableScaleIn=True)
    assert [alarm["AlarmName"] for alarm in answer["Alarms"]] == list(alarms(server))
    assert "AlarmHigh" in answer["Alarms"][0]["AlarmName"]


def test_policy_update_makes_alarms_anew(server: AutoscalingServer, client: Any) -> None:
    first = put_tracking(client)
    old = alarms(server)
    second = put_tracking(client, TargetValue=7.0)
    new = alarms(server)
    assert second["PolicyARN"] == first["PolicyARN"]
    assert len(new) == 2 and not new.keys() & old.keys()
    assert {alarm["AlarmActions"][0] for alarm in [*old.values(), *new.values()]} == {
        next(iter(old.values()))["AlarmActions"][0]
    }
    assert policy(client, "track")["Alarms"] == second["Alarms"]


def test_tracking_policy_update_keeps_metric(client: Any) -> None:
    put_tracking(client, ScaleInCooldown=60)
    given = {"TargetValue": 7.0}
    put(client, "track", PolicyType="TargetTrackingScaling", TargetTrackingScalingPolicyConfiguration=given)
    assert policy(client, "track")["TargetTrackingScalingPolicyConfiguration"] == given | {
        "CustomizedMetricSpecification": BACKLOG
    }


def test_deleted_policy_takes_its_alarms(server: AutoscalingServer, client: Any) -> None:
    put_tracking(client)
    client.delete_scaling_policy(**VARIANT, PolicyName="track")
    assert alarms(server) == {}
    assert refusal(client.delete_scaling_policy, **VARIANT, PolicyName="track") == (
        "ObjectNotFoundException",
        f"No scaling policy found for service namespace: sagemaker, resource ID: {RESOURCE}, scalable dimension: "
        f"{DIMENSION}, policy name: track",
    )


@pytest.mark.parametrize(
    ("metric", "alarm"),
    [
        pytest.param(
            "SageMakerVariantInvocationsPerInstance",
            {"MetricName": "InvocationsPerInstance", "Statistic": "Sum", "Period": 60, "EvaluationPeriods": 15},
            id="invocations",
        ),
        pytest.param(
            "SageMakerVariantConcurrentRequestsPerModelHighResolution",
            {
                "MetricName": "ConcurrentRequestsPerModel",
                "Statistic": "Average",
                "Period": 20,
                "EvaluationPeriods": 30,
            },
            id="concurrency",
        ),
    ],
)
def test_unpublished_metric_is_warned_of(
    server: AutoscalingServer, client: Any, caplog: pytest.LogCaptureFixture, metric: str, alarm: dict[str, Any]
) -> None:
    with caplog.at_level(logging.WARNING):
        answer = put(
            client,
            PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration={
                "TargetValue": 5.0,
                "PredefinedMetricSpecification": {"PredefinedMetricType": metric},
            },
        )
    low = alarms(server)[answer["Alarms"][1]["AlarmName"]]
    assert {name: low[name] for name in alarm} == alarm and low["Namespace"] == "AWS/SageMaker"
    assert low["Dimensions"] == [
        {"Name": "EndpointName", "Value": "endpoint"},
        {"Name": "VariantName", "Value": "AllTraffic"},
    ]
    assert f"tracks {metric}, which SageMaker doesn't publish for asynchronous endpoints" in caplog.text


def test_target_has_at_most_fifty_policies(client: Any) -> None:
    for number in range(50):
        put_step(client, f"policy-{number:02}")
    code, message = refusal(put_step, client, "one more")
    assert (code, message) == ("LimitExceededException", "A scalable target can have at most 50 scaling policies")
    put_step(client, "policy-49", Cooldown=1)


def test_policies_come_in_pages_of_ten(client: Any) -> None:
    names = [f"policy-{number:02}" for number in range(25)]
    for name in names:
        put_step(client, name)
    pages = list(client.get_paginator("describe_scaling_policies").paginate(**VARIANT))
    assert [len(page["ScalingPolicies"]) for page in pages] == [10, 10, 5]
    assert [policy["PolicyName"] for page in pages for policy in page["ScalingPolicies"]] == names
    assert len(client.describe_scaling_policies(**VARIANT, MaxResults=50)["ScalingPolicies"]) == 10


# A gateway that is killed between a policy's row and its alarms


class Killed(BaseException):
    pass


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that has the gateway die in the middle of its n-th change of alarms, which is made or not."""

    def kill_at(number: int) -> None:
        left = number

        def dying(change: Callable[..., Any]) -> Callable[..., Any]:
            async def die(*arguments: Any) -> None:
                nonlocal left
                if left == 0:
                    raise Killed
                await change(*arguments)
                left -= 1
                if left == 0:
                    raise Killed

            return die

        for method in ("put", "delete"):
            monkeypatch.setattr(Alarms, method, dying(getattr(Alarms, method)))

    return kill_at


@pytest.mark.parametrize("change", range(5))
def test_killed_update_is_finished_later(
    server: AutoscalingServer,
    start: Callable[..., AutoscalingServer],
    kill_at: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    change: int,
) -> None:
    register(server.client)
    put_tracking(server.client)
    old = alarms(server)
    kill_at(change)
    parameters = VARIANT | {
        "PolicyName": "track",
        "TargetTrackingScalingPolicyConfiguration": TRACKING | {"TargetValue": 7.0},
    }
    with pytest.raises(Killed):
        server.run(server.autoscaling.call("PutScalingPolicy", parameters))
    monkeypatch.undo()

    after = start()
    after.run(after.autoscaling.resume())
    described = policy(after.client, "track")
    assert described["TargetTrackingScalingPolicyConfiguration"]["TargetValue"] == 7.0
    assert {alarm["AlarmName"] for alarm in described["Alarms"]} == alarms(after).keys()
    assert len(alarms(after)) == 2 and not old.keys() & alarms(after).keys()


@pytest.mark.parametrize("change", range(3))
def test_killed_deregistration_is_finished_later(
    server: AutoscalingServer,
    start: Callable[..., AutoscalingServer],
    kill_at: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    change: int,
) -> None:
    register(server.client)
    put_tracking(server.client)
    kill_at(change)
    with pytest.raises(Killed):
        server.run(server.autoscaling.deregister_endpoint("endpoint"))
    monkeypatch.undo()

    after = start()
    after.run(after.autoscaling.resume())
    assert alarms(after) == {}
    assert after.client.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"] == []


def test_refused_alarm_does_not_stop_others(
    server: AutoscalingServer, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    put_tracking(client)
    bad = {"AlarmName": "bad", "MetricName": "x"}
    kept = server.run(server.store.policies())[0]
    server.run(server.store.put_policy(kept, [bad]))
    with caplog.at_level(logging.ERROR):
        server.run(server.autoscaling.resume())
    assert "alarm bad was refused" in caplog.text
    assert server.run(server.store.alarm_changes()) == []
