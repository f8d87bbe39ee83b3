"""Generation parameters on the wire: the types and ranges that several dialects share.

The ranges are those of `generation.Parameters`. None is absent.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

from container.core import MAX_TEMPERATURE

MOST_CHOICES = 128
MOST_STOP_STRINGS = 16
LONGEST_STOP_STRING = 1000
MOST_STOP_TOKENS = 128
LARGEST_COUNT = 2**31 - 1
LARGEST_SEED = 2**64 - 1
MOST_BIASES = 1024
LARGEST_BIAS = 100
MOST_LOGPROBS = 20

_STOP_STRING = {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP_STRING}
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,8}")


def _stop_strings(value: object) -> tuple[str, ...] | None:
    """One stop string or a list of them. A ValueError becomes the field's own sentence."""
    if value is None:
        return None
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or len(strings) > MOST_STOP_STRINGS:
        raise ValueError
    if not all(isinstance(string, str) and 1 <= len(string) <= LONGEST_STOP_STRING for string in strings):
        raise ValueError
    return tuple(strings)


def _biases(value: object) -> tuple[tuple[int, float], ...] | None:
    """An object's token ids are strings, as JSON has no other keys."""
    if value is None:
        return None
    if not isinstance(value, dict) or len(value) > MOST_BIASES:
        raise ValueError
    return tuple((_token_id(name), _bias(amount)) for name, amount in value.items())


def _token_id(name: str) -> int:
    if not _TOKEN_ID.fullmatch(name):
        raise ValueError
    return int(name)


def _bias(amount: object) -> float:
    if not isinstance(amount, int | float) or isinstance(amount, bool) or not abs(amount) <= LARGEST_BIAS:
        raise ValueError
    return float(amount)


Flag = Annotated[bool | None, Field(description="true or false")]
NewTokens = Annotated[int | None, Field(ge=1, le=LARGEST_COUNT, description="an integer of 1 or more")]
MinNewTokens = Annotated[int | None, Field(ge=0, le=LARGEST_COUNT, description="an integer of 0 or more")]
Temperature = Annotated[
    float | None, Field(ge=0, le=MAX_TEMPERATURE, description=f"a number from 0 (greedy) to {MAX_TEMPERATURE:,}")
]
TopK = Annotated[int | None, Field(ge=0, le=LARGEST_COUNT, description="an integer of 0 (off) or more")]
TopP = Annotated[float | None, Field(gt=0, le=1, description="a number above 0 and at most 1")]
MinP = Annotated[float | None, Field(ge=0, lt=1, description="a number of 0 (off) or more and below 1")]
RepetitionPenalty = Annotated[float | None, Field(gt=0, le=10, description="a number above 0 and at most 10")]
Penalty = Annotated[float | None, Field(ge=-2, le=2, description="a number from -2 to 2")]
LogitBias = Annotated[
    tuple[tuple[int, float], ...] | None,
    BeforeValidator(_biases),
    WithJsonSchema(
        {
            "type": ["object", "null"],
            "maxProperties": MOST_BIASES,
            "propertyNames": {"pattern": f"^({_TOKEN_ID.pattern})$"},
            "additionalProperties": {"type": "number", "minimum": -LARGEST_BIAS, "maximum": LARGEST_BIAS},
        }
    ),
    Field(
        description=f"an object of at most {MOST_BIASES} token ids, each with a number from -{LARGEST_BIAS} to"
        f" {LARGEST_BIAS}"
    ),
]
Logprobs = Annotated[int | None, Field(ge=0, le=MOST_LOGPROBS, description=f"an integer from 0 to {MOST_LOGPROBS}")]
Seed = Annotated[int | None, Field(ge=0, le=LARGEST_SEED, description="an integer from 0 to 2**64 - 1")]
Choices = Annotated[int | None, Field(ge=1, le=MOST_CHOICES, description=f"an integer from 1 to {MOST_CHOICES}")]
Stop = Annotated[
    tuple[str, ...] | None,
    BeforeValidator(_stop_strings),
    WithJsonSchema(
        {
            "anyOf": [
                _STOP_STRING,
                {"type": "array", "items": _STOP_STRING, "maxItems": MOST_STOP_STRINGS},
                {"type": "null"},
            ]
        }
    ),
    Field(
        description=f"a string or a list of up to {MOST_STOP_STRINGS}, each of 1 to {LONGEST_STOP_STRING} characters"
    ),
]
StopTokenIds = Annotated[
    list[Annotated[int, Field(ge=0, le=LARGEST_COUNT)]] | None,
    # fail_fast: a body can hold millions of wrong ids, and pydantic would build an error for each.
    Field(max_length=MOST_STOP_TOKENS, fail_fast=True, description=f"a list of at most {MOST_STOP_TOKENS} token ids"),
]
