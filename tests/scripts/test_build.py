"""scripts/build without a Docker engine: in a checkout of its own, with a stub of the client that records its
arguments."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from testing import ROOT

STUB = r"""#!/bin/sh
case $1 in
image) echo "sha256:12 1234567890 $(sed -n 's/^REVISION=//p' "$STUB/arguments") ${TITLE-}" ;;
run) echo "$*" >"$STUB/run"; exit "${RUN_STATUS-0}" ;;
build)
  echo "buildkit=$DOCKER_BUILDKIT attestations=$BUILDX_NO_DEFAULT_ATTESTATIONS" >"$STUB/environment"
  for argument; do
    echo "$argument"
    case $argument in id=pip_conf,src=*) cat "${argument#*src=}" >"$STUB/pip.conf" ;; esac
  done >"$STUB/arguments"
  ;;
esac
"""


class Checkout:
    """A git repository with scripts/build and what it reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        self.stub = folder
        for name in ("scripts/build", "container/__init__.py"):
            (self.folder / name).parent.mkdir(parents=True)
            shutil.copy(ROOT / name, self.folder / name)
        (folder / "docker").write_text(STUB)
        (folder / "docker").chmod(0o755)
        names = ("BASE_IMAGE", "BUILD_NETWORK", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")
        self.environment = {name: value for name, value in os.environ.items() if name not in names}
        self.environment |= {"DOCKER": str(folder / "docker"), "STUB": str(folder)}
        self.git("init", "--quiet")
        self.git("add", ".")
        self.git("-c", "user.name=x", "-c", "user.email=x@example.com", "commit", "--quiet", "--message", "x")
        self.head = self.git("rev-parse", "HEAD")

    def git(self, *arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True).stdout.strip()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.folder / "scripts/build"), *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True)

    def build(self, *arguments: str) -> list[str]:
        """Build, and return the client's arguments."""
        built = self.run(*arguments)
        assert built.returncode == 0, built.stderr
        return (self.stub / "arguments").read_text().splitlines()

    def fail(self, *arguments: str) -> str:
        built = self.run(*arguments)
        assert built.returncode == 1 and built.stdout == ""
        return built.stderr.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_version_and_revision_become_arguments_and_labels(checkout: Checkout) -> None:
    arguments = checkout.build()
    for argument in (f"REVISION={checkout.head}", f"org.opencontainers.image.revision={checkout.head}"):
        assert argument in arguments
    assert any(argument.startswith("VERSION=") for argument in arguments)
    assert arguments[1:3] == ["--tag", "longhaul"] and arguments[-1] == "."


def test_build_reports_its_image(checkout: Checkout) -> None:
    output = checkout.run("--tag", "other:1").stdout
    assert output.startswith("build: other:1 sha256:12, 1234 MB, version ") and output.endswith(f"{checkout.head}\n")


@pytest.mark.parametrize("change", ["container/__init__.py", "container/new.py"])
def test_uncommitted_change_makes_revision_dirty(checkout: Checkout, change: str) -> None:
    with (checkout.folder / change).open("a") as file:
        file.write("# changed\n")
    assert f"REVISION={checkout.head}-dirty" in checkout.build()


def test_revision_is_unknown_without_git(checkout: Checkout) -> None:
    shutil.rmtree(checkout.folder / ".git")
    assert "REVISION=unknown" in checkout.build()


def test_failing_git_fails_the_build(checkout: Checkout) -> None:
    (checkout.folder / ".git/HEAD").write_text("broken")
    assert checkout.fail().endswith("build: git can't name the revision")


def test_buildkit_builds_without_provenance(checkout: Checkout) -> None:
    checkout.build()
    assert (checkout.stub / "environment").read_text() == "buildkit=1 attestations=1\n"


