"""Requests on the wire: JSON bytes to values to checked models, and the sampling options that all dialects share.

It knows no dialect. An error names the field by its path (`messages[2].content`), says what was expected and never
quotes a value, nor a name that may be one: the description of a model's field is the rest of the sentence "<path> must
be ...".
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from container.core import MAX_TEMPERATURE, Completion, DeadlineReason, FinishReason, Parameters
from container.dialects.json_faults import explain
from container.dialects.sniffing import SNIFFED_BYTES, guess_binary
from container.errors import InvalidRequest

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,39}")
"""Names made up by a caller that an error may show: any other could be a text in the wrong place."""
MAX_NAMES = 5
"""Unknown fields that one error names."""
MAX_CHOICES = 128
MAX_STOP_STRINGS = 128
MAX_STOP_STRING_LENGTH = 1000
MAX_STOP_TOKENS = 128
MAX_COUNT = 2**31 - 1
MIN_SEED = -(2**63)
MAX_SEED = 2**64 - 1
RANDOM_SEED = -1
"""Seed that asks for a random one, as in vLLM and llama.cpp."""
NO_LIMIT = -1
"""Limit that asks for none, as in llama.cpp."""
MAX_BIASES = 1024
MAX_BIAS = 100
MAX_LOGPROBS = 20


class Wire(BaseModel):
    """One JSON object. Fields are strict, null under any name is the same as absent, and unknown fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)

    ignored: ClassVar[frozenset[str]] = frozenset()
    """Fields without effect on the text: any value is taken."""
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Fields that are not supported, with the values that ask for nothing."""
    reasons: ClassVar[Mapping[str, str]] = {}
    """Reasons to refuse a `neutral` field that say more than that it isn't supported."""
    is_open: ClassVar[bool] = False
    """Whether unknown fields pass: `unknown_fields` returns them."""


Model = TypeVar("Model", bound=Wire)


def decode(body: bytes, *, what: str = "the body", param: str | None = None) -> Any:
    """Return the JSON value in `body`, which `what` names in an error. Raises InvalidRequest."""
    try:
        return msgspec.json.decode(body.removeprefix(BYTE_ORDER_MARK))
    except RecursionError:
        reason = "it is nested too deeply"
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except msgspec.DecodeError as error:  # these name positions, never content
        reason = str(error).removeprefix("JSON is malformed: ")
        if reason == "Input data was truncated":
            reason = "it ends within a value or a surrogate pair"
        elif reason.startswith("Number out of range"):
            reason = "a number is out of range"
        else:
            reason = explain(body.removeprefix(BYTE_ORDER_MARK), reason)
    if (what_it_is := guess_binary(body[:SNIFFED_BYTES])) is not None:
        reason = f"it seems to be {what_it_is}"
    raise InvalidRequest(f"{what} is not valid JSON: {reason}", param=param, code="invalid_json")


def read(model: type[Model], value: object, prefix: str = "") -> Model:
    """Read `value` as a `model`. `prefix` comes before a field's name in the caller's words: `messages[2].`

    Raises InvalidRequest.
    """
    if not isinstance(value, dict):
        path = prefix.rstrip(".")
        raise InvalidRequest(f"{path or 'the document'} must be a JSON object", param=path or None)
    # Before pydantic, which would build an error for each of the millions of names that a body can hold.
    if not model.is_open and (unknown := list(unknown_fields(model, value))):
        raise unknown_error(model, unknown, prefix)
    for name, values in model.neutral.items():
        given = _without_nulls(value.get(name))
        if given is not None and not any(
            given == neutral and isinstance(given, bool) == isinstance(neutral, bool) for neutral in values
        ):
            instead = "".join(f" or give {msgspec.json.encode(neutral).decode()}" for neutral in values)
            message = f"{prefix}{name} {model.reasons.get(name, 'is not supported yet')}: leave it out{instead}"
            raise InvalidRequest(message, param=f"{prefix}{name}", code="unsupported_parameter")
    try:
        return model.model_validate({name: value[name] for name in model.model_fields if name in value})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    # Not within `except`: the error's context would hold the document. Pydantic's own sentences may quote the value.
    field_name, *indices = first["loc"]
    field = f"{prefix}{field_name}"
    if first["type"] == "missing":
        raise InvalidRequest(f"{field} is missing", param=field)
    path = field + "".join(f"[{index}]" for index in indices)
    expected = model.model_fields[str(field_name)].description
    raise InvalidRequest(f"{field} must be {expected}" + (f"; see {path}" if indices else ""), param=path)


