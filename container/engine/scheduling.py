"""Which prompts fill a step: the library's order, but that newcomers come before what others have queued and running.

A newcomer is a sequence of someone who has no other one running, until it is preempted. Extends the library as
`batching.py` does.
"""

from __future__ import annotations

from collections.abc import Collection
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

    Where the cache is nearly full, or was so full that a sequence was preempted, the library admits nobody. Newcomers
    come in all the same while others' sequences run, which are preempted for them, the youngest first and never the
    last one.
    """

    def reset(self) -> None:
        super().reset()
        self._passed_over = 0
        self._newcomers_only = False
        self._ignores_margin = False

    def schedule_batch(
        self, token_budget: int, cache_budget: int
    ) -> tuple[list[FutureRequestState] | None, bool, int, int]:
        self._make_room(token_budget)
        blocked = self.block_new_requests
        self._newcomers_only, self.block_new_requests = blocked, blocked and not self._others()
        scheduled: tuple[list[FutureRequestState] | None, bool, int, int]
        scheduled = super().schedule_batch(token_budget, cache_budget)
        self.block_new_requests = blocked
        return scheduled

    def _get_waiting_candidates(self) -> list[RequestState]:
        waiting: list[RequestState] = super()._get_waiting_candidates()
        return [state for state in waiting if is_newcomer(state)] if self._newcomers_only else waiting

    def _try_to_meet_safety_margin(self) -> bool:
        return self._ignores_margin or bool(super()._try_to_meet_safety_margin())

    def _process_candidates(
        self, candidates: list[RequestState], *args: Any, **kwargs: Any
    ) -> tuple[list[FutureRequestState], bool, bool, int, int]:
        decoding = [state for state in candidates if state.status == RequestStatus.DECODING]
        decoding.sort(key=is_newcomer, reverse=True)
        prompts = [state for state in candidates if state.status != RequestStatus.DECODING]
        oldest = min(prompts, key=_age, default=None)
        prompts = self._in_order(prompts, oldest)
        scheduled: tuple[list[FutureRequestState], bool, bool, int, int] | None = None
        newcomers = [state for state in prompts if is_newcomer(state)]
        if newcomers and self._others() and not self._try_to_meet_safety_margin():
            self._ignores_margin = True
            scheduled = super()._process_candidates(decoding + newcomers, *args, **kwargs)
            self._ignores_margin = False
        if scheduled is None or not scheduled[0]:
            scheduled = super()._process_candidates(decoding + prompts, *args, **kwargs)
        is_served = oldest is None or any(future.state is oldest for future in scheduled[0])
        self._passed_over = 0 if is_served else self._passed_over + 1
        return scheduled

    def _others(self) -> list[RequestState]:
        """Those running that are no newcomers, the oldest first."""
        return sorted((state for state in self.active_requests.values() if not is_newcomer(state)), key=_age)

    def _make_room(self, token_budget: int) -> None:
        """Preempt others until the cache holds what decodes and the newcomers, of those that wait the next one."""
        victims = self._others()[1:]
        waiting = (self.waiting_requests[request_id] for request_id in self.waiting_requests_order)
        arriving = list(filter(is_newcomer, waiting))[:1]
        if arriving and not self._fits(arriving, token_budget, without=victims):
            arriving = []  # newcomers before it hold too much
        if not (arriving or any(map(is_newcomer, self.active_requests.values()))):
            return
        while victims and not self._fits(arriving, token_budget):
            self._preempt(victims.pop())

    def _fits(self, arriving: list[RequestState], token_budget: int, without: Collection[RequestState] = ()) -> bool:
        """May evict pages that are kept only for sharing."""
        gone = {state.request_id for state in without}
        left = [state for state in self.active_requests.values() if state.request_id not in gone]
        running = [state for state in left if state.status == RequestStatus.DECODING or is_newcomer(state)]
        freed = [{kind: -count for kind, count in self._held(state).items()} for state in without]
        blocks = freed + [self._blocks(state, token_budget) for state in running + arriving]
        if self.cache.count_storable_requests(blocks) == len(blocks):
            return True
        self.cache.evict_cached_blocks()
        self.cache.pool.try_to_free_sectors()
        return bool(self.cache.count_storable_requests(blocks) == len(blocks))

    def _held(self, state: RequestState) -> dict[str, int]:
        return {
            kind: len(allocator.block_table.get(state.request_id, ()))
            for kind, allocator in self.cache.cache_allocators.items()
        }

    def _blocks(self, state: RequestState, token_budget: int) -> dict[str, int]:
        """What it needs of each kind of layers' cache for one step."""
        is_decoding = state.status == RequestStatus.DECODING
        tokens = 1 if is_decoding else min(len(state.remaining_prefill_tokens), token_budget)
        return {
            kind: allocator.needs_new_blocks(state.request_id, state.current_len(), tokens)
            for kind, allocator in self.cache.cache_allocators.items()
        }

    def _preempt(self, state: RequestState) -> None:
        """As the library does where it starves."""
        again = state.create_equivalent_initial_request()
        self.cache.free_blocks(state.request_id, no_cache=True)
        state._status = RequestStatus.FINISHED
        self.finish_request(state.request_id)
        self.add_waiting_request(again)
        self.block_new_requests = True

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
    was_preempted = state._true_initial_tokens > 0
    return bool(state.logit_processor_kwargs["newcomer"]) and not was_preempted


def register() -> None:
    """Make `scheduler_type=NAME` mean this scheduler."""
    SCHEDULER_MAPPING[NAME] = FairScheduler
