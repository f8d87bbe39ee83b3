"""One document from its body to its answer: a small one here, a large one with a reader of its own."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

from container.core import Call
from container.dialects.document import RequestHead, read_call
from container.disk.ordered_spool import close_soon
from container.disk.spool import Spool
from container.invocations.invocation import Invocation, run_in_thread
from container.invocations.service import Service
from container.tokenization.preparer import Prepared


async def answer_small(
    service: Service, invocation: Invocation, head: RequestHead, body: bytes, digest: str
) -> tuple[bytes, str]:
    """Return the answer and its content type. `digest` is the request's. Raises RequestError."""
    async with invocation.before_deadline():
        invocation.attachment = await service.jobs.attach(head.job, digest)
        constants = invocation.attachment.constants

        def read() -> tuple[Call, list[Prepared]]:
            call = read_call(head, body)
            # All items are checked before any runs: a bad one must not cost the others' work.
            return call, [
                service.preparer.prepare(item, constants.seed(0, index), constants.clock)
                for index, item in enumerate(call.items)
            ]

        call, prepared = await run_in_thread(service.workers, read)
    invocation.items = len(prepared)
    invocation.max_completion_tokens = sum(s.max_new_tokens for item in prepared for s in item.samplings)
    results = await invocation.run_all(prepared)
    render = partial(call.render, results, service.name, service.deadline_reason)
    return await run_in_thread(service.writers, render), call.content_type


async def answer_large(
    service: Service, invocation: Invocation, head: RequestHead, body: Spool, digest: str, spool_dir: str
) -> tuple[Spool, str]:
    """Return the answer's file, which the caller closes, and its content type. Raises RequestError."""
    invocation.body_bytes = body.size
    answer = Spool(spool_dir)
    try:
        async with AsyncExitStack() as stack:
            async with invocation.before_deadline():
                invocation.attachment = attachment = await service.jobs.attach(head.job, digest)
                reading = service.readers.read(head, body, answer, attachment.constants)
                reader = await stack.enter_async_context(reading)
            invocation.items = reader.opened.items
            await invocation.run_read(reader)
            content_type = await reader.render()
    except BaseException:
        close_soon(answer)
        raise
    return answer, content_type
