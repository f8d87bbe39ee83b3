"""Inputs that a simulation doesn't vary: the platform's delays, cold starts, prices. Their examples are labelled."""

from __future__ import annotations

from dataclasses import dataclass, field


class UnusableInputs(Exception):
    """Something given can't be simulated; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStart:
    """Seconds from the moment that an instance is asked for until it serves, in three parts that follow one another."""

    provisioning_s: float
    """Seconds until the machine is there. It isn't paid for until then."""
    image_s: float
    """Seconds to pull the image and start the container."""
    model_s: float
    """Seconds to load the model, until /ping answers with 200."""

    @property
    def total_s(self) -> float:
        return self.provisioning_s + self.image_s + self.model_s


COLD_STARTS = {
    "quick": ColdStart(provisioning_s=120, image_s=60, model_s=120),
    "slow": ColdStart(provisioning_s=120, image_s=267, model_s=138),
    "worst": ColdStart(provisioning_s=400, image_s=350, model_s=200),
}
"""Examples. The sums are published measurements: about 300 s for small images, 525 s for an 8B model in a 17 GB image
(AWS's own, of which image caching saves 267 s), up to 950 s for an image of 10 GB. How they are parted is our guess."""

PRICES_USD_PER_HOUR = {
    "ml.g4dn.xlarge": 0.736,
    "ml.g5.xlarge": 1.408,
    "ml.g5.2xlarge": 1.515,
    "ml.g6.xlarge": 1.127,
    "ml.g6.2xlarge": 1.222,
    "ml.g6e.xlarge": 2.61,
    "ml.g6e.2xlarge": 2.80,
    "ml.g5.12xlarge": 7.09,
}
"""Examples of hosting prices on demand in us-east-1, as published sources agree; the price list itself was not read.
Prices change: give yours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """The pace of AWS's platform. The defaults are assumptions; that all is done each minute is documented."""

    metric_delay_s: float = 60.0
    """Seconds from the end of a metric's minute until alarms see its value."""
    evaluation_offset_s: float = 30.0
    """Seconds after a minute's begin at which the alarms are evaluated, each minute."""
    scale_in_s: float = 60.0
    """Seconds for which an endpoint is `Updating` when instances are taken away."""
    ttl_s: float = 21600.0
    """RequestTTLSeconds: a request that waits longer expires."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """One simulation's inputs, but for the requests and the policies."""

    concurrency: int = 4
    """MaxConcurrentInvocationsPerInstance: requests that an instance works on at once."""
    slowdown: float = 0.0
    """Share by which each further request on an instance makes a request slower: 0.1 is 10 % for each neighbour."""
    cold_start: ColdStart = COLD_STARTS["slow"]
    usd_per_hour: float = PRICES_USD_PER_HOUR["ml.g5.xlarge"]
    has_journal: bool = True
    """Whether another instance continues what an ended one left unfinished; otherwise its work is done again."""
    initial_instances: int = 1
    """Instances at the start: an endpoint is always created with at least one."""
    platform: Platform = field(default_factory=Platform)
