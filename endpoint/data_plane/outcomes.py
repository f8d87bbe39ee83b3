"""How a job can end, in SageMaker's words: in the failure object, the notification, the data log and the metrics."""

from __future__ import annotations

from dataclasses import dataclass

from endpoint.data_plane.container_client import Answer
from endpoint.state.queue import Job, Outcome, OutcomeKind

_SEE_LOGS = "See the SageMaker Endpoint logs in your account for more information."


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One way to fail. The texts are templates of `endpoint`, `timeout_s`, `detail` and `status`."""

    reason: str
    """The failureReason of the notification."""
    text: str | None = None
    """The failure object; None: the reason."""
    log: str | None = None
    """The line of the data log; None: the reason."""
    metric: str | None = None
    """Counter that the failure raises, besides InvocationFailures."""
    was_processed: bool = True
    """Whether the job counts as processed: it got as far as an instance."""


# SageMaker's own, seen in the field: the reasons of 4xx and 5xx, the beginning of the text without an answer (the rest
# is from memory), the data log's lines of 4xx, 5xx, long headers and a missing Content-Length. Seen once, in a test:
# that no answer is "server error (0)". All else is ours: that there is such a failure is known, not its words.
FAILURES: dict[OutcomeKind, Failure] = {
    "client_error": Failure(
        reason=f"ClientError: Received client error ({{status}}) from model. {_SEE_LOGS}",
        log='Received client error ({status}) from primary with message "{detail}"',
        metric="Invocation4XXErrors",
    ),
    "server_error": Failure(
        reason=f"ClientError: Received server error ({{status}}) from model. {_SEE_LOGS}",
        log='Received server error ({status}) from primary with message "{detail}"',
        metric="Invocation5XXErrors",
    ),
    "no_answer": Failure(
        reason=f"ClientError: Received server error (0) from model. {_SEE_LOGS}",
        text="Amazon SageMaker could not get a response from the {endpoint} endpoint. "
        "This can occur when CPU or memory utilization is high. "
        "To check your utilization, see Amazon CloudWatch. "
        "To fix this problem, use an instance type with more CPU capacity or memory.",
        log="Received no response from primary: {detail}",
    ),
    "timeout": Failure(
        reason=f"ClientError: The model did not respond within {{timeout_s:g}} seconds. {_SEE_LOGS}",
        text="Amazon SageMaker did not get a response from the {endpoint} endpoint within the "
        "InvocationTimeoutSeconds of the request ({timeout_s:g}).",
        log="Received no response from primary within {timeout_s:g} seconds",
    ),
    "bad_answer": Failure(reason=f"ClientError: {{detail}}. {_SEE_LOGS}", log="{detail}"),
    "input": Failure(
        reason="ClientError: Unable to read the input of the request: {detail}",
        log="Unable to read the input of the request: {detail}",
        metric="RequestDownloadFailures",
    ),
    "expired": Failure(
        reason="ClientError: The request expired: it waited longer than its RequestTTLSeconds.",
        metric="ExpiredRequests",
        was_processed=False,
    ),
    "deleted": Failure(
        reason="ClientError: The endpoint was deleted before the request was processed.", was_processed=False
    ),
    "upload": Failure(reason="ClientError: Unable to write the output of the request: {detail}"),
}


def failure(job: Job, kind: OutcomeKind, detail: str = "") -> Outcome:
    """Return an outcome whose object is the platform's own message."""
    texts = FAILURES[kind]
    reason = _fill(texts.reason, job, detail)
    text = reason if texts.text is None else _fill(texts.text, job, detail)
    return Outcome(kind=kind, reason=reason, content_type="text/plain", text=text)


def answer_outcome(job: Job, answer: Answer) -> Outcome:
    """Return an outcome whose object is the container's own words.

    Any 2xx is the output, as InvokeEndpoint takes it for an answer. A container that says 202 and works on has made a
    mistake: AWS says that the first answer must be final. 1xx is not an answer, and 3xx isn't followed: a server error.
    """
    content_type = answer.content_type
    try:
        (content_type or "").encode()
    except UnicodeEncodeError:  # bytes that are not text: no store could take them, and the answer must not be lost
        content_type = None
    if 200 <= answer.status < 300:
        return Outcome(kind="completed", content_type=content_type, file=answer.file.name)
    kind: OutcomeKind = "client_error" if 400 <= answer.status < 500 else "server_error"
    reason = _fill(FAILURES[kind].reason, job, "", answer.status)
    return Outcome(kind=kind, reason=reason, content_type=content_type, file=answer.file.name)


def log_line(job: Job, kind: OutcomeKind, detail: str = "", status: int = 0) -> str:
    """Return the data log's line of a failure."""
    texts = FAILURES[kind]
    return _fill(texts.log or texts.reason, job, detail, status)


def _fill(template: str, job: Job, detail: str, status: int = 0) -> str:
    return template.format(endpoint=job.endpoint, timeout_s=job.timeout_s, detail=detail, status=status)
