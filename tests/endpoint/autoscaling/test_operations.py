"""Rows of the table of Application Auto Scaling's answers about targets, activities and tags."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from endpoint.autoscaling.records import Activity
from testing.endpoint.autoscaling_server import AutoscalingServer
from testing.endpoint.scaling_calls import (
    DIMENSION,
    RESOURCE,
    VARIANT,
    policy,
    put_action,
    put_step,
    put_tracking,
    refusal,
    refused,
    register,
)

ACCOUNT = "us-east-1:000000000000"
UNKNOWN = "arn:aws:application-autoscaling:us-east-1:000000000000:scalable-target/056m" + "0" * 32
NO_TARGET = f"service namespace: sagemaker, resource ID: {RESOURCE}, scalable dimension: {DIMENSION}"
UNSUPPORTED = "Unsupported service namespace, resource type or scalable dimension"


def target(client: Any) -> dict[str, Any]:
    found: dict[str, Any] = client.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"][0]
    return found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"MinCapacity": -1}, "Minimum capacity cannot be less than 0", id="negative minimum"),
        pytest.param(
            {"MaxCapacity": -1}, "Maximum capacity cannot be less than minimum capacity", id="maximum below minimum"
        ),
        pytest.param({"RoleARN": "role"}, "'role' is not a valid ARN", id="role that is no ARN"),
        pytest.param(
            {"ResourceId": "endpoint/other/variant/AllTraffic"},
            "SageMaker endpoint variant doesn't exist: endpoint/other/variant/AllTraffic",
            id="missing endpoint",
        ),
        pytest.param(
            {"ResourceId": "endpoint/endpoint/variant/other"},
            "SageMaker endpoint variant doesn't exist: endpoint/endpoint/variant/other",
            id="missing variant",
        ),
        pytest.param(
            {"ResourceId": "endpoint/endpoint"},
            f"{UNSUPPORTED}: ResourceId 'endpoint/endpoint' isn't of the form endpoint/NAME/variant/NAME.",
            id="no variant",
        ),
        pytest.param(
            {"ServiceNamespace": "ecs", "ScalableDimension": "ecs:service:DesiredCount"},
            "Service namespace ecs is not supported by the local endpoint: it has sagemaker.",
            id="other service",
        ),
        pytest.param(
            {"ScalableDimension": "ecs:service:DesiredCount"},
            f"{UNSUPPORTED}: ecs:service:DesiredCount is none of sagemaker.",
            id="other service's dimension",
        ),
        pytest.param(
            {"ScalableDimension": "sagemaker:inference-component:DesiredCopyCount"},
            "Scalable dimension sagemaker:inference-component:DesiredCopyCount is not supported by the local endpoint: "
            f"it has {DIMENSION}.",
            id="inference component",
        ),
        pytest.param(
            {"ScalableDimension": "sagemaker:variant:DesiredProvisionedConcurrency"},
            "Scalable dimension sagemaker:variant:DesiredProvisionedConcurrency is not supported by the local "
            f"endpoint: it has {DIMENSION}.",
            id="serverless",
        ),
        pytest.param(
            {"Tags": {"aws:x": "y"}}, "Caller is an end user and not allowed to mutate system tags", id="system tag"
        ),
    ],
)
def test_register_refuses(server: AutoscalingServer, changes: dict[str, Any], message: str) -> None:
    assert refused(register, server.client, **changes) == message
    assert server.client.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"] == []


@pytest.mark.parametrize("bound", ["MinCapacity", "MaxCapacity"])
def test_first_register_needs_both_bounds(server: AutoscalingServer, bound: str) -> None:
    bounds = {"MinCapacity": 0, "MaxCapacity": 1}
    del bounds[bound]
    message = refused(server.client.register_scalable_target, **VARIANT, **bounds)
    assert message == f"{bound.removesuffix('Capacity')}imum capacity must be specified"


def test_target_is_described_as_registered(server: AutoscalingServer) -> None:
    arn = register(server.client)
    assert re.fullmatch(rf"arn:aws:application-autoscaling:{ACCOUNT}:scalable-target/056m[0-9a-f]{{32}}", arn)
    described = target(server.client)
    assert described.pop("CreationTime").timestamp() == server.now
    assert described == VARIANT | {
        "MinCapacity": 0,
        "MaxCapacity": 4,
        "ScalableTargetARN": arn,
        "RoleARN": "arn:aws:iam::000000000000:role/aws-service-role/sagemaker.application-autoscaling.amazonaws.com/"
        "AWSServiceRoleForApplicationAutoScaling_SageMakerEndpoint",
        "SuspendedState": {
            "DynamicScalingInSuspended": False,
            "DynamicScalingOutSuspended": False,
            "ScheduledScalingSuspended": False,
        },
    }


def test_second_register_keeps_what_it_omits(server: AutoscalingServer) -> None:
    arn = register(server.client, MinCapacity=1, MaxCapacity=3)
    assert server.client.register_scalable_target(**VARIANT)["ScalableTargetARN"] == arn
    server.client.register_scalable_target(**VARIANT, MaxCapacity=5)
    assert (target(server.client)["MinCapacity"], target(server.client)["MaxCapacity"]) == (1, 5)
    message = refused(server.client.register_scalable_target, **VARIANT, MinCapacity=6)
    assert message == "Maximum capacity cannot be less than minimum capacity"


def test_suspended_state_changes_by_parts(server: AutoscalingServer) -> None:
    register(server.client, SuspendedState={"DynamicScalingInSuspended": True})
    server.client.register_scalable_target(**VARIANT, SuspendedState={"ScheduledScalingSuspended": True})
    server.client.register_scalable_target(**VARIANT, SuspendedState={})
    assert target(server.client)["SuspendedState"] == {
        "DynamicScalingInSuspended": True,
        "DynamicScalingOutSuspended": False,
        "ScheduledScalingSuspended": True,
    }


def test_second_register_refuses_tags(server: AutoscalingServer) -> None:
    register(server.client)
    assert refused(register, server.client, Tags={"a": "b"}) == (
        "The scalable target that you tried to tag already exists. To update tags on an existing scalable target, use "
        "the TagResource API."
    )


def test_changes_wake_the_scaler(server: AutoscalingServer) -> None:
    register(server.client)
    wakes = server.wakes
    server.client.register_scalable_target(**VARIANT, SuspendedState={"DynamicScalingInSuspended": True})
    target(server.client)
    assert (wakes, server.wakes) == (1, 2)


@pytest.mark.parametrize(
    "operation",
    ["describe_scaling_policies", "describe_scaling_activities", "describe_scheduled_actions"],
)
def test_describe_needs_resource_with_dimension(server: AutoscalingServer, operation: str) -> None:
    message = refused(getattr(server.client, operation), ServiceNamespace="sagemaker", ScalableDimension=DIMENSION)
    assert message == "ResourceId must be specified when ScalableDimension is specified"


def test_describe_needs_resources_with_dimension(server: AutoscalingServer) -> None:
    parameters = {"ServiceNamespace": "sagemaker", "ScalableDimension": DIMENSION}
    message = refused(server.client.describe_scalable_targets, **parameters)
    assert message == "ResourceIds must be specified when ScalableDimension is specified"


@pytest.mark.parametrize(
    "put", [pytest.param(put_tracking, id="policy"), pytest.param(put_action, id="scheduled action")]
)
def test_put_without_target_is_refused(server: AutoscalingServer, put: Callable[..., Any]) -> None:
    message = f"No scalable target registered for {NO_TARGET}"
    assert refusal(put, server.client) == ("ObjectNotFoundException", message)


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        pytest.param("deregister_scalable_target", {}, id="target"),
        pytest.param("delete_scaling_policy", {"PolicyName": "p"}, id="policy"),
        pytest.param("delete_scheduled_action", {"ScheduledActionName": "a"}, id="scheduled action"),
    ],
)
def test_delete_without_target_is_refused(server: AutoscalingServer, operation: str, name: dict[str, str]) -> None:
    answer = refusal(getattr(server.client, operation), **VARIANT, **name)
    assert answer == ("ObjectNotFoundException", f"No scalable target found for {NO_TARGET}")


def test_deregister_removes_what_belongs_to_target(server: AutoscalingServer) -> None:
    register(server.client, Tags={"a": "b"})
    put_tracking(server.client)
    put_step(server.client)
    put_action(server.client)
    server.client.deregister_scalable_target(**VARIANT)
    namespace = {"ServiceNamespace": "sagemaker"}
    assert server.client.describe_scalable_targets(**namespace)["ScalableTargets"] == []
    assert server.client.describe_scaling_policies(**namespace)["ScalingPolicies"] == []
    assert server.client.describe_scheduled_actions(**namespace)["ScheduledActions"] == []
    assert server.run(server.alarm_store.all()) == {}


def test_target_registered_anew_has_new_arn(server: AutoscalingServer) -> None:
    old = register(server.client)
    server.client.deregister_scalable_target(**VARIANT)
    assert register(server.client) != old
    assert target(server.client)["MaxCapacity"] == 4


def test_deregister_endpoint_leaves_other_endpoints(server: AutoscalingServer) -> None:
    server.variants.add(("endpoint-2", "AllTraffic"))
    register(server.client)
    put_tracking(server.client)
    register(server.client, ResourceId="endpoint/endpoint-2/variant/AllTraffic")
    server.run(server.autoscaling.deregister_endpoint("endpoint"))
    assert target(server.client)["ResourceId"] == "endpoint/endpoint-2/variant/AllTraffic"
    assert server.run(server.alarm_store.all()) == {}
    assert not server.run(server.autoscaling.is_registered("endpoint", "AllTraffic"))
    assert server.run(server.autoscaling.is_registered("endpoint-2", "AllTraffic"))


def test_targets_come_in_pages(server: AutoscalingServer) -> None:
    names = [f"endpoint-{number:02}" for number in range(53)]
    server.variants |= {(name, "v") for name in names}
    for name in names:
        register(server.client, ResourceId=f"endpoint/{name}/variant/v")
    pages = list(server.client.get_paginator("describe_scalable_targets").paginate(ServiceNamespace="sagemaker"))
    assert [len(page["ScalableTargets"]) for page in pages] == [50, 3]
    shown = [target["ResourceId"] for page in pages for target in page["ScalableTargets"]]
    assert shown == [f"endpoint/{name}/variant/v" for name in names]


def test_token_of_another_question_is_refused(server: AutoscalingServer) -> None:
    server.variants.add(("endpoint", "other"))
    register(server.client)
    register(server.client, ResourceId="endpoint/endpoint/variant/other")
    parameters = {"ServiceNamespace": "sagemaker", "MaxResults": 1}
    token = server.client.describe_scalable_targets(**parameters)["NextToken"]
    expected = ("InvalidNextTokenException", "The NextToken value is not valid")
    assert refusal(server.client.describe_scaling_activities, **parameters, ResourceId=RESOURCE, NextToken=token) == (
        expected
    )
    assert refusal(server.client.describe_scalable_targets, **parameters, NextToken="e30=") == expected


def test_page_of_no_entries_is_empty(server: AutoscalingServer) -> None:
    register(server.client)
    answer = server.client.describe_scalable_targets(ServiceNamespace="sagemaker", MaxResults=0)
    assert answer["ScalableTargets"] == [] and "NextToken" not in answer
    message = refused(server.client.describe_scalable_targets, ServiceNamespace="sagemaker", MaxResults=-1)
    assert message == "MaxResults cannot be less than 0"


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        pytest.param(
            "get_predictive_scaling_forecast",
            VARIANT | {"PolicyName": "p", "StartTime": 0, "EndTime": 1},
            id="forecasts",
        ),
    ],
)
def test_missing_operation_is_refused_by_name(
    server: AutoscalingServer, operation: str, parameters: dict[str, Any]
) -> None:
    code, message = refusal(getattr(server.client, operation), **parameters)
    assert code == "UnknownOperationException"
    assert message == "GetPredictiveScalingForecast is not implemented by the local endpoint"


# Activities


def record(server: AutoscalingServer, *activities: Activity) -> None:
    server.run(server.store.record(RESOURCE, activities))


def activity(id_: str, **changes: Any) -> Activity:
    fields = {
        "resource_id": RESOURCE,
        "description": "Setting desired instance count to 2.",
        "cause": "minimum capacity was set to 2",
        "started_at": 1_800_000_000.0,
        "status": "Pending",
    }
    return Activity(id=id_, **fields | changes)  # type: ignore[arg-type]


def test_activities_are_described_newest_first(server: AutoscalingServer) -> None:
    record(server, activity("old", status="Successful", ended_at=1_800_000_060.0, message="done"), activity("new"))
    shown = server.client.describe_scaling_activities(**VARIANT)["ScalingActivities"]
    assert [each["ActivityId"] for each in shown] == ["new", "old"]
    assert {name: str(value) for name, value in shown[1].items() if name not in VARIANT} == {
        "ActivityId": "old",
        "Description": "Setting desired instance count to 2.",
        "Cause": "minimum capacity was set to 2",
        "StartTime": str(shown[0]["StartTime"]),
        "EndTime": str(shown[1]["EndTime"]),
        "StatusCode": "Successful",
        "StatusMessage": "done",
    }
    assert (shown[1]["EndTime"] - shown[1]["StartTime"]).total_seconds() == 60


def test_changed_activity_keeps_its_place(server: AutoscalingServer) -> None:
    record(server, activity("old"), activity("new"))
    record(server, activity("old", status="Failed"))
    shown = server.client.describe_scaling_activities(**VARIANT)["ScalingActivities"]
    assert [(each["ActivityId"], each["StatusCode"]) for each in shown] == [("new", "Pending"), ("old", "Failed")]


def test_not_scaled_activities_are_shown_on_request(server: AutoscalingServer) -> None:
    reasons = [{"Code": "AlreadyAtMaxCapacity", "MaxCapacity": 4}]
    record(server, activity("scaled"), activity("not", status="Failed", not_scaled_reasons=tuple(reasons)))
    shown = server.client.describe_scaling_activities(**VARIANT)["ScalingActivities"]
    assert [each["ActivityId"] for each in shown] == ["scaled"]
    answer = server.client.describe_scaling_activities(**VARIANT, IncludeNotScaledActivities=True)
    assert [each.get("NotScaledReasons") for each in answer["ScalingActivities"]] == [reasons, None]


def test_activities_come_in_pages(server: AutoscalingServer) -> None:
    record(server, *(activity(f"{number}") for number in range(120)))
    pages = server.client.get_paginator("describe_scaling_activities").paginate(ServiceNamespace="sagemaker")
    ids = [[each["ActivityId"] for each in page["ScalingActivities"]] for page in pages]
    assert [len(page) for page in ids] == [50, 50, 20]
    assert [each for page in ids for each in page] == [f"{number}" for number in reversed(range(120))]


def test_activities_outlive_their_target(server: AutoscalingServer) -> None:
    register(server.client)
    record(server, activity("one"))
    server.client.deregister_scalable_target(**VARIANT)
    assert len(server.client.describe_scaling_activities(**VARIANT)["ScalingActivities"]) == 1


def test_activities_are_dropped_after_six_weeks(server: AutoscalingServer) -> None:
    old = server.now - 42 * 86400
    record(server, activity("over", started_at=old - 1, status="Failed"), activity("open", started_at=old - 1))
    record(server, activity("young", started_at=old + 1, status="Failed"))
    server.run(server.store.drop_old_activities(server.now))
    assert [each.id for each in server.run(server.store.activities())] == ["young", "open"]


# Tags


def test_tags_are_added_and_removed(server: AutoscalingServer) -> None:
    arn = register(server.client, Tags={"a": "1", "b": "2"})
    server.client.tag_resource(ResourceARN=arn, Tags={"b": "3", "c": ""})
    server.client.untag_resource(ResourceARN=arn, TagKeys=["a", "missing"])
    assert server.client.list_tags_for_resource(ResourceARN=arn)["Tags"] == {"b": "3", "c": ""}


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        pytest.param("list_tags_for_resource", {}, id="list"),
        pytest.param("tag_resource", {"Tags": {"a": "b"}}, id="tag"),
        pytest.param("untag_resource", {"TagKeys": ["a"]}, id="untag"),
    ],
)
def test_tags_of_missing_target_are_refused(
    server: AutoscalingServer, operation: str, parameters: dict[str, Any]
) -> None:
    answer = refusal(getattr(server.client, operation), ResourceARN=UNKNOWN, **parameters)
    assert answer == ("ResourceNotFoundException", "Scalable Target not found")


def test_more_than_fifty_tags_are_refused(server: AutoscalingServer) -> None:
    arn = register(server.client, Tags={f"{number}": "" for number in range(50)})
    code, message = refusal(server.client.tag_resource, ResourceARN=arn, Tags={"one more": ""})
    assert (code, message) == ("TooManyTagsException", "A scalable target can have at most 50 tags")
    server.client.tag_resource(ResourceARN=arn, Tags={"49": "changed"})


def test_policy_of_deregistered_target_is_gone(server: AutoscalingServer) -> None:
    register(server.client)
    put_tracking(server.client)
    server.client.deregister_scalable_target(**VARIANT)
    register(server.client)
    put_step(server.client, "track")
    assert policy(server.client, "track")["PolicyType"] == "StepScaling"