def test_environment_sets_base_image_and_network(checkout: Checkout) -> None:
    checkout.environment |= {"BASE_IMAGE": "base:1", "BUILD_NETWORK": "host"}
    arguments = checkout.build()
    assert "BASE_IMAGE=base:1" in arguments and arguments[arguments.index("--network") + 1] == "host"
    assert "BASE_IMAGE=base:2" in checkout.build("--base-image", "base:2")


def test_dockerfile_sets_base_image_by_default(checkout: Checkout) -> None:
    arguments = checkout.build()
    assert "--network" not in arguments and "--secret" not in arguments
    assert not any(argument.startswith("BASE_IMAGE=") for argument in arguments)


def test_pip_indexes_become_a_secret(checkout: Checkout) -> None:
    checkout.environment |= {
        "PIP_INDEX_URL": "https://user:secret@example.com/simple",
        "PIP_EXTRA_INDEX_URL": "https://b",
    }
    arguments = checkout.build()
    assert (checkout.stub / "pip.conf").read_text() == (
        "[global]\nindex-url = https://user:secret@example.com/simple\nextra-index-url = https://b\n"
    )
    assert not any("example.com" in argument for argument in arguments)
    (source,) = (argument.partition("src=")[2] for argument in arguments if argument.startswith("id=pip_conf"))
    assert not Path(source).exists()


def test_another_index_makes_another_cache_key(checkout: Checkout) -> None:
    def key(index: str) -> str:
        checkout.environment["PIP_INDEX_URL"] = index
        return next(argument for argument in checkout.build() if argument.startswith("PIP_CONF_KEY="))

    assert key("https://a") != key("https://b")


def test_local_folders_are_not_passed_as_index(checkout: Checkout) -> None:
    checkout.environment |= {"PIP_INDEX_URL": "file:///srv/simple", "PIP_EXTRA_INDEX_URL": "/srv/simple"}
    assert "--secret" not in checkout.build()


def test_pip_conf_is_passed_unchanged(checkout: Checkout) -> None:
    file = checkout.stub / "my.conf"
    file.write_text("[global]\nindex-url = https://c\n")
    assert f"id=pip_conf,src={file}" in checkout.build("--pip-conf", str(file))
    assert checkout.fail("--pip-conf", "/nowhere") == "build: can't read /nowhere"


def test_further_options_go_to_docker(checkout: Checkout) -> None:
    assert checkout.build("--", "--no-cache", "--build-arg", "A=b c")[-4:] == [
        "--no-cache",
        "--build-arg",
        "A=b c",
        ".",
    ]


@pytest.mark.parametrize("arguments", [("--tga", "x"), ("x",)])
def test_unknown_argument_is_refused(checkout: Checkout, arguments: tuple[str, ...]) -> None:
    assert checkout.fail(*arguments).startswith(f"build: unknown argument {arguments[0]}")


def test_image_of_another_build_is_refused(checkout: Checkout) -> None:
    checkout.environment["TITLE"] = "longhaul"
    (checkout.stub / "docker").write_text(STUB.replace("s/^REVISION=//p", "s/^REVISION=.*/older/p"))
    assert "the engine holds no image longhaul of this build" in checkout.fail()


def test_own_image_must_import_torch(checkout: Checkout) -> None:
    checkout.build()
    assert not (checkout.stub / "run").exists()  # another's
    checkout.environment["TITLE"] = "longhaul"
    checkout.build()
    assert (checkout.stub / "run").read_text().endswith("longhaul /opt/longhaul/.venv/bin/python -c import torch\n")
    checkout.environment["RUN_STATUS"] = "1"
    assert checkout.fail().startswith("build: torch can't be imported in longhaul")


def test_missing_docker_client_is_named(checkout: Checkout) -> None:
    checkout.environment["DOCKER"] = "/nowhere/docker"
    assert checkout.fail().startswith("build: no Docker client: /nowhere/docker not found; install Docker")


def test_help_lists_the_options(checkout: Checkout) -> None:
    output = checkout.run("--help").stdout
    assert output.startswith("Builds the image") and "--pip-conf" in output and "set -euo" not in output
