from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testing import ROOT
from testing.endpoint.autoscaling_server import AutoscalingServer
from testing.endpoint.scaling_calls import BACKLOG, VARIANT, register
from testing.fuzzing import fuzz_settings

CRON_TEXT = st.lists(st.text("0123456789*?LW#,-/ MONFRIJAN", min_size=1, max_size=5), min_size=4, max_size=8)
SCHEDULES = st.one_of(
    CRON_TEXT.map(lambda words: f"cron({' '.join(words)})"),
    st.text("0123456789-T:", max_size=20).map(lambda text: f"at({text})"),
    st.datetimes().map(lambda time: f"at({time:%Y-%m-%dT%H:%M:%S})"),
    st.text("0123456789 minuteshoursdays", max_size=20).map(lambda text: f"rate({text})"),
    st.text(min_size=1, max_size=20),
)
NUMBERS = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-5, 5))
COUNTS = st.one_of(st.integers(-5, 5), st.integers(-(2**31), 2**31 - 1))
STEPS = st.lists(
    st.fixed_dictionaries(
        {"ScalingAdjustment": COUNTS},
        optional={"MetricIntervalLowerBound": NUMBERS, "MetricIntervalUpperBound": NUMBERS},
    ),
    max_size=4,
)
STEP_CONFIGURATIONS = st.fixed_dictionaries(
    {},
    optional={
        "AdjustmentType": st.sampled_from(["ChangeInCapacity", "PercentChangeInCapacity", "ExactCapacity"]),
        "StepAdjustments": STEPS,
        "Cooldown": COUNTS,
        "MinAdjustmentMagnitude": COUNTS,
    },
)
TRACKING_CONFIGURATIONS = st.fixed_dictionaries(
    {"TargetValue": NUMBERS},
    optional={
        "CustomizedMetricSpecification": st.fixed_dictionaries(
            {name: st.just(value) for name, value in BACKLOG.items()},
            optional={"Unit": st.text(max_size=5), "Metrics": st.just([])},
        ),
        "PredefinedMetricSpecification": st.fixed_dictionaries(
            {"PredefinedMetricType": st.sampled_from(["SageMakerVariantInvocationsPerInstance", "ALB"])}
        ),
        "DisableScaleIn": st.booleans(),
        "ScaleInCooldown": COUNTS,
    },
)
REQUESTS = st.one_of(
    st.tuples(
        st.just("PutScalingPolicy"),
        st.fixed_dictionaries(
            {"PolicyName": st.text(min_size=1, max_size=3)},
            optional={
                "PolicyType": st.sampled_from(["StepScaling", "TargetTrackingScaling", "PredictiveScaling"]),
                "StepScalingPolicyConfiguration": STEP_CONFIGURATIONS,
                "TargetTrackingScalingPolicyConfiguration": TRACKING_CONFIGURATIONS,
            },
        ),
    ),
    st.tuples(
        st.just("PutScheduledAction"),
        st.fixed_dictionaries(
            {"ScheduledActionName": st.text(min_size=1, max_size=3), "Schedule": SCHEDULES},
            optional={
                "Timezone": st.one_of(st.sampled_from(["Asia/Tokyo", "../etc/passwd", "/etc"]), st.text(max_size=5)),
                "StartTime": st.one_of(NUMBERS, st.floats(0, 1e12)),
                "EndTime": st.one_of(NUMBERS, st.floats(0, 1e12)),
                "ScalableTargetAction": st.fixed_dictionaries(
                    {}, optional={"MinCapacity": COUNTS, "MaxCapacity": COUNTS}
                ),
            },
        ),
    ),
    st.tuples(
        st.just("RegisterScalableTarget"),
        st.fixed_dictionaries(
            {},
            optional={
                "MinCapacity": COUNTS,
                "MaxCapacity": COUNTS,
                "RoleARN": st.text(max_size=5),
                "Tags": st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
                "ResourceId": st.text("endpoint/variant", max_size=30),
            },
        ),
    ),
    st.tuples(
        st.sampled_from(["DescribeScalableTargets", "DescribeScalingPolicies", "DescribeScheduledActions"]),
        st.fixed_dictionaries({}, optional={"NextToken": st.text(max_size=9), "MaxResults": COUNTS}),
    ),
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AutoscalingServer]:
    server = AutoscalingServer(tmp_path_factory.mktemp("autoscaling"))
    register(server.client)
    yield server
    server.close()


@given(request=REQUESTS)
@fuzz_settings(200)
def test_parameters_are_taken_or_refused(shared: AutoscalingServer, request: tuple[str, dict[str, Any]]) -> None:
    operation, parameters = request
    body = json.dumps(VARIANT | parameters).encode()
    headers = {"x-amz-target": f"AnyScaleFrontendService.{operation}"}
    assert shared.run(shared.respond("/", headers, body)).status_code in (200, 400)
    described = shared.client.describe_scheduled_actions(ServiceNamespace="sagemaker", MaxResults=1)
    assert described["ResponseMetadata"]["HTTPStatusCode"] == 200


def test_time_zones_need_no_system_files(tmp_path: Path) -> None:
    program = (
        "from endpoint.autoscaling.schedules import next_run\n"
        "print(next_run('at(2027-06-01T12:00:00)', 'Asia/Tokyo', None, None, 0))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONTZPATH": str(tmp_path)}
    answer = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert float(answer.stdout) == datetime(2027, 6, 1, 3, tzinfo=UTC).timestamp()
