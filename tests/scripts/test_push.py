"""scripts/push without a Docker engine: in a process of its own, with a stub of the client and an emulated ECR.

scripts/test-push uses a real engine and a real registry.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testing import ROOT
from testing.emulator import Emulator
from testing.registry.fake_ecr import HOST, PASSWORD, TOKEN, FakeEcr
from testing.registry.fake_registry import FakeRegistry

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TAG = "0.1.0-0123456789ab"
IMAGE_ID = f"sha256:{'1' * 64}"
LABELS = {"org.opencontainers.image.version": "0.1.0", "org.opencontainers.image.revision": COMMIT}

# The arguments of each call go to a file. A push copies the file `manifest` to the folder of the fake registry.
STUB = r"""#!/bin/sh
echo "$*" >>"$STUB/calls"
if [ "$1" = --config ]; then config=$2; shift 2; fi
fails() { [ -e "$STUB/$1-fails" ] && cat "$STUB/$1-fails" >&2; }
case $1 in
version) ! fails version || exit 1 ;;
image) ! fails image || exit 1; cat "$STUB/image" ;;
tag) ;;
login)
  ! fails login || exit 1
  cat >"$STUB/password"
  cp "$config/config.json" "$STUB/config"
  ls "$config" >"$STUB/config-files"
  ;;
push)
  echo 'layer: Pushed'
  if [ -e "$STUB/push-hangs" ]; then
    echo "config $config"
    exec cat "$STUB/push-hangs"
  fi
  ! fails push || exit 1
  cp "$STUB/manifest" "$STUB/tags/${2##*:}"
  ;;
esac
"""


class Stub:
    """The stub of the client, and the folder with its instructions and its records."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client = folder / "docker"
        self.client.write_text(STUB)
        self.client.chmod(0o755)
        (folder / "tags").mkdir()
        self.have_image()
        (folder / "manifest").write_text(json.dumps({"config": {"digest": IMAGE_ID}}))

    def have_image(self, labels: dict[str, str] = LABELS, architecture: str = "amd64") -> None:
        image = {"Id": IMAGE_ID, "Architecture": architecture, "Config": {"Labels": labels}}
        (self.folder / "image").write_text(json.dumps([image]))

    def fail(self, command: str, words: str) -> None:
        (self.folder / f"{command}-fails").write_text(f"{words}\n")

    def record(self, name: str) -> str:
        return (self.folder / name).read_text()

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256((self.folder / 'manifest').read_bytes()).hexdigest()}"


class Push:
    """Runs scripts/push.py with an environment of its own."""

    def __init__(self, stub: Stub, registry: FakeRegistry, environment: dict[str, str]) -> None:
        self.stub = stub
        self.registry = registry
        # PYTHONPATH goes, too: a user's scripts/push finds no `testing` either.
        ours = ("AWS_", "DOCKER", "PYTHONPATH")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        files = {"AWS_CONFIG_FILE": str(stub.folder / "none"), "AWS_SHARED_CREDENTIALS_FILE": str(stub.folder / "none")}
        own = {"HOME": str(stub.folder), "TMPDIR": str(stub.folder), "STUB": str(stub.folder)}
        self.environment = inherited | files | own | environment | {"DOCKER": str(stub.client)}

    def start(self, *arguments: str, image: str | None = "longhaul") -> subprocess.Popen[str]:
        named = ("--image", image) if image else ()
        where = () if "--registry" in arguments else ("--registry", self.registry.host)
        command = [sys.executable, str(ROOT / "scripts/push.py"), *named, *where, *arguments]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def succeed(self, *arguments: str, **options: Any) -> tuple[str, str]:
        process = self.start(*arguments, **options)
        uri, stderr = process.communicate()
        assert process.returncode == 0, stderr
        assert uri.endswith("\n") and uri.count("\n") == 1
        return uri.strip(), stderr

    def fail(self, *arguments: str, **options: Any) -> str:
        """Push, expect an error, and return its line. The lines before it are notes."""
        process = self.start(*arguments, **options)
        stdout, stderr = process.communicate()
        assert process.returncode == 1 and stdout == "" and "Traceback" not in stderr
        *notes, line = stderr.splitlines()
        assert line.startswith("push: ") and all(note.startswith(("push: ", "layer: ")) for note in notes)
        return line.removeprefix("push: ")


