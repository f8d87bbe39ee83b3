"""Names of resources, and answers as objects in S3: shared by the programs of AWS's own clients."""

from __future__ import annotations

import os
import time
from typing import Any

ROLE = "arn:aws:iam::000000000000:role/longhaul"
IMAGE = "000000000000.dkr.ecr.us-east-1.amazonaws.com/longhaul:1"
INSTANCE_TYPE = "ml.g5.xlarge"
ENVIRONMENT = {"LONGHAUL_MODEL": os.environ["LONGHAUL_MODEL"], "LONGHAUL_DEVICE": "cpu", "LONGHAUL_THREADS": "1"}
TIMEOUT_S = 120


def read_when_there(s3: Any, uri: str) -> str:
    """Return the text of an object, once it is there. `s3` is boto3's client. Raises TimeoutError."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    for _ in range(TIMEOUT_S * 2):
        try:
            text: str = s3.get_object(Bucket=bucket, Key=key)["Body"].read().decode()
            return text
        except s3.exceptions.NoSuchKey:
            time.sleep(0.5)
    raise TimeoutError(f"{uri} is not there after {TIMEOUT_S} s")
