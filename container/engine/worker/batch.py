"""The continuous batch: `transformers`' manager with our attention, our sampler, and one report per step.

It extends the library by overriding and calling `super()`. Its test, `test_batch.py`, holds a digest of each overridden
method's source, so that an upgrade that changes one is noticed.
"""

from __future__ import annotations

import logging
import queue
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.continuous_api import (
    ContinuousBatchingManager,
    ContinuousBatchProcessor,
    OutputRouter,
)
from transformers.generation.continuous_batching.initialization import update_cb_config_after_cache_creation
from transformers.generation.continuous_batching.input_outputs import ContinuousBatchingIOs
from transformers.generation.continuous_batching.model_runner import infer_max_single_request_tokens
from transformers.generation.continuous_batching.offloading_manager import OffloadingManager
from transformers.generation.continuous_batching.requests import (
    GenerationOutput,
    RequestState,
    RequestStatus,
)

from container.engine.messages import Cancel, EngineConfig, EngineInfo, Failed, NewTokens, Step, Submit
from container.engine.sequence import FinishReason
from container.engine.worker import fair_scheduler
from container.engine.worker.batched_model import BatchedModel
from container.engine.worker.capacity import PAGE_TOKENS, Capacity, plan_capacity
from container.engine.worker.forward_step import ForwardStep, describe_step
from container.engine.worker.model import LoadedModel
from container.engine.worker.paged_cache import PagedCache
from container.engine.worker.sampler import Sampler
from container.engine.worker.score_guard import ScoreGuard, describe_fault
from container.engine.worker.states import SequenceStates

logger = logging.getLogger(__name__)


