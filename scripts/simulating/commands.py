"""A document of policies as what makes it on AWS: lines of the aws CLI, or boto3's calls."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

from .policies import Document

_OPERATIONS = ("RegisterScalableTarget", "PutScalingPolicy", "PutMetricAlarm", "PutScheduledAction")


def aws_cli(document: Document, endpoint: str, variant: str) -> str:
    """Return a shell script. The ARNs of policies are what put-scaling-policy answered."""
    lines = []
    for operation, parameters in calls(document, endpoint, variant):
        service = "cloudwatch" if operation == "PutMetricAlarm" else "application-autoscaling"
        words = ["aws", service, _kebab(operation)]
        for name, value in parameters.items():
            words += [f"--{_kebab(name)}", *_cli_words(value)]
        line = " ".join(words)
        if operation == "PutScalingPolicy":
            line = f"{_variable(parameters['PolicyName'])}=$({line} --query PolicyARN --output text)"
        lines.append(line)
    return "\n".join(lines)


def boto3_calls(document: Document, endpoint: str, variant: str) -> str:
    """Return a Python program."""
    lines = [
        "import boto3",
        "",
        'scaling, cloudwatch = boto3.client("application-autoscaling"), boto3.client("cloudwatch")',
        "arns = {}",
    ]
    for operation, parameters in calls(document, endpoint, variant):
        client = "cloudwatch" if operation == "PutMetricAlarm" else "scaling"
        arguments = ", ".join(f"{name}={_python(value)}" for name, value in parameters.items())
        call = f"{client}.{_kebab(operation).replace('-', '_')}({arguments})"
        if operation == "PutScalingPolicy":
            call = f'arns[{parameters["PolicyName"]!r}] = {call}["PolicyARN"]'
        lines.append(call)
    return "\n".join(lines)


def calls(document: Document, endpoint: str, variant: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield operations with their parameters for one variant; actions keep `{policy NAME}`."""
    target = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{endpoint}/variant/{variant}",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }
    for operation in _OPERATIONS:
        given = document.get(operation, [])
        for parameters in given if isinstance(given, list) else [given]:
            text = json.dumps(parameters).replace("{endpoint}", endpoint).replace("{variant}", variant)
            common = {} if operation == "PutMetricAlarm" else target
            yield operation, common | json.loads(text)


def _cli_words(value: Any) -> list[str]:
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return [_cli_text(each) for each in value]
    return [shlex.quote(json.dumps(value)) if isinstance(value, dict | list) else _cli_text(str(value))]


def _cli_text(text: str) -> str:
    policy = re.fullmatch(r"\{policy (.+)\}", text)
    return f'"${_variable(policy[1])}"' if policy else shlex.quote(text)


def _python(value: Any) -> str:
    return re.sub(r"'\{policy ([^']+)\}'", r"arns['\1']", repr(value))


def _variable(name: str) -> str:
    return re.sub(r"\W", "_", name).upper()


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()
