"""SageMaker's runtime API: InvokeEndpointAsync fills the queue, InvokeEndpoint calls a container at once."""

from __future__ import annotations

import itertools
import json
import tempfile
import time
import uuid
from pathlib import Path, PurePosixPath
from typing import Any

from endpoint.aws.errors import AwsError, not_implemented
from endpoint.data_plane.container_client import BadAnswer, ContainerClient, NoAnswer, Timeout, request_headers
from endpoint.data_plane.dispatcher import Dispatcher
from endpoint.fleet.fleet import Fleet
from endpoint.fleet.instance import Instance
from endpoint.settings import Settings
from endpoint.state.catalog import Catalog, Deployment, Endpoint, NotFound
from endpoint.state.queue import NewJob, Queue

MAX_INLINE_BYTES = 128_000
MAX_SYNC_BYTES = 6_291_456
SYNC_TIMEOUT_S = 60.0
DEFAULT_TIMEOUT_S = 900
DEFAULT_TTL_S = 21_600

_TIMED_OUT = (
    "Your invocation timed out while waiting for a response from container primary. Review the latency metrics for each"
    " container in Amazon CloudWatch, resolve the issue, and try again."
)

Parameters = dict[str, Any]
Result = dict[str, Any]


class Runtime:
    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        queue: Queue,
        fleet: Fleet,
        dispatcher: Dispatcher,
        containers: ContainerClient,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._queue = queue
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._containers = containers
        self._turn = itertools.count()
        self._operations = {"InvokeEndpointAsync": self._invoke_async, "InvokeEndpoint": self._invoke}

    async def call(self, operation: str, parameters: Parameters) -> Result:
        """Run an operation of the API. Raises AwsError."""
        if operation not in self._operations:
            raise not_implemented(operation)
        return await self._operations[operation](parameters)

    async def _invoke_async(self, parameters: Parameters) -> Result:
        """Accept a request. A repeated InferenceId is a second one, as AWS documents no other meaning."""
        body, location = parameters.get("Body"), parameters.get("InputLocation")
        if (body is None) == (location is None):
            raise AwsError("ValidationError", "Exactly one of InputLocation and Body must be specified")
        if body is not None and len(body) > MAX_INLINE_BYTES:
            raise AwsError("ValidationError", f"Body must have length less than or equal to {MAX_INLINE_BYTES} bytes")
        endpoint, deployment = await self._require_serving(parameters["EndpointName"])
        if (config := deployment.config.get("AsyncInferenceConfig")) is None:
            raise AwsError("ValidationError", f"Endpoint {endpoint.name} is not configured for asynchronous inference")
        job_id = str(uuid.uuid4())
        output, failure = locations(
            config["OutputConfig"], job_id, parameters.get("S3OutputPathExtension"), parameters.get("Filename")
        )
        now = time.time()
        new = NewJob(
            id=job_id,
            endpoint=endpoint.name,
            variant=deployment.variant["VariantName"],
            inference_id=parameters.get("InferenceId") or str(uuid.uuid4()),
            input_location=location,
            body=body,
            content_type=parameters.get("ContentType"),
            accept=parameters.get("Accept"),
            custom_attributes=parameters.get("CustomAttributes"),
            timeout_s=parameters.get("InvocationTimeoutSeconds", DEFAULT_TIMEOUT_S),
            accepted_at=now,
            expires_at=now + self._settings.real_s(parameters.get("RequestTTLSeconds", DEFAULT_TTL_S)),
            output_location=output,
            failure_location=failure,
            output_config=json.dumps(config["OutputConfig"]),
        )
        await self._queue.accept(new)
        self._dispatcher.wake()
        result = {"InferenceId": new.inference_id, "OutputLocation": output}
        return result if failure is None else result | {"FailureLocation": failure}

    async def _invoke(self, parameters: Parameters) -> Result:
        for name in ("TargetModel", "TargetContainerHostname", "InferenceComponentName", "SessionId", "PrefixAwareId"):
            if name in parameters:
                raise AwsError("ValidationError", f"{name} is not supported by the local endpoint")
        endpoint, deployment = await self._require_serving(parameters["EndpointName"])
        if "AsyncInferenceConfig" in deployment.config:
            raise AwsError(
                "ValidationError",
                f"Endpoint {endpoint.name} is configured for asynchronous inference: use InvokeEndpointAsync",
            )
        variant = deployment.variant["VariantName"]
        if parameters.get("TargetVariant", variant) != variant:
            raise AwsError("ValidationError", f"Variant {parameters['TargetVariant']} of {endpoint.name} not found")
        body = parameters.get("Body") or b""
        if len(body) > MAX_SYNC_BYTES:
            raise AwsError("ValidationError", f"Body must have length less than or equal to {MAX_SYNC_BYTES} bytes")
        instances = self._fleet.healthy(endpoint.name)
        if not instances:
            raise AwsError("ServiceUnavailable", f"No instance of {endpoint.name} is available", 503)
        instance = instances[next(self._turn) % len(instances)]
        values = (parameters.get(name) for name in ("ContentType", "Accept", "CustomAttributes", "InferenceId"))
        return await self._call_container(instance, request_headers(*values), body)

    async def _call_container(self, instance: Instance, headers: dict[str, str], body: bytes) -> Result:
        with tempfile.TemporaryDirectory(dir=self._settings.data_dir) as directory:
            try:
                answer = await self._containers.invoke(
                    instance.url, headers, body, SYNC_TIMEOUT_S, Path(directory) / "answer"
                )
            except Timeout as error:
                raise self._model_error(instance, 0, _TIMED_OUT) from error
            except (NoAnswer, BadAnswer) as error:
                raise self._model_error(instance, 0, str(error)) from error
            content = answer.file.read_bytes() if answer.size <= MAX_SYNC_BYTES else b""
        if answer.size > MAX_SYNC_BYTES:
            raise self._model_error(instance, answer.status, f"the answer is longer than {MAX_SYNC_BYTES} bytes")
        if answer.status >= 300:
            raise self._model_error(instance, answer.status, content[:4096].decode(errors="replace"))
        attributes = answer.headers.get("x-amzn-sagemaker-custom-attributes")
        result = {"Body": content, "InvokedProductionVariant": instance.variant}
        if answer.content_type is not None:
            result["ContentType"] = answer.content_type
        return result if attributes is None else result | {"CustomAttributes": attributes}

    async def _require_serving(self, name: str) -> tuple[Endpoint, Deployment]:
        """Return an endpoint and what it runs. Raises AwsError unless it takes requests."""
        try:
            endpoint = await self._catalog.endpoint(name)
        except NotFound as error:
            account = self._settings.account
            raise AwsError("ValidationError", f"Endpoint {name} of account {account} not found.") from error
        if endpoint.status not in ("InService", "Updating"):
            raise AwsError("ValidationError", f"Endpoint {name} is {endpoint.status}, and not InService")
        return endpoint, await self._catalog.deployment(endpoint, endpoint.config_name)

    def _model_error(self, instance: Instance, status: int, message: str) -> AwsError:
        """Return a 424 with the container's own words."""
        side = "client" if 400 <= status < 500 else "server"
        region, account = self._settings.region, self._settings.account
        group = f"/aws/sagemaker/Endpoints/{instance.endpoint}"
        console = (
            f"https://{region}.console.aws.amazon.com/cloudwatch/home?region={region}#logEventViewer:group={group}"
        )
        return AwsError(
            "ModelError",
            f'Received {side} error ({status}) from primary with message "{message}". '
            f"See {console} in account {account} for more information.",
            424,
            OriginalStatusCode=status,
            OriginalMessage=message,
            LogStreamArn=f"arn:aws:logs:{region}:{account}:log-group:{group}",
        )


def locations(config: dict[str, Any], name: str, extension: str | None, filename: str | None) -> tuple[str, str | None]:
    """Return the location of the output, and of the failure object if the OutputConfig has a path for it.

    They are `<path>[/<extension>]/<name>.out` and `…/<name>-error.out`. AWS doesn't say what a Filename makes of that:
    here it names the output as it stands, and the failure with `-error` before its suffix.
    """

    def join(root: str, file: str) -> str:
        return "/".join(part for part in (root.rstrip("/"), (extension or "").strip("/"), file) if part)

    file = f"{name}.out" if filename is None else filename
    path = PurePosixPath(file)
    output = join(config["S3OutputPath"], file)
    failure_root = config.get("S3FailurePath")
    return output, None if failure_root is None else join(failure_root, f"{path.stem}-error{path.suffix}")