@pytest.fixture
def stub(tmp_path: Path) -> Stub:
    return Stub(tmp_path)


@pytest.fixture
def registry(stub: Stub) -> Iterator[FakeRegistry]:
    with FakeRegistry(stub.folder / "tags") as registry:
        yield registry


@pytest.fixture(scope="session")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with Emulator(tmp_path_factory.mktemp("aws")) as aws:
        yield aws


@pytest.fixture
def ecr() -> Iterator[FakeEcr]:
    with FakeEcr() as ecr:
        yield ecr


@pytest.fixture
def push(stub: Stub, registry: FakeRegistry, ecr: FakeEcr) -> Push:
    """Push to an ECR that refuses what a test says."""
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_MAX_ATTEMPTS": "1"}
    where = {"AWS_ENDPOINT_URL": ecr.url, "AWS_DEFAULT_REGION": "eu-west-1", "AWS_EC2_METADATA_DISABLED": "true"}
    return Push(stub, registry, keys | where)


@pytest.fixture
def emulated_push(stub: Stub, registry: FakeRegistry, aws: Emulator) -> Push:
    return Push(stub, registry, aws.environment)


@pytest.fixture
def client(aws: Emulator) -> Any:
    return aws.client("ecr")


# The repository


def test_missing_repository_is_made_immutable_and_scanned(emulated_push: Push, client: Any) -> None:
    uri, notes = emulated_push.succeed("--repository", "made")
    assert uri == f"{emulated_push.registry.host}/made@{emulated_push.stub.digest}"
    (made,) = client.describe_repositories(repositoryNames=["made"])["repositories"]
    assert made["imageTagMutability"] == "IMMUTABLE"
    assert made["imageScanningConfiguration"] == {"scanOnPush": True}
    assert "made the repository made" in notes


def test_lifecycle_policy_expires_untagged_images_only(emulated_push: Push, client: Any) -> None:
    emulated_push.succeed("--repository", "policed")
    policy = json.loads(client.get_lifecycle_policy(repositoryName="policed")["lifecyclePolicyText"])
    (rule,) = policy["rules"]
    assert rule["selection"]["tagStatus"] == "untagged"
    assert rule["selection"]["countType"] == "sinceImagePushed" and rule["selection"]["countNumber"] == 30


def test_own_repository_gets_no_note(emulated_push: Push) -> None:
    emulated_push.succeed("--repository", "ours")
    _, notes = emulated_push.succeed("--repository", "ours")
    assert "note:" not in notes and "made" not in notes


def test_existing_repository_is_unchanged_but_noted(emulated_push: Push, client: Any) -> None:
    client.create_repository(repositoryName="theirs")
    _, notes = emulated_push.succeed("--repository", "theirs")
    assert "note: the tags of theirs are MUTABLE" in notes and "note: theirs has no lifecycle policy" in notes
    (found,) = client.describe_repositories(repositoryNames=["theirs"])["repositories"]
    assert found["imageTagMutability"] == "MUTABLE"
    with pytest.raises(client.exceptions.LifecyclePolicyNotFoundException):
        client.get_lifecycle_policy(repositoryName="theirs")


@pytest.mark.parametrize(("status", "note"), [("any", "can expire tagged images"), ("untagged", "another lifecycle")])
def test_another_lifecycle_policy_is_noted(emulated_push: Push, client: Any, status: str, note: str) -> None:
    name = f"policy-{status}"
    selection = {"tagStatus": status, "countType": "imageCountMoreThan", "countNumber": 3}
    text = json.dumps({"rules": [{"rulePriority": 1, "selection": selection, "action": {"type": "expire"}}]})
    client.create_repository(repositoryName=name, imageTagMutability="IMMUTABLE")
    client.put_lifecycle_policy(repositoryName=name, lifecyclePolicyText=text)
    _, notes = emulated_push.succeed("--repository", name)
    assert note in notes
    assert client.get_lifecycle_policy(repositoryName=name)["lifecyclePolicyText"] == text


