"""Which prompts fill a step: the library's order, but that newcomers come before what others have queued.

A newcomer is a sequence of someone who has no other one running. Extends the library as `batching.py` does.
"""

from __future__ import annotations

from typing import Any

from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState, RequestStatus
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler

NAME = "longhaul_fair"


class FairScheduler(FIFOScheduler):
    """Decoding rows first, then newcomers' prompts, then the others' in their order.

    Of newcomers, in one step the one goes first of whose prompt the least is done, so that a short prompt does not wait
    for a long one; in the next step the oldest does, so that the long one is not kept waiting by ever more short ones.
    """

    def reset(self) -> None:
        super().reset()
        self._oldest_first = False

    def _process_candidates(
        self, candidates: list[RequestState], *args: Any, **kwargs: Any
    ) -> tuple[list[FutureRequestState], bool, bool, int, int]:
        ordered = self._in_order(candidates)
        scheduled: tuple[list[FutureRequestState], bool, bool, int, int]
        scheduled = super()._process_candidates(ordered, *args, **kwargs)
        return scheduled

    def _in_order(self, candidates: list[RequestState]) -> list[RequestState]:
        self._oldest_first = not self._oldest_first
        decoding = [state for state in candidates if state.status == RequestStatus.DECODING]
        prompts = [state for state in candidates if state.status != RequestStatus.DECODING]
        newcomers = [state for state in prompts if is_newcomer(state)]
        if self._oldest_first:
            newcomers.sort(key=lambda state: int(state.request_id))
        else:
            newcomers.sort(key=lambda state: state.position_offset)
        return decoding + newcomers + [state for state in prompts if not is_newcomer(state)]


def is_newcomer(state: RequestState) -> bool:
    newcomer: bool = state.logit_processor_kwargs["newcomer"]
    return newcomer


def register() -> None:
    """Make `scheduler_type=NAME` mean this scheduler."""
    SCHEDULER_MAPPING[NAME] = FairScheduler