def unknown_fields(model: type[Wire], value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a model doesn't know, but for nulls."""
    known = model.model_fields.keys() | model.neutral.keys() | model.ignored
    return {name: given for name, given in value.items() if name not in known and given is not None}


def _without_nulls(value: object) -> object:
    return {name: given for name, given in value.items() if given is not None} if isinstance(value, dict) else value


def unknown_error(model: type[Wire], unknown: Sequence[str], prefix: str = "") -> InvalidRequest:
    """Return the error of fields that a model doesn't know."""
    shown = list(islice(filter(FIELD_NAME.fullmatch, unknown), MAX_NAMES))
    fields = "fields" if len(unknown) > 1 else "field"
    if shown:
        more = f" and {len(unknown) - len(shown)} more" if len(unknown) > len(shown) else ""
        what, param = f"unknown {fields} {', '.join(prefix + name for name in shown)}{more}", f"{prefix}{shown[0]}"
    else:
        param = prefix.rstrip(".")
        what = f"{param or 'the document'} has {len(unknown)} unknown {fields}"
    message = f"{what}; known are {', '.join(model.model_fields)}"
    return InvalidRequest(message, param=param or None, code="unknown_parameter")


_STOP_STRING = {"type": "string", "maxLength": MAX_STOP_STRING_LENGTH}
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,8}")


def _stop_strings(value: object) -> tuple[str, ...] | None:
    """Read one stop string or a list of them. A ValueError becomes the field's own sentence."""
    if value is None:
        return None
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or len(strings) > MAX_STOP_STRINGS:
        raise ValueError
    if not all(isinstance(string, str) and len(string) <= MAX_STOP_STRING_LENGTH for string in strings):
        raise ValueError
    return tuple(filter(None, strings))  # clients write "" where they have none, as llama.cpp takes it


def _biases(value: object) -> tuple[tuple[int, float], ...] | None:
    """Read an object whose token ids are strings, as JSON has no other keys."""
    if value is None:
        return None
    if not isinstance(value, dict) or len(value) > MAX_BIASES or not all(map(_TOKEN_ID.fullmatch, value)):
        raise ValueError
    value = {token_id: amount for token_id, amount in value.items() if amount is not None}
    for amount in value.values():
        if not isinstance(amount, int | float) or isinstance(amount, bool) or not abs(amount) <= MAX_BIAS:
            raise ValueError
    return tuple((int(token_id), float(amount)) for token_id, amount in value.items())