def test_unreadable_lifecycle_policy_is_noted(push: Push, ecr: FakeEcr) -> None:
    ecr.refusals["GetLifecyclePolicy"] = ("AccessDeniedException", "not authorized")
    _, notes = push.succeed()
    assert "ecr:GetLifecyclePolicy is not allowed" in notes


def test_region_argument_wins(emulated_push: Push, aws: Emulator) -> None:
    emulated_push.succeed("--repository", "elsewhere", "--region", "us-west-2")
    there = aws.client("ecr", "us-west-2")
    assert there.describe_repositories(repositoryNames=["elsewhere"])["repositories"]


# The push


def test_tag_names_the_images_commit(push: Push) -> None:
    push.succeed()
    target = f"{push.registry.host}/longhaul:{TAG}"
    calls = push.stub.record("calls").splitlines()
    assert f"tag {IMAGE_ID} {target}" in calls and calls[-1].endswith(f"push {target}")


def test_progress_goes_to_stderr(push: Push) -> None:
    assert "layer: Pushed" in push.succeed()[1]


def test_password_is_neither_argument_nor_file(push: Push) -> None:
    push.succeed()
    assert push.stub.record("password") == PASSWORD
    calls = push.stub.record("calls")
    assert "--username AWS --password-stdin" in calls
    assert PASSWORD not in calls and TOKEN not in calls
    assert not list(push.stub.folder.glob("longhaul-push-*"))


def test_interrupted_push_leaves_no_login(push: Push) -> None:
    hangs = push.stub.folder / "push-hangs"
    os.mkfifo(hangs)
    process = push.start()
    assert process.stderr is not None
    config = next(Path(line.split()[1]) for line in process.stderr if line.startswith("config "))
    assert config.is_dir()
    process.send_signal(signal.SIGTERM)
    status = process.wait()
    os.close(os.open(hangs, os.O_RDWR | os.O_NONBLOCK))  # ends a stub that has outlived the push
    process.communicate()
    assert status == 128 + signal.SIGTERM and not config.exists()


def test_users_docker_configuration_counts_without_logins(push: Push) -> None:
    theirs = push.stub.folder / ".docker"
    (theirs / "contexts").mkdir(parents=True)
    config = {"currentContext": "remote", "credsStore": "keychain", "credHelpers": {"x": "y"}, "auths": {"x": {}}}
    (theirs / "config.json").write_text(json.dumps(config))
    push.succeed()
    assert json.loads(push.stub.record("config")) == {"currentContext": "remote", "auths": {push.registry.host: {}}}
    assert push.stub.record("config-files").split() == ["config.json", "contexts"]
    assert json.loads((theirs / "config.json").read_text()) == config


def test_same_image_again_succeeds_without_push(push: Push) -> None:
    first, _ = push.succeed()
    calls = push.stub.record("calls")
    second, notes = push.succeed()
    assert first == second and "is already there" in notes
    assert "push" not in push.stub.record("calls").removeprefix(calls)


def test_image_is_recognised_by_its_manifest(push: Push) -> None:
    """Engines with containerd's image store name images by their manifests."""
    push.succeed()
    image = {"Id": push.stub.digest, "Architecture": "amd64", "Config": {"Labels": LABELS}}
    (push.stub.folder / "image").write_text(json.dumps([image]))
    assert "is already there" in push.succeed()[1]


def test_another_image_under_tag_is_refused(push: Push) -> None:
    (push.stub.folder / "tags" / TAG).write_text('{"config": {"digest": "sha256:22"}}')
    line = push.fail()
    assert line.startswith(f"{TAG} already is another image in longhaul") and "@sha256:" in line
    assert f"push {push.registry.host}" not in push.stub.record("calls")


def test_simultaneous_push_is_noticed(push: Push) -> None:
    (push.stub.folder / "manifest").write_text('{"config": {"digest": "sha256:22"}}')
    assert "another image was pushed" in push.fail()


def test_manifest_refused_by_sagemaker_is_noted(push: Push) -> None:
    push.registry.media_type = "application/vnd.oci.image.index.v1+json"
    assert "application/vnd.oci.image.index.v1+json, which SageMaker is known to refuse" in push.succeed()[1]


