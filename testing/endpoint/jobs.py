"""Jobs for the tests of the queue and of what uses it."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from endpoint.state.queue import NewJob


def new_job(name: str = "job", *, endpoint: str = "e", ttl_s: float = 3600.0, **changes: Any) -> NewJob:
    """Return an invocation with the inference ID `name`; its input is in S3, unless `changes` have a body."""
    values: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "endpoint": endpoint,
        "variant": "v",
        "inference_id": name,
        "input_location": None if "body" in changes else f"s3://bucket/{name}",
        "body": None,
        "content_type": None,
        "accept": None,
        "custom_attributes": None,
        "timeout_s": 900.0,
        "expires_at": time.time() + ttl_s,
        "output_location": f"s3://bucket/{name}.out",
        "failure_location": None,
        "output_config": json.dumps({}),
    }
    return NewJob(**values | changes)
