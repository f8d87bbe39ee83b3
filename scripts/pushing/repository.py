"""The image repository in Amazon ECR, by its API. Makes it where it is missing and changes nothing that is there.

What protects a deployed image. An endpoint names its image by digest and pulls it again whenever an instance starts,
so the digest must outlive the endpoint. ECR expires images only by a lifecycle policy, and ours selects only untagged
ones. A pushed image has its tag from the first moment (tag and manifest are one request) and keeps it: an immutable tag
can't move to another image, and to remove an image's last tag is to delete the image itself. So what is untagged was
never pushed by scripts/push. https://docs.aws.amazon.com/AmazonECR/latest/userguide/LifecyclePolicies.html
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    InvalidRegionError,
    NoCredentialsError,
    NoRegionError,
)

from pushing import PushError, one_line

UNTAGGED_DAYS = 30
LIFECYCLE_POLICY = {
    "rules": [
        {
            "rulePriority": 1,
            "description": f"Untagged for {UNTAGGED_DAYS} days: never pushed by scripts/push, which tags for good",
            "selection": {
                "tagStatus": "untagged",
                "countType": "sinceImagePushed",
                "countUnit": "days",
                "countNumber": UNTAGGED_DAYS,
            },
            "action": {"type": "expire"},
        }
    ]
}
EXPIRED = ("ExpiredTokenException", "ExpiredToken", "RequestExpired")
NOT_ACCEPTED = (
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
    "IncompleteSignature",
    "MissingAuthenticationTokenException",
)
DENIED = ("AccessDeniedException", "AccessDenied", "UnauthorizedOperation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A login to the registry, good for twelve hours and everything its owner may do in ECR: `repr` hides the token."""

    registry: str
    token: str

    @property
    def user_and_password(self) -> tuple[str, str]:
        user, _, password = base64.b64decode(self.token).decode().partition(":")
        return user, password

    def __repr__(self) -> str:
        return f"Login(registry={self.registry!r})"


class Ecr:
    def __init__(self, region: str | None) -> None:
        with plain_errors():
            self._ecr: Any = boto3.client("ecr", region_name=region)
        self.region = self._ecr.meta.region_name

    def login(self) -> Login:
        with plain_errors(self.region):
            (data,) = self._ecr.get_authorization_token()["authorizationData"]
        return Login(registry=data["proxyEndpoint"].partition("://")[2], token=data["authorizationToken"])

    def repository_uri(self, name: str, say: Callable[[str], None]) -> str:
        """Return the repository's URI, and make the repository if it is missing.

        `say` is called with each difference from a repository made by us.
        """
        with plain_errors(self.region):
            try:
                (found,) = self._ecr.describe_repositories(repositoryNames=[name])["repositories"]
            except self._ecr.exceptions.RepositoryNotFoundException:
                return self._create(name, say)
            if (tags := found.get("imageTagMutability")) != "IMMUTABLE":
                say(f"note: the tags of {name} are {tags}, left as they are: others can move them")
            self._note_policy(name, say)
        return str(found["repositoryUri"])

    def _create(self, name: str, say: Callable[[str], None]) -> str:
        made = self._ecr.create_repository(
            repositoryName=name,
            imageTagMutability="IMMUTABLE",
            imageScanningConfiguration={"scanOnPush": True},
        )
        say(f"made the repository {name}: immutable tags, scan on push")
        try:
            self._ecr.put_lifecycle_policy(repositoryName=name, lifecyclePolicyText=json.dumps(LIFECYCLE_POLICY))
        except ClientError as error:
            remedy = f"{name} was made without a lifecycle policy; delete it, and push again"
            raise PushError(f"{_refusal(error)} ({remedy})") from error
        say(f"set its lifecycle policy: only untagged images expire, after {UNTAGGED_DAYS} days")
        return str(made["repository"]["repositoryUri"])

    def _note_policy(self, name: str, say: Callable[[str], None]) -> None:
        try:
            text = self._ecr.get_lifecycle_policy(repositoryName=name)["lifecyclePolicyText"]
        except self._ecr.exceptions.LifecyclePolicyNotFoundException:
            say(f"note: {name} has no lifecycle policy, left as it is")
            return
        except ClientError as error:
            if error.response["Error"]["Code"] not in DENIED:
                raise
            say(f"note: can't see the lifecycle policy of {name}: ecr:GetLifecyclePolicy is not allowed")
            return
        policy = json.loads(text)
        if policy == LIFECYCLE_POLICY:
            return
        if any(rule["selection"]["tagStatus"] != "untagged" for rule in policy["rules"]):
            say(f"note: the lifecycle policy of {name} can expire tagged images, deployed ones, too; left as it is")
        else:
            say(f"note: {name} has another lifecycle policy, left as it is")


@contextmanager
def plain_errors(region: str | None = None) -> Iterator[None]:
    """Turn botocore's errors into a PushError of one line that says what to do."""
    try:
        yield
    except ClientError as error:
        raise PushError(_refusal(error)) from error
    except NoRegionError as error:
        raise PushError("no region: say --region, set AWS_DEFAULT_REGION, or give the profile one") from error
    except NoCredentialsError as error:
        raise PushError("no AWS credentials: set AWS_PROFILE, or log in (aws sso login, aws configure)") from error
    except (EndpointConnectionError, ConnectTimeoutError) as error:
        raise PushError(f"{one_line(error)}: is there such a region ({region}), and a network?") from error
    except InvalidRegionError as error:
        raise PushError(f"{one_line(error)}: regions look like eu-west-1") from error
    except (BotoCoreError, ValueError) as error:  # a malformed AWS_ENDPOINT_URL is a ValueError
        raise PushError(one_line(error)) from error


def _refusal(error: ClientError) -> str:
    code, message = error.response["Error"]["Code"], one_line(error.response["Error"].get("Message", ""))
    if code in EXPIRED:
        return f"the AWS credentials have expired ({code}): log in again"
    if code in NOT_ACCEPTED:
        return f"AWS doesn't accept the credentials ({code}): {message}"
    if code in DENIED:
        return f"access denied: ecr:{error.operation_name} must be allowed: {message}"
    return f"ECR refused {error.operation_name} ({code}): {message}"
