"""Recovery from an engine's death, which costs a pause: with real engines, a real model, and real kills."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from container.engine.messages import EngineConfig, Step
from container.engine.sequence import EngineError, Sampling, Sequence
from container.engine.supervisor.crash_budget import CrashBudget
from container.engine.supervisor.engine_client import EngineClient
from testing.exactness import Reference
from testing.server import Server, eventually
from testing.tiny_models import TinyModel, random_prompt

AssertExact = Callable[..., None]
Start = Callable[..., Server]

PENALTIES = {"repetition_penalty": 1.1, "presence_penalty": 0.3, "frequency_penalty": 0.2}
STOPPED = {"stop_token_ids": tuple(range(30)), "min_new_tokens": 20}
SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"logprobs": 3},
    PENALTIES,
    STOPPED,
    {"temperature": 0.9, "seed": 1},
    {"temperature": 1.3, "seed": 2, "top_p": 0.9, "logprobs": 0},
    PENALTIES | STOPPED | {"temperature": 0.8, "seed": 3},
]


async def generate(model_dir: str, kill_at: list[int]) -> list[Sequence]:
    """Run two sequences of each sampling in one batch. Kill the engine each time that so many tokens have come."""
    ready, ended, kills, tokens = asyncio.Event(), asyncio.Event(), list(kill_at), 0
    failed: list[EngineError] = []

    def count(step: Step) -> None:
        nonlocal tokens
        tokens += sum(len(new.token_ids) for new in step.tokens)
        if kills and tokens >= kills[0]:
            del kills[0]
            assert client.pid is not None
            os.kill(client.pid, signal.SIGKILL)
        if not client.sequences:
            ended.set()

    config = EngineConfig(model_dir=model_dir, threads=1, kv_cache_tokens=4096, max_batch_tokens=64)
    client = EngineClient(
        config,
        stall_timeout_s=60,
        budget=CrashBudget(first_delay_s=0.01),
        on_change=ready.set,
        on_step=count,
    )
    client.start()
    try:
        await ready.wait()
        sequences = [
            Sequence(
                array("I", random_prompt(20 + 7 * number)),
                Sampling(**({"max_new_tokens": 60 + number} | SAMPLINGS[number % len(SAMPLINGS)])),
                owner=None,
                on_tokens=lambda new: None,
                on_error=failed.append,
            )
            for number in range(2 * len(SAMPLINGS))
        ]
        for sequence in sequences:
            client.submit(sequence)
        async with asyncio.timeout(100):
            await ended.wait()
    finally:
        await client.stop()
    assert not failed and not kills
    return sequences


def test_batch_of_killed_engine_equals_undisturbed_one(tiny: TinyModel, assert_exact: AssertExact) -> None:
    undisturbed = asyncio.run(generate(tiny(), []))
    disturbed = asyncio.run(generate(tiny(), kill_at=[14, 120, 500]))
    prompts = [one.prompt_ids.tolist() for one in undisturbed]
    outputs, due = ([one.output_ids for one in run] for run in (disturbed, undisturbed))
    assert_exact(Reference(tiny()), prompts, outputs, due)
    assert [one.finish_reason for one in disturbed] == [one.finish_reason for one in undisturbed]
    assert {one.finish_reason for one in disturbed} == {"stop", "length"}
    for one, other in zip(disturbed, undisturbed, strict=True):
        if one.output_ids == other.output_ids:
            assert [each.logprob for each in one.logprobs] == pytest.approx(
                [each.logprob for each in other.logprobs], abs=1e-3
            )
            assert len(one.logprobs) == (0 if one.sampling.logprobs is None else len(one.output_ids))


# The whole server

PROMPTS = ["The sea is", "The sky is", "Once upon a time", "A"]


def lines() -> list[dict[str, Any]]:
    whole = {"max_tokens": 80, "ignore_eos": True}
    ways: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 0, "logprobs": 2},
        {"temperature": 0.8, "seed": 4, "n": 3},
        {"temperature": 0.7, "seed": 5, "stop": ["e", "a"], "min_tokens": 50},
        {"temperature": 0, "presence_penalty": 0.5, "repetition_penalty": 1.1},
    ]
    return [{"prompt": prompt} | whole | way for way in ways for prompt in PROMPTS]


def without_names(answers: list[Any]) -> list[Any]:
    """Return what is the same in every run: an answer's id and time are its own."""
    return [[choice | {"logprobs": _tokens(choice)} for choice in answer["choices"]] for answer in answers]


def _tokens(choice: dict[str, Any]) -> Any:
    return choice["logprobs"] and choice["logprobs"]["tokens"]


def reaches(server: Server, metric: str, value: float) -> None:
    eventually(lambda: server.metric(metric) >= value)


def test_file_of_four_engines_equals_undisturbed_one(start: Start) -> None:
    server = start().wait_until_ready()
    undisturbed = server.ask_lines(list(lines()))
    body = "".join(json.dumps(line) + "\n" for line in lines()) + "\n"  # a line more: another job
    before = server.metric("longhaul_generation_tokens_total")
    answer = server.post_soon(content=body, headers={"content-type": "application/jsonlines"})
    for tokens in (60, 500, 1000):
        reaches(server, "longhaul_generation_tokens_total", before + tokens)
        server.kill_engine()
    assert answer.result().status_code == 200
    disturbed = [json.loads(line) for line in answer.result().text.splitlines()]
    pairs = zip(without_names(disturbed), without_names(undisturbed), strict=True)
    assert sum(one != other for one, other in pairs) <= 1, "but for one tie"
    assert server.metric("longhaul_engine_restarts_total") == 3


ABORTS, RAISES = 4242, 4243
HOOK = """
import resource, sys

if "container.engine.worker.process" in sys.orig_argv:
    import os
    from container.engine.worker.sampler import Sampler

    prepare = Sampler.prepare_tensor_args

    def prepare_unless_poisoned(self, requests_in_batch, arg_storage):
        for future in requests_in_batch:
            state = future.state
            prompt_ids = state.initial_tokens[: state.logit_processor_kwargs["prompt_tokens"]]
            if ABORTS in prompt_ids:
                os.abort()
            if RAISES in prompt_ids:
                raise RuntimeError("poisoned")
        return prepare(self, requests_in_batch, arg_storage)

    Sampler.prepare_tensor_args = prepare_unless_poisoned
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
"""


def test_prompts_that_kill_the_engine_fail_alone(start: Start, tmp_path: Path) -> None:
    # Python imports a module of this name at its start.
    (tmp_path / "sitecustomize.py").write_text(f"{ABORTS = }\n{RAISES = }\n{HOOK}")
    server = start(PYTHONPATH=tmp_path).wait_until_ready()
    items = [{"prompt": [100 + number] * 3, "max_tokens": 60, "temperature": 0} for number in range(16)]
    undisturbed = server.ask_lines(list(items))
    poison = {7: ABORTS, 11: RAISES}
    for place, token_id in poison.items():
        items[place] = items[place] | {"prompt": [100, token_id, 100]}
    answers = server.ask_lines(list(items))
    assert [answers[place]["error"]["code"] for place in poison] == ["engine_killed_by_item"] * 2
    healthy = set(range(16)) - set(poison)
    assert sum(answers[place]["choices"] != undisturbed[place]["choices"] for place in healthy) <= 1, "but for one tie"
    assert server.ping()[0] == 200
    alone = server.post(json=items[7])
    assert (alone.status_code, alone.json()["error"]["code"]) == (500, "engine_killed_by_item")
    reaches(server, "longhaul_engine_restarts_total", 4 + 3)  # in two engines together, then each in one alone
