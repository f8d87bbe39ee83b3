"""Pushes the image that scripts/build made to Amazon ECR and prints its digest URI, the only line on stdout.

The repository is made if it is missing. The image gets the tag <version>-<revision> of the commit it was built from,
which never moves: the same image again is a success, another image under the same tag an error. Credentials and region
are found as boto3 finds them (AWS_PROFILE, AWS_DEFAULT_REGION, AWS_ENDPOINT_URL, …).
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from pushing import PushError
from pushing.docker import REVISION, VERSION, Docker, Image
from pushing.registry import DOCKER_MANIFEST, Manifest, Registry
from pushing.repository import Ecr

ROOT = Path(__file__).resolve().parent.parent
BUILT = "longhaul"
"""Name of the image if scripts/build was not given another."""
SHORT = 12
HOST = re.compile(r"[A-Za-z0-9.-]+(:[0-9]+)?")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
ECR_HOST = re.compile(r"\d{12}\.dkr[.-]ecr(?:-fips)?\.([a-z0-9-]+)\.(?:amazonaws|on\.aws)")


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        # SystemExit removes the directory with the login.
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    options = _options()
    try:
        print(push(options))
    except PushError as error:
        sys.exit(f"push: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/push", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--region", help="the repository's region, instead of AWS_DEFAULT_REGION's or the profile's")
    parser.add_argument("--repository", default="longhaul", help="the repository's name (default: longhaul)")
    parser.add_argument("--image", help=f"the image to push (default: {BUILT}, if it is of the commit checked out)")
    parser.add_argument(
        "--registry",
        metavar="HOST[:PORT]",
        help="push there instead of the host that ECR names (a proxy, a local registry); the URI "
        "printed names it, too. With a loopback address it is plain HTTP.",
    )
    parser.add_argument("--allow-dirty", action="store_true", help="push an image built from uncommitted changes")
    return parser.parse_args()


def push(options: argparse.Namespace) -> str:
    """Push the image unless it is there, and return its digest URI."""
    docker = Docker(os.environ.get("DOCKER") or "docker")
    docker.check()
    name = options.image or BUILT
    image = docker.image(name)
    if options.image is None:
        _check_is_current(image)
    tag = tag_of(name, image, options.allow_dirty)
    if image.architecture != "amd64":
        say(f"note: {name} is for {image.architecture}; most of SageMaker's instances need amd64")

    ecr = Ecr(options.region)
    login = ecr.login()
    uri = ecr.repository_uri(options.repository, say)
    host = _registry_host(options.registry, uri, login.registry)
    registry = Registry(host, login.token)
    manifest = registry.manifest(options.repository, tag)
    if manifest is None:
        target = f"{host}/{options.repository}:{tag}"
        docker.tag(image, target)
        say(f"pushing {target}")
        docker.push(target, *login.user_and_password)
        manifest = _read_pushed(registry, options.repository, tag, image)
    elif manifest.is_of(image.id):
        say(f"{host}/{options.repository}:{tag} is already there")
    else:
        raise PushError(
            f"{tag} already is another image in {options.repository}, and a tag never moves: deploy that one "
            f"({host}/{options.repository}@{manifest.digest}), or commit the change and run scripts/build"
        )
    if manifest.media_type != DOCKER_MANIFEST:
        say(
            f"note: the manifest's type is {manifest.media_type}, which SageMaker is known to refuse; "
            "scripts/build -- --output type=docker may help"
        )
    return f"{host}/{options.repository}@{manifest.digest}"


def _read_pushed(registry: Registry, repository: str, tag: str, image: Image) -> Manifest:
    manifest = registry.manifest(repository, tag)
    if manifest is None:
        raise PushError(f"the push succeeded, but {registry.host} has no {repository}:{tag}")
    if not manifest.is_of(image.id):
        raise PushError(f"another image was pushed as {tag} at the same time: {repository}@{manifest.digest}")
    return manifest


def tag_of(name: str, image: Image, allow_dirty: bool) -> str:
    """Make the tag from the labels that scripts/build gives the image, not from the commit checked out now."""
    version, revision = image.labels.get(VERSION), image.labels.get(REVISION)
    if not version or not revision:
        raise PushError(f"{name} doesn't say what it was built from (labels {VERSION}, {REVISION}): run scripts/build")
    commit, dash, _ = revision.partition("-dirty")
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", commit):
        raise PushError(f"{name} was built from no git commit (revision {revision}): run scripts/build in a clone")
    if dash and not allow_dirty:
        raise PushError(
            f"{name} was built from uncommitted changes: commit and run scripts/build, or say --allow-dirty"
        )
    tag = f"{version.replace('+', '-')}-{commit[:SHORT]}"
    if dash:  # such images have no commit of their own, and their tags can't move either
        tag += f"-dirty-{image.id.partition(':')[2][:SHORT]}"
    if not TAG.fullmatch(tag):
        raise PushError(f"{name}: its version {version} can't be in a tag")
    return tag


def _check_is_current(image: Image) -> None:
    """Refuse the default image if it is of another commit: without --image, the commit checked out is meant."""
    built = image.labels.get(REVISION, "").removesuffix("-dirty")
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return
    head = git.stdout.strip()
    if git.returncode == 0 and built and built != head:
        raise PushError(
            f"{BUILT} was built from {built[:SHORT]}, but {head[:SHORT]} is checked out: run scripts/build, "
            f"or say --image {BUILT}"
        )


def _registry_host(override: str | None, uri: str, logged_in_to: str) -> str:
    host = uri.partition("/")[0]
    if override is not None and not HOST.fullmatch(override):
        raise PushError(f"--registry is HOST or HOST:PORT, not {override}")
    for other in (logged_in_to, override or host):
        here, there = ECR_HOST.match(host), ECR_HOST.match(other)
        if here and there and here[1] != there[1]:
            raise PushError(
                f"the repository is in {here[1]}, but the registry {other} in {there[1]}: is the region right?"
            )
    return override or host


def say(text: str) -> None:
    print(f"push: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
