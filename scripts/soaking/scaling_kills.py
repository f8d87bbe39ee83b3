"""A cycle of scaling whose gateway is killed again and again, compared with an undisturbed one."""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from testing.endpoint.endpoint_up import EndpointUp, Sent
from testing.endpoint.scaling import Scaling
from testing.server import TIMEOUT_S, eventually

from .gateway_kills import GatewayKills, Moment, draw_moments

T = TypeVar("T")

TIME_SCALE = "60"
HELD = 12
"""Requests in containers: three instances' work."""
CONCURRENCY = 4
QUICK = 20
"""Requests that are sent, and answered at once, while the endpoint has instances to spare."""
QUICK_INTERVAL_S = 0.5
_CONTAINER = "scripted_container.py"


def soak(options: argparse.Namespace, faults: list[str]) -> dict[str, Any]:
    undisturbed = _play({}, faults)
    draw = random.Random(f"{options.seed} scaling")
    moments = draw_moments(draw, undisturbed["durations"], options.kills)
    disturbed = _play(moments, faults)
    for name in ("capacity", "left"):
        if disturbed[name] != undisturbed[name]:
            faults.append(f"{name}: {disturbed[name]}, undisturbed {undisturbed[name]}")
    return {"undisturbed": undisturbed, "disturbed": disturbed}


def _play(moments: dict[str, list[Moment]], faults: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="longhaul-soak-") as name:
        up = EndpointUp(Path(name), "--time-scale", TIME_SCALE)
        try:
            cycle = Cycle(up, moments, Path(name))
            result = cycle.play()
        except BaseException:
            print(up.log()[-5000:])
            raise
        finally:
            up.close()
        faults += cycle.faults
    print(f"{len(result['kills'])} kills: {'; '.join(result['kills'])}" if moments else "undisturbed")
    print(f"{result['requests']} requests; capacities {result['capacities']}; {result['durations']}", flush=True)
    return result