def test_image_for_other_processors_is_noted(push: Push) -> None:
    push.stub.have_image(architecture="arm64")
    assert "longhaul is for arm64" in push.succeed()[1]


# The image's origin


def labels(revision: str, version: str = "0.1.0") -> dict[str, str]:
    return {"org.opencontainers.image.version": version, "org.opencontainers.image.revision": revision}


def test_uncommitted_changes_are_refused(push: Push) -> None:
    push.stub.have_image(labels(f"{COMMIT}-dirty"))
    assert "uncommitted changes" in push.fail()


def test_allowed_uncommitted_changes_get_own_tag(push: Push) -> None:
    push.stub.have_image(labels(f"{COMMIT}-dirty"))
    push.succeed("--allow-dirty")
    assert [file.name for file in (push.stub.folder / "tags").iterdir()] == [f"{TAG}-dirty-111111111111"]


def test_local_version_becomes_a_tag(push: Push) -> None:
    push.stub.have_image(labels(COMMIT, "0.1.0+cpu"))
    push.succeed()
    assert (push.stub.folder / "tags" / "0.1.0-cpu-0123456789ab").exists()


def test_image_without_commit_is_refused(push: Push) -> None:
    push.stub.have_image(labels("unknown"))
    assert "was built from no git commit (revision unknown)" in push.fail()


def test_image_of_other_origin_is_refused(push: Push) -> None:
    push.stub.have_image({})
    assert "doesn't say what it was built from" in push.fail()


def test_default_image_of_another_commit_is_refused(push: Push) -> None:
    line = push.fail(image=None)
    assert line.startswith("longhaul was built from 0123456789ab, but ") and "run scripts/build" in line


def test_default_image_of_current_commit_is_pushed(push: Push) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    push.stub.have_image(labels(head.strip()))
    push.succeed(image=None)
    assert (push.stub.folder / "tags" / f"0.1.0-{head[:12]}").exists()


# Errors: Docker


def test_missing_docker_client_is_named(push: Push) -> None:
    push.environment["DOCKER"] = "/nowhere/docker"
    assert push.fail().startswith("no Docker client: /nowhere/docker: No such file or directory; install Docker")


def test_missing_docker_engine_is_named(push: Push) -> None:
    push.stub.fail("version", "Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?")
    assert push.fail().startswith("Docker's engine doesn't answer: Cannot connect to the Docker daemon")


def test_missing_image_is_named(push: Push) -> None:
    push.stub.fail("image", "Error: No such image: longhaul")
    assert push.fail() == "there is no image longhaul: run scripts/build"


def test_refused_login_gives_dockers_reason(push: Push) -> None:
    push.stub.fail("login", "Error response from daemon: 401 Unauthorized")
    assert push.fail().endswith("refused the login: Error response from daemon: 401 Unauthorized")


def test_refused_push_gives_dockers_reason(push: Push) -> None:
    push.stub.fail("push", "WARNING: something\ndenied: User x is not authorized to perform: ecr:InitiateLayerUpload")
    line = push.fail()
    assert line == "the push was refused: denied: User x is not authorized to perform: ecr:InitiateLayerUpload"


# Errors: AWS


def test_missing_credentials_are_named(push: Push) -> None:
    del push.environment["AWS_ACCESS_KEY_ID"], push.environment["AWS_SECRET_ACCESS_KEY"]
    assert push.fail().startswith("no AWS credentials: set AWS_PROFILE")


def test_partial_credentials_are_named(push: Push) -> None:
    del push.environment["AWS_SECRET_ACCESS_KEY"]
    assert "Partial credentials" in push.fail()


def test_unknown_profile_is_named(push: Push) -> None:
    push.environment["AWS_PROFILE"] = "unknown"
    assert push.fail() == "The config profile (unknown) could not be found"


@pytest.mark.parametrize("code", ["ExpiredTokenException", "RequestExpired"])
def test_expired_credentials_are_named(push: Push, ecr: FakeEcr, code: str) -> None:
    ecr.refusals["GetAuthorizationToken"] = (code, "The security token included in the request is expired")
    assert push.fail() == f"the AWS credentials have expired ({code}): log in again"


