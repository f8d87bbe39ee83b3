"""A record of decisions with all that went into them: a JSON object a line.

`scripts/simulate` reads such a file and decides anew, so that its decisions can be compared with the endpoint's. The
fields of a line are those of `Record`; times are seconds since the epoch, durations are wall-clock seconds.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from endpoint.autoscaling.decisions import (
    Cooldown,
    Decision,
    NotScaled,
    Policy,
    Step,
    StepPolicy,
    Target,
    TrackingPolicy,
    Trigger,
)

T = TypeVar("T")

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One call of `decide`: its arguments, its result, and the target's resource id."""

    resource_id: str
    now: float
    target: Target
    triggers: tuple[Trigger, ...]
    cooldowns: Mapping[str, Cooldown]
    decision: Decision


class Recorder:
    """Appends records to a file, which it makes. A file that can't be written is told in the log only."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def record(self, record: Record) -> None:
        """Append a record."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(encode(record) + "\n")
        except OSError as error:
            _LOG.error("The decision could not be recorded in %s: %s", self._path, error)


def read_records(path: Path) -> Iterator[Record]:
    """Read a file of records. Raises OSError, and ValueError for a line that is no record."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield decode(line)
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}, line {number}: {error!r}") from error


def encode(record: Record) -> str:
    """Return a record as a line of JSON, without its end."""
    return json.dumps(asdict(record))


def decode(line: str) -> Record:
    """Read a line of JSON. Raises ValueError, TypeError or KeyError if it is no record."""
    values = json.loads(line)
    return Record(
        resource_id=values["resource_id"],
        now=values["now"],
        target=Target(**values["target"] | {"policies": _each(_policy, values["target"]["policies"])}),
        triggers=_each(_trigger, values["triggers"]),
        cooldowns=_cooldowns(values["cooldowns"]),
        decision=_decision(values["decision"]),
    )


def _each(read: Callable[[dict[str, Any]], T], values: list[dict[str, Any]]) -> tuple[T, ...]:
    return tuple(read(value) for value in values)


def _policy(values: dict[str, Any]) -> Policy:
    if "steps" not in values:
        return TrackingPolicy(**values)
    return StepPolicy(**values | {"steps": tuple(Step(**step) for step in values["steps"])})


def _trigger(values: dict[str, Any]) -> Trigger:
    return Trigger(**values | {"policy": _policy(values["policy"]), "values": tuple(values["values"])})


def _not_scaled(values: dict[str, Any]) -> NotScaled:
    return NotScaled(**values | {"trigger": _trigger(values["trigger"])})


def _cooldowns(values: dict[str, Any]) -> dict[str, Cooldown]:
    return {name: Cooldown(**cooldown) for name, cooldown in values.items()}


def _decision(values: dict[str, Any]) -> Decision:
    return Decision(
        capacity=values["capacity"],
        trigger=_trigger(values["trigger"]) if values["trigger"] else None,
        not_scaled=_each(_not_scaled, values["not_scaled"]),
        cooldowns=_cooldowns(values["cooldowns"]),
    )
