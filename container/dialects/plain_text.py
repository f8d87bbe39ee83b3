"""The text dialect: the body is the prompt, the answer is the text, parameters come from the custom attributes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial

import msgspec

from container.core import Call, DeadlineReason, Item, Result
from container.dialects.huggingface import ScalarOptions
from container.dialects.prompt import read_text
from container.dialects.sniffing import unicode_name
from container.dialects.wire import BYTE_ORDER_MARK, read
from container.errors import InvalidRequest

HEADER = "X-Amzn-SageMaker-Custom-Attributes"
"""Header that SageMaker passes on to the container."""
PREFIX = f"{HEADER}: "
"""Text before an attribute's key in an error's `param`."""
NAMES = {name: PREFIX + name for name in ("max_new_tokens", "min_new_tokens", "spaces_between_special_tokens")}


def read_prompt(body: bytes, attributes: Mapping[str, Sequence[str]]) -> Call:
    """Read a prompt; `attributes` has the values of each key. Raises InvalidRequest."""
    given: dict[str, object] = {}
    for key in [key for key in ScalarOptions.model_fields if key in attributes]:
        if key == "stop":
            given[key] = list(attributes[key])
            continue
        given[key] = value = single_value(attributes, key)
        # A scalar is as JSON writes it: `64`, `0.5`, `true`. Other text stays text, which its field then refuses.
        with contextlib.suppress(msgspec.DecodeError, RecursionError):
            given[key] = msgspec.json.decode(value) if value != "null" else value
    options = read(ScalarOptions, given, PREFIX)
    if (encoding := unicode_name(body)) is not None:  # ASCII in UTF-16 is UTF-8, too, with NULs
        raise InvalidRequest(f"the body seems to be {encoding}; send it in UTF-8", param="body")
    try:
        prompt = body.removeprefix(BYTE_ORDER_MARK).decode()
    except UnicodeDecodeError as error:
        position = error.start
    else:
        item = Item(
            prompt=read_text(prompt, "body"),
            parameters=options.parameters(),
            sample_by_default=False,
            param="body",
            names=NAMES,
        )
        return Call(items=(item,), render=partial(_render, options), content_type="text/plain; charset=utf-8")
    raise InvalidRequest(f"the body is not UTF-8 (byte {position})", param="body")


def single_value(attributes: Mapping[str, Sequence[str]], key: str) -> str:
    """Return the value of a key that is there. Raises InvalidRequest if it has several."""
    values = attributes[key]
    if len(values) > 1:
        raise InvalidRequest(f"{PREFIX}{key} is given {len(values)} times; give it once", param=PREFIX + key)
    return values[0]


def _render(
    options: ScalarOptions, results: Sequence[Result], model: str, deadline_reason: DeadlineReason = "deadline"
) -> bytes:
    (result,) = results
    text = result.completions[0].text
    return (result.prompt_text + text if options.return_full_text else text).encode()