class _FailureRouter(OutputRouter):
    """Collects the sequences that the library fails. Finished ones are reported with their step."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: list[Failed] = []

    def deliver(self, output: GenerationOutput) -> None:
        if output.status == RequestStatus.FAILED:
            self.failed.append(Failed(int(output.request_id), output.error or "unknown error"))

    def deliver_batch(self, outputs: list[GenerationOutput]) -> None:
        for output in outputs:
            self.deliver(output)


class _Preemption(OffloadingManager):
    """The library's preemption, with a way out where it has none.

    The cache hands out sectors, each to one kind of layers. What finished and preempted sequences leave free in the
    sectors of full attention is of no use to sliding layers, and the other way round, so that even a sequence that
    fits an empty cache may be stuck as the last one running. The library gives up there, and all sequences with it.
    """

    def offload_requests(self) -> bool:
        """Preempt by the library's rules; else prefill the only running sequence anew, in an otherwise empty cache.

        Nothing else is admitted then until a sequence finishes. Returns whether there is room for the next step.
        """
        if super().offload_requests():
            return True
        scheduler = self.scheduler
        if len(scheduler.active_requests) != 1 or not scheduler.starved_requests:
            return False
        ((state, new_tokens),) = scheduler.starved_requests
        self.cache.free_blocks(state.request_id, no_cache=True)
        self.cache.pool.try_to_free_sectors()
        if not self.cache.can_store_request_tokens(state, new_tokens, dry_run=True):
            return False
        again = state.create_equivalent_initial_request()
        again.status = RequestStatus.PREFILLING
        scheduler.active_requests[state.request_id] = again
        scheduler.block_new_requests = True
        return True


class Batch(ContinuousBatchingManager):
    """Owns the running sequences and the KV cache of the engine process.

    `on_step` is called on the generation thread after every step, and when cancellations changed what is running;
    `on_crash` once, if the generation loop dies.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        settings: EngineConfig,
        *,
        on_step: Callable[[Step], None],
        on_crash: Callable[[Exception], None],
    ) -> None:
        self._on_step = on_step
        self._on_crash = on_crash
        self._steps = 0
        self._active: frozenset[str] = frozenset()
        self._last_gauges = (0, 0)
        self._cancelled: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._layout = loaded.layout
        self._states = SequenceStates(loaded.model, loaded.layout)
        fair_scheduler.register()
        super().__init__(
            model=cast(Any, BatchedModel(loaded.model, loaded.layout, self._describe_step)),
            # Each sequence brings its own stop tokens and limit; the sampler makes argmax the choice.
            generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                do_sample=False, eos_token_id=-1, max_new_tokens=1
            ),
            continuous_batching_config=_configuration(plan_capacity(loaded, settings)),
        )
        self._dtype = loaded.dtype
        self._guard = _guard(loaded, self.continuous_batching_config)
        self._has_told_fault = False
        self._sampler = Sampler(self._guard)
        self.logit_processor = cast(Any, self._sampler)
        self._failures = _FailureRouter()
        self.output_router = self._failures
        self.warmup()  # creates the cache

    def switch_to_cb_friendly_attn(self, model: Any, auto_switch_to_flash: bool = True) -> None:
        """Do nothing: the model was loaded with our attention."""

    def _create_batch_processor(self) -> ContinuousBatchProcessor:
        """Create what the library does, with a cache that has a place for each attention call, and our preemption.

        The loop begins with a new one, which takes over the memory of the cache, emptied.
        """
        config = self.continuous_batching_config
        cache = None if self.batch_processor is None else self.batch_processor.cache
        if isinstance(cache, PagedCache):
            cache.reset()
        else:
            cache = PagedCache(self._layout, config, device=self.model.device, dtype=self.model.dtype)
        self._use_prefix_sharing = cache.use_prefix_sharing
        update_cb_config_after_cache_creation(config, cache.num_blocks, cache.max_batch_tokens)
        most = config.max_requests_per_batch or 1
        scheduler = fair_scheduler.FairScheduler(cache, config.safety_margin, most)
        if self._layout.states:
            scheduler.max_active = most
            scheduler.leaves_no_single_token = any(module.decodes_otherwise for module in self._layout.states)
        processor = ContinuousBatchProcessor(
            cache=cache,
            config=self.model.config,
            generation_config=self.generation_config,
            continuous_batching_config=config,
            logit_processor=self.logit_processor,
            input_queue=self.input_queue,
            cancel_queue=self.cancel_queue,
            output_router=self.output_router,
            background_thread_status=self.background_thread_status,
            model_device=self.model.device,
            model_dtype=self.model.dtype,
            scheduler=scheduler,
            distributed_helper=self.distributed_helper,
        )
        processor.offloading_manager = _Preemption(
            cache=cache,
            scheduler=scheduler,
            cpu_offload_space_gib=config.cpu_offload_space,
            safety_threshold=config.cpu_offload_space_safety_threshold,
            compute_stream=processor.inputs_and_outputs.compute_stream,
            distributed_helper=self.distributed_helper,
        )
        return processor

    def _describe_step(self, arguments: dict[str, Any]) -> ForwardStep:
        step = describe_step(arguments, self._inputs_and_outputs.requests_in_batch)
        if self._layout.states:
            self._states.begin(step, self.processor.scheduler.active_requests.keys())
        return step

    @property
    def processor(self) -> ContinuousBatchProcessor:
        assert self.batch_processor is not None, "created by warmup()"
        return self.batch_processor

    def info(self, loaded: LoadedModel, load_seconds: float) -> EngineInfo:
        cache = self.processor.cache
        capacity = cache.num_blocks * PAGE_TOKENS
        return EngineInfo(
            model_type=loaded.config.model_type,
            device=str(loaded.device),
            dtype=str(loaded.dtype).removeprefix("torch."),
            attention=loaded.attention,
            threads=loaded.threads,
            vocab_size=loaded.config.vocab_size,
            max_model_len=loaded.max_model_len,
            length_reason=loaded.length_reason,
            kv_cache_tokens=capacity,
            max_sequence_tokens=min(loaded.max_model_len, infer_max_single_request_tokens(cache)),
            max_batch_tokens=cache.max_batch_tokens,
            max_running=self.continuous_batching_config.max_requests_per_batch or 0,
            load_seconds=load_seconds,
        )

    def try_out(self, submits: Sequence[Submit], step_tokens: int) -> dict[int, list[int]]:
        """Generate in steps of at most `step_tokens`, before the loop is started, and forget it. Returns tokens by id.

        Raises what a step raises, and RuntimeError for a sequence that fails.
        """
        report, tokens, ended = self._on_step, defaultdict[int, list[int]](list), set[int]()

        def take(step: Step) -> None:
            for new in step.tokens:
                tokens[new.id] += new.token_ids
                ended.update([new.id] if new.finish_reason else [])
            if step.failed:
                raise RuntimeError(step.failed[0].reason)

        self._on_step, self.current_batch = take, 0
        processor = self.processor
        processor.max_batch_tokens = min(step_tokens, processor.max_batch_tokens)
        for submit in submits:
            self.submit(submit)
        while len(ended) < len(submits):
            self._generation_loop_body(processor, bootstrapping=False)
        self.batch_processor = self._create_batch_processor()
        self._states.keep(())
        self._on_step, self._steps, self._active, self._last_gauges = report, 0, frozenset(), (0, 0)
        return dict(tokens)

    def submit(self, message: Submit) -> None:
        self.add_request(
            message.prompt_ids + message.output_ids,
            request_id=str(message.id),
            max_new_tokens=message.sampling.max_new_tokens - len(message.output_ids),
            eos_token_id=list(message.sampling.stop_token_ids),
            sampling=message.sampling,
            newcomer=message.newcomer,
            prompt_tokens=len(message.prompt_ids),
        )

    def cancel(self, message: Cancel) -> None:
        self._cancelled.put(str(message.id))
        self._wake_up_loop.set()

    def _generation_loop_body(self, batch_processor: ContinuousBatchProcessor, bootstrapping: bool) -> bool:
        """Run one turn of the library's loop and report it."""
        scheduler = batch_processor.scheduler
        if scheduler.block_new_requests and not scheduler.active_requests:
            # After a preemption the library admits nothing until a sequence finishes. If all that ran were
            # cancelled instead, none ever would.
            scheduler.block_new_requests = False
        # The library empties the queue of new sequences first, then that of cancellations, and forgets one whose
        # sequence it hasn't seen. Those taken here come after their sequences.
        while not self._cancelled.empty():
            self.cancel_request(self._cancelled.get())
        steps_before = self.current_batch
        goes_on: bool = super()._generation_loop_body(batch_processor, bootstrapping)
        stepped = self.current_batch != steps_before
        self._steps += stepped
        self._report(batch_processor, stepped)
        return goes_on

    def _generation_step(self) -> None:
        """Run the forward pass, and take out the sequences whose scores are not numbers: no token comes of them."""
        super()._generation_step()
        ios = self._inputs_and_outputs
        states = [future.state for future in ios.requests_in_batch if future.has_new_token]
        if faults := self._guard.faults(len(states)):
            kept = torch.tensor([row for row in range(len(states)) if row not in faults], dtype=torch.int64)
            # The library reads the tokens in the order of the sequences: what is left moves up.
            ios.output_ids[0, : len(kept)] = ios.output_ids[0, kept.to(ios.output_ids.device)]
            self._sampler.keep(kept.tolist())
            gone = {states[row].request_id for row in faults}
            ios.requests_in_batch = [future for future in ios.requests_in_batch if future.state.request_id not in gone]
            self._active -= gone  # where they are put back, it is for no lack of room
            for row, fault in faults.items():
                self._take_out(states[row], fault)

    def _take_out(self, state: RequestState, fault: str) -> None:
        """Fail the sequence, or have it computed once more where what it shares with others may be at fault."""
        scheduler = self.processor.scheduler
        assert isinstance(scheduler, fair_scheduler.FairScheduler), "it is registered above"
        if scheduler.take_out(state):
            return
        token_number = state.position_offset - state.logit_processor_kwargs["prompt_tokens"] + 1
        reason = describe_fault(fault, token_number, self._dtype)
        self._failures.failed.append(Failed(int(state.request_id), reason))
        if not self._has_told_fault:
            self._has_told_fault = True
            logger.error("a sequence is given up: %s (said once: the metrics count further ones)", reason)

    @property
    def _inputs_and_outputs(self) -> ContinuousBatchingIOs:
        ios = self.processor.inputs_and_outputs
        assert isinstance(ios, ContinuousBatchingIOs), "use_async_batching is off"
        return ios

    def _report(self, processor: ContinuousBatchProcessor, stepped: bool) -> None:
        scheduler = processor.scheduler
        active = frozenset(scheduler.active_requests)
        if self._layout.states:
            self._states.keep(active)
        preempted = len((self._active - active) & scheduler.waiting_requests.keys())
        self._active = active
        gauges = (len(active), len(scheduler.waiting_requests))
        failed, self._failures.failed = self._failures.failed, []
        if not (stepped or failed or gauges != self._last_gauges):
            return
        self._last_gauges = gauges
        cache = processor.cache
        # Blocks that are only kept for sharing count as free.
        evictable = sum(len(a.ledger.cached_blocks) * a.bytes_per_block for a in cache.cache_allocators.values())
        free = cache.compute_free_capacity(relative=False) + evictable
        in_batch = self._inputs_and_outputs.requests_in_batch if stepped else []
        with_token = [future.state for future in in_batch if future.has_new_token]
        tokens = []
        for row, state in enumerate(with_token):
            token_id = state.generated_tokens[-1]
            finish: FinishReason | None = None
            if state.status == RequestStatus.FINISHED:
                finish = "stop" if token_id in state._eos_token_ids else "length"
            scored = self._sampler.logprobs.get(row)
            tokens.append(NewTokens(int(state.request_id), [token_id], finish, [] if scored is None else [scored]))
        cache_use = 1.0 - free / (cache.num_sectors * cache.bytes_per_sector)
        self._on_step(Step(steps=self._steps, tokens=tokens, failed=failed, cache_use=cache_use, preemptions=preempted))

    def _handle_critical_error(self, error: Exception, batch_processor: ContinuousBatchProcessor | None) -> None:
        """Say why the loop is dead, and this process with it. The server has every token."""
        self._on_crash(error)


def _guard(loaded: LoadedModel, config: ContinuousBatchingConfig) -> ScoreGuard:
    guard, model = ScoreGuard(config.max_requests_per_batch or 0, loaded.device), cast(Any, loaded.model)
    # Gemma bounds its scores (https://arxiv.org/abs/2408.00118, section 2), which makes an infinite one finite.
    is_bounded = getattr(loaded.config, "final_logit_softcapping", None) is not None
    if is_bounded and model._supports_logits_to_keep():
        guard.watch(model.get_output_embeddings())
    return guard


def _configuration(capacity: Capacity) -> ContinuousBatchingConfig:
    return ContinuousBatchingConfig(
        page_size=PAGE_TOKENS,
        num_blocks=max(1, capacity.cache_tokens // PAGE_TOKENS),
        max_batch_tokens=capacity.batch_tokens,
        max_requests_per_batch=capacity.running,
        scheduler_type=fair_scheduler.NAME,
        max_blocks_per_request=0,
        use_cuda_graph=False,  # the sampler's parameters are read by Python in each forward pass
        use_async_batching=False,
        auto_switch_to_flash=False,
    )
