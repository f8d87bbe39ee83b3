"""One document from its body to its answer: a small one here, a large one with a reader of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from starlette.responses import Response, StreamingResponse

from container.core import Call, Seeds
from container.dialects.document import RequestHead, read_call
from container.disk.spool import OrderedSpool, Spool, close_soon
from container.invocations.invocation import Invocation, Service
from container.reader.messages import ReadDocument
from container.tokenization.preparer import Prepared


async def answer_small(
    service: Service, invocation: Invocation, head: RequestHead, body: bytes, seeds: Seeds
) -> Response:
    def read() -> tuple[Call, list[Prepared]]:
        call = read_call(head, body)
        # All items are checked before any runs: a bad one must not cost the others' work.
        return call, [service.preparer.prepare(item, seeds.seed(0, index)) for index, item in enumerate(call.items)]

    async with invocation.before_deadline():
        call, prepared = await invocation.in_worker(read)
    invocation.items = len(prepared)
    invocation.max_completion_tokens = sum(s.max_new_tokens for one in prepared for s in one.samplings)
    results = await invocation.run_all(prepared)
    answer = await invocation.in_writer(lambda: call.render(results, service.name))
    return Response(answer, media_type=call.content_type)


async def answer_large(
    service: Service, invocation: Invocation, head: RequestHead, body: Spool, seeds: Seeds, spool_dir: str
) -> Response:
    answer = Spool(spool_dir)
    try:
        async with AsyncExitStack() as stack:
            async with invocation.before_deadline():
                reader = await stack.enter_async_context(service.readers.read(ReadDocument(head), body, answer, seeds))
            invocation.items = reader.opened.items
            await invocation.run_read(reader)
            content_type = await reader.render()
    except BaseException:
        close_soon(answer)
        raise
    return spooled_response(answer, content_type)


def spooled_response(answer: Spool | OrderedSpool, content_type: str) -> Response:
    """Closes the spool when it is sent."""
    headers = {"content-length": str(answer.size)}
    return StreamingResponse(_send_and_close(answer), media_type=content_type, headers=headers)


async def _send_and_close(answer: Spool | OrderedSpool) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.chunks():
            yield chunk
    finally:
        close_soon(answer)
