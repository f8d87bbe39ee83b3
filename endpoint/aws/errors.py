"""Errors that callers of AWS's API get."""

from __future__ import annotations

from typing import Any


class AwsError(Exception):
    """An error that the caller gets. `members` are a modelled error's besides its message (ModelError's, say)."""

    def __init__(self, code: str, message: str, status: int = 400, **members: Any) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        """Code as the service's users know it: "ValidationError" in CloudWatch, "ValidationException" in SageMaker."""
        self.message = message
        self.status = status
        """Status for codes that the service's model doesn't know; it has those of the others."""
        self.members = members


class FormError(AwsError):
    """An error that AWS's own front would find: of a request's form, or of a constraint of the model."""


def not_implemented(operation: str) -> AwsError:
    """Return the error of an operation that AWS has and the local endpoint lacks."""
    return AwsError("UnknownOperationException", f"{operation} is not implemented by the local endpoint")
