"""What became of a job, as SageMaker would say it: in the failure object, in the notice and in the data log."""

from __future__ import annotations

from dataclasses import dataclass

from endpoint.data_plane.container_client import Answer
from endpoint.state.queue import Job, Kind, Outcome

_SEE_LOGS = "See the SageMaker Endpoint logs in your account for more information."


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureTexts:
    """Templates, of what `failure` is given."""

    reason: str
    """failureReason of the notice."""
    text: str | None = None
    """The failure object; None: the reason."""
    log: str | None = None
    """The line of the data log; None: as the reason."""


# SageMaker's own, seen in the field: the reasons of 4xx and 5xx, the beginning of the text without an answer (the rest
# is from memory), the data log's lines of 4xx, 5xx, long headers and a missing Content-Length. Seen once, in somebody's
# test: that no answer is "server error (0)". All else is ours: that there is such a failure is known, not its words.
FAILURE_TEXTS: dict[Kind, FailureTexts] = {
    "client_error": FailureTexts(
        reason=f"ClientError: Received client error ({{status}}) from model. {_SEE_LOGS}",
        log='Received client error ({status}) from primary with message "{detail}"',
    ),
    "server_error": FailureTexts(
        reason=f"ClientError: Received server error ({{status}}) from model. {_SEE_LOGS}",
        log='Received server error ({status}) from primary with message "{detail}"',
    ),
    "no_answer": FailureTexts(
        reason=f"ClientError: Received server error (0) from model. {_SEE_LOGS}",
        text="Amazon SageMaker could not get a response from the {endpoint} endpoint. "
        "This can occur when CPU or memory utilization is high. "
        "To check your utilization, see Amazon CloudWatch. "
        "To fix this problem, use an instance type with more CPU capacity or memory.",
        log="Received no response from primary: {detail}",
    ),
    "timeout": FailureTexts(
        reason=f"ClientError: The model did not respond within {{timeout_s:g}} seconds. {_SEE_LOGS}",
        text="Amazon SageMaker did not get a response from the {endpoint} endpoint within the "
        "InvocationTimeoutSeconds of the request ({timeout_s:g}).",
        log="Received no response from primary within {timeout_s:g} seconds",
    ),
    "bad_answer": FailureTexts(reason=f"ClientError: {{detail}}. {_SEE_LOGS}", log="{detail}"),
    "input": FailureTexts(
        reason="ClientError: Unable to read the input of the request: {detail}",
        log="Unable to read the input of the request: {detail}",
    ),
    "expired": FailureTexts(
        reason="ClientError: The request expired: it waited longer than its RequestTTLSeconds.",
    ),
    "deleted": FailureTexts(
        reason="ClientError: The endpoint was deleted before the request was processed.",
    ),
    "upload": FailureTexts(
        reason="ClientError: Unable to write the output of the request: {detail}",
    ),
}


def failure(job: Job, kind: Kind, detail: str = "", status: int = 0) -> Outcome:
    """Whose object is the platform's text."""
    words = FAILURE_TEXTS[kind]
    values = _values(job, detail, status)
    return Outcome(
        kind=kind,
        reason=words.reason.format(**values),
        content_type="text/plain",
        text=(words.text or words.reason).format(**values),
    )


def answered(job: Job, answer: Answer) -> Outcome:
    """The container's own words are the object, whatever its status.

    Any 2xx is the output, as InvokeEndpoint takes it for an answer. A container that says 202 and works on has made a
    mistake: AWS says that the first answer must be final. 1xx is no answer, and 3xx isn't followed: a server error.
    """
    content_type = _storable(answer.content_type)
    if 200 <= answer.status < 300:
        return Outcome(kind="completed", content_type=content_type, file=answer.file.name)
    kind: Kind = "client_error" if 400 <= answer.status < 500 else "server_error"
    reason = FAILURE_TEXTS[kind].reason.format(**_values(job, "", answer.status))
    return Outcome(kind=kind, reason=reason, content_type=content_type, file=answer.file.name)


def _storable(content_type: str | None) -> str | None:
    """None for bytes that are no text: no store could take them, and the answer shall not be lost for that."""
    try:
        return content_type if content_type is None or content_type.encode() else None
    except UnicodeEncodeError:
        return None


def log_line(job: Job, kind: Kind, detail: str = "", status: int = 0) -> str:
    words = FAILURE_TEXTS[kind]
    return (words.log or words.reason).format(**_values(job, detail, status))


def _values(job: Job, detail: str, status: int) -> dict[str, object]:
    return {"endpoint": job.endpoint, "timeout_s": job.timeout_s, "detail": detail, "status": status}