@pytest.mark.parametrize("code", ["UnrecognizedClientException", "InvalidSignatureException"])
def test_invalid_credentials_are_named(push: Push, ecr: FakeEcr, code: str) -> None:
    ecr.refusals["GetAuthorizationToken"] = (code, "The security token included in the request is invalid.")
    assert push.fail().startswith(f"AWS doesn't accept the credentials ({code}): The security token")


@pytest.mark.parametrize(
    "operation", ["GetAuthorizationToken", "DescribeRepositories", "CreateRepository", "PutLifecyclePolicy"]
)
def test_denied_action_is_named(push: Push, ecr: FakeEcr, operation: str) -> None:
    if operation in ("CreateRepository", "PutLifecyclePolicy"):
        ecr.refusals["DescribeRepositories"] = ("RepositoryNotFoundException", "no such repository")
    ecr.refusals[operation] = ("AccessDeniedException", "User: arn:aws:iam::1:user/x is not authorized")
    line = push.fail()
    assert line.startswith(f"access denied: ecr:{operation} must be allowed: User: arn:aws:iam::1:user/x")
    assert ("delete it, and push again" in line) == (operation == "PutLifecyclePolicy")


def test_other_refusal_is_quoted(push: Push, ecr: FakeEcr) -> None:
    ecr.refusals["DescribeRepositories"] = ("ServerException", "it broke\non two lines")
    assert push.fail() == "ECR refused DescribeRepositories (ServerException): it broke on two lines"


def test_missing_region_is_named(push: Push) -> None:
    del push.environment["AWS_DEFAULT_REGION"]
    assert push.fail() == "no region: say --region, set AWS_DEFAULT_REGION, or give the profile one"


def test_malformed_region_is_refused(push: Push) -> None:
    assert push.fail("--region", "Ireland!").endswith("regions look like eu-west-1")


def test_unreachable_region_is_named(push: Push) -> None:
    push.environment["AWS_ENDPOINT_URL"] = "http://127.0.0.1:1"
    line = push.fail("--region", "eu-nowhere-1")
    assert line.startswith("Could not connect to the endpoint URL") and "(eu-nowhere-1)" in line


def test_malformed_endpoint_url_is_named(push: Push) -> None:
    push.environment["AWS_ENDPOINT_URL"] = "not a url"
    assert "not a url" in push.fail()


def test_registry_of_another_region_is_refused(push: Push) -> None:
    line = push.fail("--registry", HOST.replace("eu-west-1", "us-east-1"))
    assert line.startswith("the repository is in eu-west-1, but the registry 123456789012") and "us-east-1" in line


def test_login_for_another_region_is_refused(push: Push, ecr: FakeEcr) -> None:
    login = {"authorizationToken": TOKEN, "proxyEndpoint": f"https://{HOST.replace('eu-west-1', 'us-east-1')}"}
    ecr.answers["GetAuthorizationToken"] = {"authorizationData": [login]}
    assert "in us-east-1: is the region right?" in push.fail()


# Errors: the registry


def test_malformed_registry_host_is_refused(push: Push) -> None:
    assert (
        push.fail("--registry", "http://127.0.0.1:5000") == "--registry is HOST or HOST:PORT, not http://127.0.0.1:5000"
    )


def test_unreachable_registry_is_named(push: Push) -> None:
    assert push.fail("--registry", "127.0.0.1:1").startswith("can't reach the registry 127.0.0.1:1: ")


def test_denied_manifest_names_the_permission(push: Push) -> None:
    push.registry.refusal = (403, "User x is not authorized")
    line = push.fail()
    assert line.endswith("User x is not authorized (403); ecr:BatchGetImage must be allowed")


def test_redirect_gets_no_login(push: Push) -> None:
    push.registry.refusal = (302, "over there")
    assert push.fail().endswith("over there (302)")
    assert push.registry.requests == [(f"/v2/longhaul/manifests/{TAG}", f"Basic {TOKEN}")]


def test_answer_without_manifest_is_refused(push: Push) -> None:
    (push.stub.folder / "tags" / TAG).write_text("<html>")
    assert push.fail() == "the registry answered with something other than a manifest"