def whole(value: object) -> object:
    """Return the integer that a whole number is, however it is written: many clients know only floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _limit(value: object) -> object:
    value = whole(value)
    return None if value == NO_LIMIT else value


def _nonzero(value: int | None) -> int | None:
    if value == 0:
        raise ValueError
    return value


def _seed(value: object) -> object:
    value = whole(value)
    return None if value == RANDOM_SEED and type(value) is int else value


Whole = BeforeValidator(whole)
Flag = Annotated[bool | None, Field(description="true or false")]
NewTokens = Annotated[
    int | None,
    Field(ge=1, le=MAX_COUNT, description="an integer of 1 or more, or -1 for no limit"),
    BeforeValidator(_limit),
    WithJsonSchema({"type": ["integer", "null"], "minimum": -1, "maximum": MAX_COUNT, "not": {"const": 0}}),
]
MinNewTokens = Annotated[int | None, Field(ge=0, le=MAX_COUNT, description="an integer of 0 or more"), Whole]
Temperature = Annotated[
    float | None, Field(ge=0, le=MAX_TEMPERATURE, description=f"a number from 0 (greedy) to {MAX_TEMPERATURE:,}")
]
TopK = Annotated[
    int | None,
    Field(ge=-1, le=MAX_COUNT, description="an integer of 1 or more, or 0 or -1 (off)"),
    Whole,
    AfterValidator(lambda top_k: 0 if top_k == -1 else top_k),
]
TopP = Annotated[float | None, Field(ge=0, le=1, description="a number from 0 (the best token) to 1 (off)")]
MinP = Annotated[float | None, Field(ge=0, le=1, description="a number from 0 (off) to 1 (the best token)")]
RepetitionPenalty = Annotated[float | None, Field(gt=0, le=10, description="a number above 0 and at most 10")]
Penalty = Annotated[float | None, Field(ge=-2, le=2, description="a number from -2 to 2")]
LogitBias = Annotated[
    tuple[tuple[int, float], ...] | None,
    BeforeValidator(_biases),
    WithJsonSchema(
        {
            "type": ["object", "null"],
            "maxProperties": MAX_BIASES,
            "propertyNames": {"pattern": f"^({_TOKEN_ID.pattern})$"},
            "additionalProperties": {"type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS},
        }
    ),
    Field(
        description=f"an object of at most {MAX_BIASES} token ids, each with a number from -{MAX_BIAS} to {MAX_BIAS}"
    ),
]
Logprobs = Annotated[
    int | None, Field(ge=0, le=MAX_LOGPROBS, description=f"an integer from 0 to {MAX_LOGPROBS}"), Whole
]
Seed = Annotated[
    int | None,
    Field(ge=MIN_SEED, le=MAX_SEED, description="an integer from -2**63 to 2**64 - 1; -1 is a random one"),
    BeforeValidator(_seed),
    # The engine's are unsigned: a negative one is the number with the same 64 bits.
    AfterValidator(lambda seed: None if seed is None else seed % 2**64),
]
Choices = Annotated[int | None, Field(ge=1, le=MAX_CHOICES, description=f"an integer from 1 to {MAX_CHOICES}"), Whole]
Truncation = Annotated[
    int | None,
    Field(ge=-1, le=MAX_COUNT, description="an integer of 1 or more, or -1 for what the model holds"),
    Whole,
    AfterValidator(_nonzero),
    WithJsonSchema({"type": ["integer", "null"], "minimum": -1, "maximum": MAX_COUNT, "not": {"const": 0}}),
]
Stop = Annotated[
    tuple[str, ...] | None,
    BeforeValidator(_stop_strings),
    WithJsonSchema(
        {
            "anyOf": [
                _STOP_STRING,
                {"type": "array", "items": _STOP_STRING, "maxItems": MAX_STOP_STRINGS},
                {"type": "null"},
            ]
        }
    ),
    Field(
        description=f"a string or a list of up to {MAX_STOP_STRINGS}, each of at most {MAX_STOP_STRING_LENGTH}"
        " characters"
    ),
]
StopTokenIds = Annotated[
    tuple[Annotated[int, Field(ge=0, le=MAX_COUNT), Whole], ...] | None,
    # strict=False lets a list become the tuple; fail_fast: pydantic would build an error for each of millions of ids.
    Field(
        strict=False,
        max_length=MAX_STOP_TOKENS,
        fail_fast=True,
        description=f"a list of at most {MAX_STOP_TOKENS} token ids",
    ),
]

DeadlineFinishReason = Annotated[
    DeadlineReason | None, Field(description='"deadline", or "length" for clients that know only OpenAI\'s own reasons')
]

_PARAMETERS = [field.name for field in dataclasses.fields(Parameters)]


class SamplingOptions(Wire):
    """Sampling options of every dialect. None is absent; the ranges are those of `core.Parameters`."""

    temperature: Temperature = None
    top_k: TopK = None
    top_p: TopP = None
    min_p: MinP = None
    repetition_penalty: RepetitionPenalty = None
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    seed: Seed = None
    stop: Stop = None
    ignore_eos: Flag = None
    add_special_tokens: Flag = None
    skip_special_tokens: Flag = None
    spaces_between_special_tokens: Flag = None
    include_stop_str_in_output: Flag = None

    def parameters(self, **overrides: Any) -> Parameters:
        """Return the parameters that are given. A dialect overrides those that it names or reads in its own way."""
        given = {name: value for name in _PARAMETERS if (value := getattr(self, name, None)) is not None}
        return Parameters(**given | overrides)


def told(completion: Completion, deadline_reason: DeadlineReason) -> tuple[FinishReason, bool | UnsetType]:
    """Return the reason that an answer gives for a text's end, and the mark of a cut that the reason doesn't tell."""
    if completion.finish_reason != "deadline":
        return completion.finish_reason, UNSET
    return deadline_reason, UNSET if deadline_reason == "deadline" else True
