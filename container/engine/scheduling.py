"""Which prompts fill a step: the library's order, but that newcomers come before what others have queued.

A newcomer is a sequence of someone who has no other one running. Extends the library as `batching.py` does.
"""

from __future__ import annotations

from typing import Any

from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState, RequestStatus
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler

NAME = "longhaul_fair"

_PATIENCE_STEPS = 3
"""For how many steps in a row the oldest prompt may be passed over."""


class FairScheduler(FIFOScheduler):
    """Decoding rows first, then newcomers' prompts, then the others' in the library's order.

    Of newcomers, the one goes first of whose prompt the least is done, so that a short prompt does not wait for a long
    one. The oldest prompt, a newcomer's or not, is never passed over for long: neither a long one by ever more short
    ones, nor a batch by ever more newcomers.
    """

    def reset(self) -> None:
        super().reset()
        self._passed_over = 0

    def _process_candidates(
        self, candidates: list[RequestState], *args: Any, **kwargs: Any
    ) -> tuple[list[FutureRequestState], bool, bool, int, int]:
        decoding = [state for state in candidates if state.status == RequestStatus.DECODING]
        prompts = [state for state in candidates if state.status != RequestStatus.DECODING]
        oldest = min(prompts, key=_age, default=None)
        scheduled: tuple[list[FutureRequestState], bool, bool, int, int]
        scheduled = super()._process_candidates(decoding + self._in_order(prompts, oldest), *args, **kwargs)
        is_served = oldest is None or any(future.state is oldest for future in scheduled[0])
        self._passed_over = 0 if is_served else self._passed_over + 1
        return scheduled

    def _in_order(self, prompts: list[RequestState], oldest: RequestState | None) -> list[RequestState]:
        first = [oldest] if oldest is not None and self._passed_over >= _PATIENCE_STEPS else []
        rest = [state for state in prompts if not first or state is not oldest]
        newcomers = [state for state in rest if is_newcomer(state)]
        newcomers.sort(key=lambda state: state.position_offset)
        return first + newcomers + [state for state in rest if not is_newcomer(state)]


def _age(state: RequestState) -> int:
    """Ids are given in the order of submission."""
    return int(state.request_id)


def is_newcomer(state: RequestState) -> bool:
    newcomer: bool = state.logit_processor_kwargs["newcomer"]
    return newcomer


def register() -> None:
    """Make `scheduler_type=NAME` mean this scheduler."""
    SCHEDULER_MAPPING[NAME] = FairScheduler
