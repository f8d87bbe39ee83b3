"""Version 3 of SageMaker's SDK for Python: its resources, from the model to the answers."""

from __future__ import annotations

import json

import boto3
from sagemaker.core.resources import Endpoint, EndpointConfig, Model
from sagemaker.core.shapes import (
    AsyncInferenceConfig,
    AsyncInferenceOutputConfig,
    ContainerDefinition,
    ProductionVariant,
)

from clients.aws_endpoint import ENVIRONMENT, IMAGE, INSTANCE_TYPE, ROLE, TIMEOUT_S, read_when_there
from clients.checks import check
from clients.requests_sent import LINES

NAME = "sagemaker-v3"


def deploy() -> Endpoint:
    container = ContainerDefinition(image=IMAGE, environment=ENVIRONMENT)
    Model.create(model_name=NAME, primary_container=container, execution_role_arn=ROLE)
    variant = ProductionVariant(
        variant_name="AllTraffic", model_name=NAME, instance_type=INSTANCE_TYPE, initial_instance_count=1
    )
    output = AsyncInferenceOutputConfig(s3_output_path=f"s3://{NAME}/out", s3_failure_path=f"s3://{NAME}/failed")
    EndpointConfig.create(
        endpoint_config_name=NAME,
        production_variants=[variant],
        async_inference_config=AsyncInferenceConfig(output_config=output),
    )
    endpoint = Endpoint.create(endpoint_name=NAME, endpoint_config_name=NAME)
    endpoint.wait_for_status("InService", poll=1, timeout=TIMEOUT_S)
    return endpoint


def main() -> None:
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=NAME)
    endpoint = deploy()
    check("Endpoint.wait_for_status", endpoint.endpoint_status == "InService", endpoint.endpoint_status)

    def invoke(key: str, body: str, content_type: str) -> tuple[str, str]:
        s3.put_object(Bucket=NAME, Key=key, Body=body.encode())
        accepted = endpoint.invoke_async(input_location=f"s3://{NAME}/{key}", content_type=content_type)
        return accepted.output_location, accepted.failure_location

    output, _ = invoke("one.json", json.dumps(LINES[0]["body"]), "application/json")
    answer = json.loads(read_when_there(s3, output))
    check("Endpoint.invoke_async", answer["object"] == "text_completion", answer)
    output, _ = invoke("batch.jsonl", "".join(json.dumps(line) + "\n" for line in LINES), "application/jsonlines")
    answers = [json.loads(line) for line in read_when_there(s3, output).splitlines()]
    check("a batch", [each["custom_id"] for each in answers] == [each["custom_id"] for each in LINES], answers)
    _, failure = invoke("wrong.json", '{"prompt": "a", "top_p": 2}', "application/json")
    error = json.loads(read_when_there(s3, failure))["error"]
    check("an error, in the failure's object", error["param"] == "top_p", error)
    endpoint.delete()
    endpoint.wait_for_delete(poll=1, timeout=TIMEOUT_S)
    check("Endpoint.wait_for_delete", True)


if __name__ == "__main__":
    main()
