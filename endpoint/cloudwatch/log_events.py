"""CloudWatch Logs' PutLogEvents: its limits, and a call that makes the stream where it is missing."""

from __future__ import annotations

import contextlib
from typing import Any

from endpoint.backend.clients import Clients

MAX_EVENTS = 10_000
MAX_BYTES = 1_048_576
"""Bytes of a batch, where each event counts `EVENT_BYTES` more than its text."""
MAX_SPAN_MS = 24 * 3600 * 1000
"""Milliseconds between a batch's first event and its last."""
EVENT_BYTES = 26
MAX_LINE_BYTES = 262_144 - EVENT_BYTES


def put_log_events(backend: Clients, endpoint: str, stream: str, events: list[dict[str, Any]]) -> None:
    """Send events to a stream of SageMaker's log group for the endpoint. Raises what botocore raises."""
    client = backend.client("logs")
    group = {"logGroupName": f"/aws/sagemaker/Endpoints/{endpoint}"}
    names = {**group, "logStreamName": stream}
    try:
        client.put_log_events(**names, logEvents=events)
    except client.exceptions.ResourceNotFoundException:  # the first lines, or the backend lost its state
        with contextlib.suppress(client.exceptions.ResourceAlreadyExistsException):
            client.create_log_group(**group)
        with contextlib.suppress(client.exceptions.ResourceAlreadyExistsException):
            client.create_log_stream(**names)
        client.put_log_events(**names, logEvents=events)