class Cycle:
    """One endpoint from its policies to its deletion."""

    def __init__(self, up: EndpointUp, moments: dict[str, list[Moment]], directory: Path) -> None:
        self.faults: list[str] = []
        self._up = up
        self._scaling = Scaling(up, "e")
        self._kills = GatewayKills(up, moments, self._is_changing)
        self._directory = directory
        self._sent: dict[bytes, Sent] = {}
        """Accepted requests by their bodies."""

    def play(self) -> dict[str, Any]:
        """Return what became of it; `faults` has what is wrong."""
        self._up.make_places()
        self._up.make_endpoint("e")
        for name, work in {
            "set up": self._set_up,
            "to zero": lambda: self._wait_for(0),
            "wake": self._wake,
            "out": self._scale_out,
            "in": self._scale_in,
            "to zero again": self._scale_to_zero,
        }.items():
            with self._kills.phase(name):
                work()
            self._check_instances(name)
        capacity = self._scaling.capacity()
        capacities = self._check_activities()
        self._check_requests()
        with self._kills.phase("tear down"):
            self._tear_down()
        return {
            "capacity": capacity,
            "capacities": capacities,
            "left": self._left(),
            "requests": len(self._sent),
            "kills": self._kills.done,
            "durations": {name: round(seconds, 2) for name, seconds in self._kills.durations.items()},
        }

    # The phases

    def _set_up(self) -> None:
        insist(lambda: self._scaling.put_recommended(max_capacity=3, concurrency=CONCURRENCY))

    def _wake(self) -> None:
        self._hold("first", 1)
        self._wait_for(1)

    def _scale_out(self) -> None:
        self._hold("others", HELD - 1)
        self._wait_for(3)

    def _scale_in(self) -> None:
        sending = threading.Thread(target=self._send_quick)
        (self._directory / "others").touch()
        sending.start()
        self._wait_for(1)
        sending.join()

    def _scale_to_zero(self) -> None:
        (self._directory / "first").touch()
        self._wait_for(0)

    def _tear_down(self) -> None:
        alarms = [name for name in insist(self._scaling.alarms) if name.startswith("e-")]
        insist(lambda: self._up.client("cloudwatch").delete_alarms(AlarmNames=alarms))
        insist(self._delete_endpoint)
        eventually(lambda: insist(lambda: self._up.client("sagemaker").list_endpoints()["Endpoints"]) == [])

    def _delete_endpoint(self) -> None:
        try:
            self._up.client("sagemaker").delete_endpoint(EndpointName="e")
        except ClientError as error:  # of a call before this one, which a kill cut off
            if "Could not find" not in str(error) and "Cannot update in-progress" not in str(error):
                raise

    # Requests

    def _hold(self, gate: str, count: int) -> None:
        """Send requests that containers hold until there is a file. No call is cut, so that there are no more."""
        for number in range(count):
            body = f"{gate} {number}".encode()
            with self._kills.quiet:
                self._sent[body] = self._up.submit("e", f"wait:{self._directory / gate}", body=body)

    def _send_quick(self) -> None:
        pause = threading.Event()
        for number in range(QUICK):
            body = f"quick {number}".encode()
            self._sent[body] = insist(lambda body=body: self._up.submit("e", body=body))  # type: ignore[misc]
            pause.wait(QUICK_INTERVAL_S)

    # What is seen

    def _is_changing(self) -> bool:
        try:
            return self._scaling.capacity()[0] == "Updating"
        except (BotoCoreError, ClientError):
            return False

    def _wait_for(self, instances: int) -> None:
        try:
            eventually(lambda: insist(self._scaling.capacity) == ("InService", instances, instances))
        except AssertionError:
            raise AssertionError(f"not {instances} instances\n{insist(self._scaling.story)}") from None

    def _check_instances(self, phase: str) -> None:
        """Check that the instances' processes are those that the endpoint tells, a while after the last change."""

        def are_right() -> bool:
            return self._instances() == self._scaling.capacity()[2]

        try:
            eventually(are_right)
        except AssertionError:
            self.faults.append(f"{phase}: {self._instances()} processes, {self._scaling.capacity()}")

    def _instances(self) -> int:
        return sum(command.endswith(_CONTAINER) for command in self._up.commands())

    def _check_activities(self) -> list[str]:
        """Check that all have ended. Returns the capacities that were set, in order."""
        try:
            eventually(lambda: all("EndTime" in activity for activity in self._scaling.activities()))
        except AssertionError:
            self.faults.append(f"an activity has no end:\n{self._scaling.story()}")
        activities = self._scaling.activities()
        self.faults += [f"{each['StatusCode']}: {each}" for each in activities if each["StatusCode"] != "Successful"]
        return [
            each["Description"].removeprefix("Setting desired instance count to ").strip(".") for each in activities
        ]

    def _check_requests(self) -> None:
        for body, sent in self._sent.items():
            outputs = [output["body"] for output in sent.ended().outputs()]
            if outputs != [body] or sent.failures():
                self.faults.append(f"{body!r}: outputs {outputs}, failures {sent.failures()}")
            try:
                if sent.notice()["invocationStatus"] != "Completed":
                    self.faults.append(f"{body!r}: {sent.notice()}")
            except AssertionError:
                self.faults.append(f"{body!r} has no notification")

    def _left(self) -> dict[str, Any]:
        """Return what there is after the endpoint's deletion: nothing of it should be."""
        eventually(lambda: not self._instances())
        targets = self._scaling.client.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
        return {"alarms": self._scaling.alarms(), "targets": targets, "instances": self._instances()}


def insist(call: Callable[[], T]) -> T:
    """Call until there is an answer: no gateway listens for a while after a kill, and it may come amid a call."""
    found: list[T] = []

    def answers() -> bool:
        try:
            found.append(call())
        except BotoCoreError:
            return False
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500:
                raise
            return False
        return True

    eventually(answers, TIMEOUT_S)
    return found[0]
