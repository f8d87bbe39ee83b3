"""Settings: what the command line says, and what AWS leaves open."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
_FILE = "settings.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Read once by `__main__`. Times are seconds of the platform's clock, which `time_scale` speeds up."""

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 4566
    backend: str = "embedded"
    """Source of S3, SNS, SQS, STS, IAM, ECR, Logs and CloudWatch: "embedded" or the URL of another AWS."""
    region: str = "us-east-1"
    account: str = "000000000000"
    time_scale: float = 1.0
    serve: tuple[str, ...] = field(default=(str(ROOT / "serve"),))
    """Command that starts a container's process."""
    runner: Literal["process", "docker", "podman"] = "process"
    """Runner of containers: processes of this machine, or the engine of that client."""
    limits: bool = False
    """Whether an engine's containers get no more processors and memory than their instance type has."""
    pull: Literal["never", "missing"] = "never"
    """Images that an engine may fetch from a registry."""
    record_scaling: str | None = None
    """File to which each scaling decision is appended with all that went into it, for `scripts/simulate`."""

    # AWS documents none of these: users may choose otherwise.
    concurrency: int = 4
    """Concurrent invocations per instance if ClientConfig doesn't say."""
    on_no_answer: Literal["fail", "redeliver"] = "fail"
    """Choice for a request whose container died, closed the connection, or gave it up with 503 as it was ended."""
    forward_inference_id: bool = True
    """Whether the container gets X-Amzn-SageMaker-Inference-Id."""
    failed_notice_location: bool = False
    """Whether a failure's notification has responseParameters, with the location of the failure object. Published ones
    from before there were failure objects have none."""
    unhealthy_pings: int = 3
    """Pings missed in a row before an instance is replaced."""
    ping_every_s: float = 2.0

    start_attempts: int = 3
    """Times that a container's process is started before its endpoint fails. A process that ends while it starts is
    started again, until the start-up window (ContainerStartupHealthCheckTimeoutInSeconds) is over."""
    min_window_s: float = 60.0
    """Minimum wall-clock seconds of the start-up and download windows: `time_scale` doesn't speed up a container."""
    stop_grace_s: float = 30.0
    """Wall-clock seconds from SIGTERM to SIGKILL. AWS documents this one."""
    pass_environment: tuple[str, ...] = ()
    """Variables of the gateway's environment that instances get (HTTPS_PROXY, say) besides PATH, HOME and the like."""
    instance_log_bytes: int = 64 * 2**20
    """Bytes of an instance's output kept on disk; older output that couldn't be sent to CloudWatch Logs is dropped."""

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def save(self) -> None:
        """Write them for `down`, which must know the settings of a killed `up`."""
        new = self.data_dir / f"{_FILE}.new"
        new.write_text(json.dumps(asdict(self), default=str))
        new.replace(self.data_dir / _FILE)

    @classmethod
    def load(cls, data_dir: Path) -> Settings:
        """Read them. Raises OSError where no `up` was, ValueError or TypeError where another version's was."""
        values = json.loads((data_dir / _FILE).read_text())
        tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**values | tuples | {"data_dir": data_dir})

    def window_s(self, platform_s: float) -> float:
        """Return the wall-clock seconds that a container gets for work of its own."""
        return max(self.real_s(platform_s), min(platform_s, self.min_window_s))

    def real_s(self, platform_s: float) -> float:
        """Return the wall-clock seconds for seconds of the platform's own waiting (windows, TTL, periods)."""
        return platform_s / self.time_scale
