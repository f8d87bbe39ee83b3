"""The scheduler: decides which sequences come in, fill the next step, and go when the KV cache is full.

It extends the library's scheduler as `batch.py` extends its manager. A newcomer is a sequence whose owner had no other
one running when it was submitted; all the rest are called others.
"""

from __future__ import annotations

from typing import Any

from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState, RequestStatus
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler

from container.engine.worker.cache_pages import (
    UNSHARED,
    BlockCounts,
    Blocks,
    CachePages,
    count,
    minus,
    shares_blocks,
    total,
)

NAME = "longhaul_fair"

_MAX_PASSED_OVER_STEPS = 3
"""Steps in a row without the oldest prompt, before it goes first."""
_MARGIN = 0.1
"""Share of the cache that stays free when a prompt comes in: with more of it less is preempted, and less runs."""


class FairScheduler(FIFOScheduler):
    """Serves newcomers first come, first served, and the others in the same way behind them.

    **In.** A prompt comes in when the cache has room for the whole of it and of all that were let in before, with a
    margin beyond for what they generate: so those within don't get stuck half done. What others hold counts as room for
    a newcomer, except for what the oldest of the others that run holds; where none of them runs, the oldest that waits
    ranks with the newcomers. So the others go on one by one, however many newcomers come.

    **Step.** Decoding rows go first, then newcomers' prompts, the least done first, so that a short one need not wait
    for a long one, then the others' prompts. The oldest prompt is not passed over for long.

    **Out.** Where the next step lacks room, others are preempted, the youngest first, then newcomers; the last sequence
    never is. They wait in the order of their age and lose nothing but time.
    """

    def __init__(self, cache: PagedAttentionCache, safety_margin: float | None, max_requests_per_batch: int) -> None:
        super().__init__(cache, _MARGIN if safety_margin is None else safety_margin, max_requests_per_batch)

    max_active: int | None = None
    """Most sequences within at a time, where each of them keeps a state; None: as many as have room in the cache."""

    leaves_no_single_token: bool = False
    """Whether a prompt's last piece has two tokens at least, where the model would take a single one for decoding."""

    def reset(self) -> None:
        super().reset()
        self._pages = CachePages(self.cache)
        self._kept: RequestState | None = None  # the oldest of the others running: preempted last
        self._chosen: list[RequestState] = []
        self._is_tight = False
        self._passed_over = 0

    def schedule_batch(
        self, token_budget: int, cache_budget: int
    ) -> tuple[list[FutureRequestState] | None, bool, int, int]:
        self._pages.free_sectors()
        others = (state for state in self.active_requests.values() if not is_newcomer(state))
        self._kept = min(others, key=_age, default=None)
        self._chosen = [] if self.block_new_requests else self._choose()
        if self.max_active is not None:
            self._chosen = self._chosen[: max(0, self.max_active - len(self.active_requests))]
        self._make_room(token_budget)
        scheduled: tuple[list[FutureRequestState] | None, bool, int, int]
        scheduled = super().schedule_batch(token_budget, cache_budget)
        return scheduled

    def _schedule_request(
        self,
        state: RequestState,
        request_tokens: list[int],
        token_budget: int,
        request_ids_to_remove_from_waiting: set[str],
    ) -> None:
        if self.leaves_no_single_token and token_budget > 2 and len(request_tokens) == token_budget + 1:
            token_budget -= 1
        super()._schedule_request(state, request_tokens, token_budget, request_ids_to_remove_from_waiting)

    def add_waiting_request(self, state: RequestState) -> None:
        super().add_waiting_request(state)
        order = self.waiting_requests_order
        if len(order) > 1 and int(order[-2]) > int(order[-1]):
            self.waiting_requests_order = type(order)(sorted(order, key=int))

    def take_out(self, state: RequestState) -> bool:
        """End a running sequence whose scores are not numbers. Return whether it is tried once more.

        Keys that are not numbers spread to whatever is computed in one piece with them, also to the tokens before them:
        so what a prompt took over from another one that begins alike may be at fault. Then it is computed anew, in
        blocks of its own.
        """
        is_tried_again = self._pages.may_be_shared(state)
        self._pages.discard(state)
        if is_tried_again:
            state.logit_processor_kwargs[UNSHARED] = True
            self._put_back(state)
        else:
            self._remove(state)
        self.block_new_requests = False
        return is_tried_again

    def _put_back(self, state: RequestState) -> None:
        """Put a running sequence back into the queue, as the library does with one that it has no room for."""
        again = state.create_equivalent_initial_request()
        self._remove(state)
        self.add_waiting_request(again)

    def _remove(self, state: RequestState) -> None:
        self.cache.free_blocks(state.request_id, no_cache=True)
        state._status = RequestStatus.FINISHED
        self.finish_request(state.request_id)

    def _infer_request_tokens(self, state: RequestState, request_ids_to_remove_from_waiting: set[str]) -> list[int]:
        if not shares_blocks(state):
            is_decoding = state.status == RequestStatus.DECODING
            return state.tokens_to_process if is_decoding else state.remaining_prefill_tokens
        tokens: list[int] = super()._infer_request_tokens(state, request_ids_to_remove_from_waiting)
        return tokens

    def _get_waiting_candidates(self) -> list[RequestState]:
        return self._chosen

    def _try_to_meet_safety_margin(self) -> bool:
        return True  # it was kept when they were chosen

    def _process_candidates(
        self, candidates: list[RequestState], *args: Any, **kwargs: Any
    ) -> tuple[list[FutureRequestState], bool, bool, int, int]:
        decoding = [state for state in candidates if state.status == RequestStatus.DECODING]
        prompts = self._in_order([state for state in candidates if state.status != RequestStatus.DECODING])
        oldest = min(prompts, key=_age, default=None)
        if self._is_tight:
            decoding.sort(key=self._rank)
        # Decoding rows may read so much of the cache that the library has no index left for a prompt.
        ahead = prompts[:1] if self._passed_over >= 2 * _MAX_PASSED_OVER_STEPS else []
        scheduled: tuple[list[FutureRequestState], bool, bool, int, int]
        scheduled = super()._process_candidates(ahead + decoding + prompts[len(ahead) :], *args, **kwargs)
        for future in scheduled[0]:
            if not shares_blocks(future.state):
                future.complete_blocks = {}
        is_served = oldest is None or any(future.state is oldest for future in scheduled[0])
        self._passed_over = 0 if is_served else self._passed_over + 1
        return scheduled

    def _in_order(self, prompts: list[RequestState]) -> list[RequestState]:
        newcomers = [state for state in prompts if is_newcomer(state)]
        newcomers.sort(key=lambda state: state.position_offset)
        ordered = newcomers + sorted((state for state in prompts if not is_newcomer(state)), key=_age)
        if ordered and self._passed_over >= _MAX_PASSED_OVER_STEPS:
            oldest = min(ordered, key=_age)
            ordered = [oldest, *(state for state in ordered if state is not oldest)]
        return ordered

    def _rank(self, state: RequestState) -> tuple[bool, int]:
        """Return the sort key for preemption: those that rank last are preempted first."""
        return (state is not self._kept and not is_newcomer(state), _age(state))

    def _choose(self) -> list[RequestState]:
        """Return those that may come in with this step, as far as its tokens go."""
        if not self.waiting_requests:
            return []
        running = list(self.active_requests.values())
        waiting = [self.waiting_requests[request_id] for request_id in self.waiting_requests_order]
        both = running + waiting
        if self._have_room(self._pages.upper_bound(len(both), sum(map(_tokens_to_come, both)))):
            return waiting
        newcomers = [state for state in waiting if is_newcomer(state)]
        others = [state for state in waiting if not is_newcomer(state)]
        if self._kept is None and others:
            newcomers = sorted([*newcomers, others.pop(0)], key=_age)
        needed = total(self._pages.needed(state, _tokens_to_come(state)) for state in running)
        chosen: list[RequestState] = []
        if newcomers:
            # What the others hold counts as room for newcomers: they are preempted where it comes to that.
            preemptible = [state for state in running if state is not self._kept and not is_newcomer(state)]
            needed = self._let_in(newcomers, needed, self._pages.held(preemptible), chosen)
            if not running and not chosen:
                return newcomers[:1]  # it has the cache for itself, so there will never be more room
        self._let_in(others, needed, {}, chosen)
        return chosen

    def _let_in(
        self, group: list[RequestState], needed: BlockCounts, reclaimable: Blocks, chosen: list[RequestState]
    ) -> BlockCounts:
        """Add to `chosen` those of the group before the first that lacks room. Return what all that are in need.

        `reclaimable` counts as room. The cheapest question comes first: most prompts have room without a look at what
        the cache has of them already, and evicting what it keeps for sharing is the last resort.
        """
        for state in group:
            with_all = total([needed, self._pages.needed(state, _tokens_to_come(state))])
            if self._have_room(minus(with_all, count(reclaimable))):
                needed = with_all
            else:
                shared = self._pages.shared(state)
                with_rest = minus(with_all, count(shared))
                missing = minus(with_rest, count(reclaimable, except_for=shared))
                if self._have_room(missing):
                    needed = with_rest
                elif not chosen and self._have_room(minus(missing, count(self._pages.cached(), except_for=shared))):
                    self._pages.evict_cached()
                    needed = minus(with_all, count(self._pages.shared(state)))  # what of it was only cached is gone
                else:
                    break
            chosen.append(state)
        return needed

    def _have_room(self, needed: BlockCounts) -> bool:
        return self._pages.have_room(needed, margin=self.safety_margin)

    def _make_room(self, token_budget: int) -> None:
        """Preempt until the cache holds the next step."""
        limit = self._pages.upper_bound(len(self.active_requests) + len(self._chosen), token_budget)
        self._is_tight = not self._pages.have_room(limit)
        if not self._is_tight or self._pages.have_room(total(self._next_step(token_budget).values())):
            return
        self._pages.evict_cached()
        running = sorted(self.active_requests.values(), key=self._rank)
        needed = self._next_step(token_budget)
        in_all = total(needed.values())
        while len(running) > 1 and not self._pages.have_room(in_all):
            last = running.pop()
            was_prompt = last.status != RequestStatus.DECODING
            self._put_back(last)
            in_all = minus(in_all, needed[last.request_id])
            if was_prompt:  # the next prompt has its share of the step
                needed = self._next_step(token_budget)
                in_all = total(needed.values())

    def _next_step(self, token_budget: int) -> dict[str, BlockCounts]:
        """Return the blocks that each sequence needs for the next step."""
        running = list(self.active_requests.values())
        decoding = [state for state in running if state.status == RequestStatus.DECODING]
        prompts = [state for state in running if state.status != RequestStatus.DECODING]
        needed = {state.request_id: self._pages.needed(state, 1) for state in decoding}
        budget = token_budget - len(decoding)
        for state in self._in_order(prompts + self._chosen):
            tokens = min(len(state.remaining_prefill_tokens), budget)
            budget -= tokens
            needed[state.request_id] = self._pages.needed(state, tokens)
        return needed


def _age(state: RequestState) -> int:
    """Return the sort key for age: ids are given in the order of submission."""
    return int(state.request_id)


def _tokens_to_come(state: RequestState) -> int:
    """Return how many tokens of its prompt are left, or 1 for its next token."""
    return 1 if state.status == RequestStatus.DECODING else len(state.remaining_prefill_tokens)


def is_newcomer(state: RequestState) -> bool:
    return bool(state.logit_processor_kwargs["newcomer"])


def register() -> None:
    """Make `scheduler_type=NAME` mean this scheduler."""
    SCHEDULER_MAPPING[NAME] = FairScheduler
