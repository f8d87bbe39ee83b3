"""An invocation from item to result, on an engine that generates a given script."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from container.core import Completion, Item, Parameters, Text
from container.engine.sequence import FinishReason
from container.invocations.deadline import Deadline
from container.invocations.invocation import Invocation
from container.tokenization.tokenizer import Tokenizer
from testing.container.scripted_engine import END, ScriptedEngine, scripted_service


@pytest.fixture(scope="module")
def tokenizer(model_dir: str) -> Tokenizer:
    return Tokenizer.load(model_dir, trust_remote_code=False)


@pytest.fixture(scope="module")
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as workers:
        yield workers


@pytest.fixture
def complete(tokenizer: Tokenizer, workers: ThreadPoolExecutor, tmp_path: Path) -> Any:
    """Return a function that completes a prompt with the tokens of a given text, and perhaps an end token."""

    async def run(said: str, finish: FinishReason | None, **parameters: Any) -> Completion:
        script = tokenizer.encode(Text(text=said), param="said", max_tokens=100).ids
        engine = ScriptedEngine([*script, END] if finish == "stop" else script, finish)
        service = scripted_service(engine, tokenizer, workers, tmp_path)
        deadline = Deadline(arrived=time.monotonic(), timeout_s=900, source="setting")
        invocation = Invocation(service, deadline)
        item = Item(prompt=Text(text="a"), parameters=Parameters(**parameters), sample_by_default=False, param="prompt")
        invocation.attachment = attachment = await service.jobs.attach(None, "digest")
        prepared = service.preparer.prepare(item, attachment.constants.seed(0, 0))
        (completion,) = (await invocation.run(prepared, 0, 0)).completions
        invocation.close()
        invocation.release(is_answered=True)
        service.jobs.close()
        return completion

    return lambda *script, **parameters: asyncio.run(run(*script, **parameters))


def texts(completion: Completion) -> list[str]:
    assert completion.logprobs is not None
    return [token.text for token in completion.logprobs]


def test_logprobs_are_absent_unless_requested(complete: Any) -> None:
    assert complete("The sea", "length").logprobs is None


def test_each_token_has_its_log_probability(complete: Any) -> None:
    completion = complete("The sea", "length", logprobs=1)
    assert (completion.text, texts(completion)) == ("The sea", ["The", " sea"])
    assert [(token.logprob, token.top[0].text) for token in completion.logprobs] == [(-0.5, "The")] * 2


def test_end_token_is_counted_but_hidden(complete: Any) -> None:
    completion = complete("The sea", "stop", logprobs=0)
    assert (texts(completion), len(completion.token_ids)) == (["The", " sea"], 3)


def test_tokens_after_stop_string_are_not_counted(complete: Any) -> None:
    """The number of such tokens is up to chance: the same request would have another usage each time."""
    assert len(complete("The sea is. And the sky", "length", stop=(" is",)).token_ids) == 3


LATE = "The sea is" + " calm and old ships sail home under a pale moon while gulls cry over salt" * 3


@pytest.mark.parametrize("finish", ["length", None])
def test_late_tokens_after_stop_string_are_ignored(complete: Any, finish: Any) -> None:
    """Steps may be handled before the engine hears of the stop. The sequence's end may be among them, or not."""
    completion = complete(LATE, finish, stop=(" is",))
    assert (completion.text, completion.finish_reason, len(completion.token_ids)) == ("The sea", "stop", 3)


def test_tokens_behind_stop_string_are_hidden(complete: Any) -> None:
    completion = complete("The sea is. And the sky", "length", logprobs=0, stop=(" is",))
    assert (completion.text, completion.finish_reason) == ("The sea", "stop")
    assert texts(completion) == ["The", " sea"]
