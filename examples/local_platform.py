"""AWS on this machine: `python -m endpoint up` for as long as a `with`. The rest of the quickstart is as for AWS."""

from __future__ import annotations

import fcntl
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from examples.terminal import Failed

ROOT = Path(__file__).resolve().parent.parent
DATA_DIR = ROOT / ".endpoint" / "quickstart"

TIME_SCALE = 30
"""Factor by which the platform waits less than AWS: for metrics, alarms and cooldowns, not for requests."""
UP_TIMEOUT_S = 60
STOP_TIMEOUT_S = 60


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def aws_environment(url: str) -> dict[str, str]:
    """Return all variables that an AWS client needs to talk to this machine instead of AWS."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@contextmanager
def platform(port: int, keep: bool) -> Iterator[None]:
    """Run `python -m endpoint up`. After a failure the end of its log is shown."""
    fail_if_in_use(DATA_DIR)
    shutil.rmtree(DATA_DIR, ignore_errors=True)
    DATA_DIR.mkdir(parents=True)
    log = DATA_DIR / "log"
    command = [sys.executable, "-m", "endpoint", "up", "--port", str(port), "--data-dir", str(DATA_DIR)]
    command += ["--time-scale", str(TIME_SCALE)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_until_up(port, process)
        yield
    except Failed:
        stop(process)
        print("\nThe end of the endpoint's log:\n", *log.read_text().splitlines()[-20:], sep="\n", file=sys.stderr)
        raise
    except BaseException:
        stop(process)
        raise
    if not keep:
        stop(process)


def fail_if_in_use(data_dir: Path) -> None:
    """Raise Failed if an earlier run with --keep is still up."""
    try:
        with (data_dir / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Failed(f"an earlier run is still up; end it with {down_command(data_dir)}") from None
    except FileNotFoundError:
        pass


def down_command(data_dir: Path) -> str:
    shown = data_dir.relative_to(ROOT) if data_dir.is_relative_to(ROOT) else data_dir
    return f".venv/bin/python -m endpoint down --data-dir {shown}"


def wait_until_up(port: int, process: subprocess.Popen[bytes]) -> None:
    started = time.monotonic()
    while True:
        waited = time.monotonic() - started
        if process.poll() is not None:
            raise Failed(f"python -m endpoint up ended with status {process.returncode}")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/_longhaul/health", timeout=5).close()
        except (OSError, urllib.error.URLError):
            if waited > UP_TIMEOUT_S:
                raise Failed(f"python -m endpoint up did not answer within {UP_TIMEOUT_S} s") from None
            time.sleep(0.1)
            continue
        print(f"python -m endpoint up: AWS's API on http://127.0.0.1:{port} after {waited:.1f} s")
        return


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
