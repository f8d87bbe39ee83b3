"""scripts/test-push: scripts/build and scripts/push with a real engine and registry, and a tiny image.

A checkout of its own is built and pushed to a registry on loopback, which wants the login that the emulated ECR gives;
the image is pulled back by the digest that was printed. Every process and image it made is removed at the end.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from testing import ROOT
from testing.emulator import Emulator

DOCKER = os.environ.get("DOCKER") or "docker"
REPOSITORY = "longhaul-trial"
DOCKERFILE = """\
ARG BASE_IMAGE=scratch
FROM scratch
ARG VERSION
ARG REVISION
COPY content /content
CMD ["none"]
"""


class Trial:
    """One checkout, its images, and the registry they are pushed to."""

    def __init__(self, folder: Path, registry: str, aws: Emulator, credentials: tuple[str, str]) -> None:
        self._checkout = folder / "checkout"
        self._image = f"{REPOSITORY}:{os.getpid()}"
        self._at = f"{registry}/{REPOSITORY}"
        self._made: set[str] = set()
        self._config = folder / "docker-config"
        self._scratch = folder / "scratch"
        self._scratch.mkdir()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        self._environment = inherited | aws.environment | {"TMPDIR": str(self._scratch)}
        user, password = credentials
        docker("--config", str(self._config), "login", "-u", user, "--password-stdin", registry, stdin=password)

    def run(self) -> None:
        check("a missing image is named", "run scripts/build" in self._refused_push())
        self._check_out()
        self._commit("first")
        first = self._build()
        uri = self._push()
        check("the URI is the registry's, by digest", re.fullmatch(rf"{self._at}@sha256:[0-9a-f]{{64}}", uri))
        check("what is pulled by that digest is what was built", self._pull(uri) == first)
        check("the same image again is the same URI", self._push() == uri)
        self._run_changed(uri)
        self._run_rebuilt(uri, first)
        self._commit("second")
        self._build()
        check("a new commit is a new image", self._push() != uri)
        check("no login is left on the disk", not list(self._scratch.iterdir()))

    def _run_changed(self, uri: str) -> None:
        (self._checkout / "content").write_text("changed\n")
        changed = self._build()
        check("an image of uncommitted changes is refused", "uncommitted changes" in self._refused_push())
        other = self._push("--allow-dirty")
        check("allowed, it is another image", other != uri and self._pull(other) == changed)
        self._git("checkout", "--quiet", "content")

    def _run_rebuilt(self, uri: str, first: str) -> None:
        rebuilt = self._build("--label", "rebuilt=yes")
        refusal = self._refused_push()
        check(
            "another image of the same commit is refused by its tag", "a tag never moves" in refusal and uri in refusal
        )
        check("the first image is still there", rebuilt != first and self._pull(uri) == first)

    def close(self) -> None:
        for image in self._made:
            subprocess.run([DOCKER, "image", "rm", "--force", image], capture_output=True)

    def _check_out(self) -> None:
        for name in ("scripts/build", "container/__init__.py"):
            (self._checkout / name).parent.mkdir(parents=True)
            shutil.copy(ROOT / name, self._checkout / name)
        (self._checkout / "Dockerfile").write_text(DOCKERFILE)
        (self._checkout / "content").write_text("first\n")
        self._git("init", "--quiet")
        self._git("add", ".")

    def _commit(self, message: str) -> None:
        who = ("-c", "user.name=trial", "-c", "user.email=trial@example.com")
        self._git(*who, "commit", "--quiet", "--allow-empty", "--message", message)

    def _git(self, *arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=self._checkout, check=True)

    def _build(self, *options: str) -> str:
        """Build the image and return its id."""
        command = [str(self._checkout / "scripts/build"), "--tag", self._image, "--", *options]
        subprocess.run(command, env=self._environment, check=True)
        image = docker("image", "inspect", "--format", "{{.Id}}", self._image)
        self._made.add(image)
        return image

    def _push(self, *arguments: str) -> str:
        """Push, and return the printed URI."""
        done = self._run_push(*arguments)
        if done.returncode or done.stdout.count("\n") != 1:
            sys.exit(f"test-push: scripts/push ended with {done.returncode} and printed {done.stdout!r}")
        return done.stdout.strip()

    def _refused_push(self) -> str:
        """Push, expect a refusal, and return its line."""
        done = self._run_push()
        if done.returncode != 1 or done.stdout:
            sys.exit(f"test-push: scripts/push should have failed: it ended with {done.returncode}: {done.stdout!r}")
        return done.stderr.splitlines()[-1]

    def _run_push(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        registry = self._at.partition("/")[0]
        named = ("--image", self._image, "--repository", REPOSITORY, "--registry", registry)
        command = [str(ROOT / "scripts/push"), *named, *arguments]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True)
        print(done.stderr, end="", flush=True)
        return done

    def _pull(self, uri: str) -> str:
        """Pull the image after the engine has forgotten all of ours, and return its id."""
        self.close()
        docker("--config", str(self._config), "pull", "--quiet", uri)
        docker("tag", uri, self._image)
        return docker("image", "inspect", "--format", "{{.Id}}", uri)


def docker(*arguments: str, stdin: str = "") -> str:
    done = subprocess.run([DOCKER, *arguments], input=stdin, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"test-push: docker {arguments[0]}: {done.stderr}")
    return done.stdout.strip()


def check(claim: str, holds: object) -> None:
    if not holds:
        sys.exit(f"test-push: NOT so: {claim}")
    print(f"test-push: {claim}", flush=True)


def ecr_credentials(aws: Emulator) -> tuple[str, str]:
    """Return user and password that the emulated ECR gives."""
    (data,) = aws.client("ecr").get_authorization_token()["authorizationData"]
    user, _, password = base64.b64decode(data["authorizationToken"]).decode().partition(":")
    return user, password


@contextmanager
def running_registry(folder: Path, credentials: tuple[str, str]) -> Iterator[str]:
    """Run a registry that takes these credentials only. Yields its host and port."""
    folder.mkdir()
    (folder / "passwords").write_text(f"{credentials[0]}:{_bcrypt(credentials[1])}\n")
    (folder / "config.yml").write_text(
        "version: 0.1\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/images}}}}\n"
        "http: {addr: 127.0.0.1:0}\n"
        f"auth: {{htpasswd: {{realm: trial, path: {folder}/passwords}}}}\n"
    )
    command = ["docker-registry", "serve", str(folder / "config.yml")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = []
    try:
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"listening on (127\.0\.0\.1:\d+)", line):
                break
        else:
            sys.exit(f"test-push: docker-registry ended: {''.join(lines)}")
        threading.Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would stop the registry
        yield found[1]
    finally:
        process.terminate()
        process.wait()


def _bcrypt(password: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.13 has no crypt any more
        import crypt
    return crypt.crypt(password, crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=16))


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="longhaul-trial-") as name, Emulator(Path(name)) as aws:
        folder, credentials = Path(name), ecr_credentials(aws)
        with running_registry(folder / "registry", credentials) as registry:
            trial = Trial(folder, registry, aws, credentials)
            try:
                trial.run()
            finally:
                trial.close()
    print("test-push: everything is as it should be")


if __name__ == "__main__":
    main()
