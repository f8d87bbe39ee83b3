"""The Docker client as a process. Knows nothing of AWS.

A login lasts for one push: it lives in a configuration directory of its own, which is removed afterwards, and neither
a command line nor the user's own configuration ever has the password.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pushing import PushError, one_line

VERSION = "org.opencontainers.image.version"
REVISION = "org.opencontainers.image.revision"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    id: str
    architecture: str
    labels: dict[str, str]


class Docker:
    def __init__(self, client: str) -> None:
        self._client = client

    def check(self) -> None:
        """Check that there is a client, and an engine that answers it."""
        answer = self._run("version", "--format", "{{.Server.Version}}")
        if answer.returncode:
            raise PushError(f"Docker's engine doesn't answer: {_reason(answer.stderr)}")

    def image(self, name: str) -> Image:
        answer = self._run("image", "inspect", name)
        if answer.returncode and "no such image" in answer.stderr.lower():
            raise PushError(f"there is no image {name}: run scripts/build")
        if answer.returncode:
            raise PushError(f"can't inspect the image {name}: {_reason(answer.stderr)}")
        (found,) = json.loads(answer.stdout)
        labels = (found.get("Config") or {}).get("Labels") or {}
        return Image(id=found["Id"], architecture=found.get("Architecture", ""), labels=labels)

    def tag(self, image: Image, name: str) -> None:
        answer = self._run("tag", image.id, name)
        if answer.returncode:
            raise PushError(f"can't tag the image {name}: {_reason(answer.stderr)}")

    def push(self, name: str, user: str, password: str) -> None:
        """Push with a login for this push alone. The client shows its progress on our stderr."""
        registry = name.partition("/")[0]
        with tempfile.TemporaryDirectory(prefix="longhaul-push-") as config:
            _copy_config(Path(config), registry)
            login = ("login", "--username", user, "--password-stdin", registry)
            answer = self._run("--config", config, *login, stdin=password)
            if answer.returncode:
                raise PushError(f"the registry {registry} refused the login: {_reason(answer.stderr)}")
            command = [self._client, "--config", config, "push", name]
            pushed = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
            if pushed.returncode:
                raise PushError(f"the push was refused: {_reason(pushed.stderr)}")

    def _run(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run([self._client, *arguments], input=stdin or "", capture_output=True, text=True)
        except OSError as error:
            why = error.strerror or error
            raise PushError(
                f"no Docker client: {self._client}: {why}; install Docker, or name the client in DOCKER"
            ) from error


def _copy_config(directory: Path, registry: str) -> None:
    """Copy the user's configuration without its logins: contexts name the engine, and plugins and proxies count, too.

    The registry's empty entry keeps `docker login` from looking for a keychain to leave the password in.
    """
    theirs = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    try:
        config: dict[str, Any] = json.loads((theirs / "config.json").read_text())
    except (OSError, ValueError):
        config = {}
    for name in ("credsStore", "credHelpers"):
        config.pop(name, None)
    config["auths"] = {registry: {}}
    (directory / "config.json").write_text(json.dumps(config))
    for name in ("contexts", "cli-plugins"):
        if (theirs / name).is_dir():
            (directory / name).symlink_to((theirs / name).resolve())


def _reason(stderr: str) -> str:
    """Return the client's last line: warnings and hints come before it."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else "no reason given"
