"""LangChain's package for AWS: SagemakerEndpoint calls endpoints that are not asynchronous."""

from __future__ import annotations

import json
from io import IOBase
from typing import Any

import boto3
from botocore.exceptions import ClientError
from langchain_aws.llms import SagemakerEndpoint
from langchain_aws.llms.sagemaker_endpoint import LLMContentHandler

from clients.aws_endpoint import ENVIRONMENT, IMAGE, INSTANCE_TYPE, ROLE, TIMEOUT_S
from clients.checks import check, error_of
from clients.requests_sent import TOPICS

NAME = "langchain-aws"


class Handler(LLMContentHandler):  # type: ignore[misc]
    """The handler of LangChain's documentation, for the Hugging Face dialect."""

    content_type = "application/json"
    accepts = "application/json"

    def transform_input(self, prompt: str, model_kwargs: dict[str, Any]) -> bytes:
        return json.dumps({"inputs": prompt, "parameters": model_kwargs}).encode()

    def transform_output(self, output: IOBase) -> str:
        text: str = json.loads(output.read())[0]["generated_text"]
        return text


def deploy() -> None:
    sagemaker = boto3.client("sagemaker")
    container = {"Image": IMAGE, "Environment": ENVIRONMENT}
    sagemaker.create_model(ModelName=NAME, PrimaryContainer=container, ExecutionRoleArn=ROLE)
    variant = {
        "VariantName": "AllTraffic",
        "ModelName": NAME,
        "InstanceType": INSTANCE_TYPE,
        "InitialInstanceCount": 1,
    }
    sagemaker.create_endpoint_config(EndpointConfigName=NAME, ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName=NAME, EndpointConfigName=NAME)
    waiter = {"Delay": 1, "MaxAttempts": TIMEOUT_S}
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=NAME, WaiterConfig=waiter)


def main() -> None:
    deploy()

    def model(**parameters: object) -> SagemakerEndpoint:
        return SagemakerEndpoint(
            endpoint_name=NAME, region_name="us-east-1", content_handler=Handler(), model_kwargs=parameters
        )

    text = model(max_new_tokens=4).invoke(TOPICS[0])
    check("SagemakerEndpoint.invoke", text, text)
    texts = model(max_new_tokens=4).batch(list(TOPICS))
    check("SagemakerEndpoint.batch", len(texts) == 3 and all(texts), texts)
    wrong = error_of(lambda: model(top_p=2).invoke(TOPICS[0]), ClientError)
    check("an error has the field", "top_p" in str(wrong), wrong)


if __name__ == "__main__":
    main()
