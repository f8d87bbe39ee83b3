"""Wire objects: JSON bytes to values to checked models, with errors in the caller's words.

It knows no dialect. An error names the field by its path (`messages[2].content`), says what was expected and never
quotes a value, nor a name that may be one: the description of a model's field is the rest of the sentence "<path> must
be ...".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, ValidationError

from container.errors import InvalidRequest

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,39}")
"""What an error shows of the names that a caller made up: any other could be a text in the wrong place."""
MOST_NAMES = 5
"""Unknown fields that one error names."""


class Wire(BaseModel):
    """One JSON object. Fields are strict, null is the same as absent, and unknown fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)

    ignored: ClassVar[frozenset[str]] = frozenset()
    """Fields without effect on the text: any value is taken."""
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Fields that can't be honoured yet, with the values that ask for nothing."""
    refusals: ClassVar[Mapping[str, str]] = {}
    """What to say of a `neutral` field, where there is more to say than that it isn't supported."""


Model = TypeVar("Model", bound=Wire)


def decode(body: bytes, *, what: str = "the body", param: str | None = None) -> Any:
    """The JSON value in `body`, which `what` names in an error. Raises InvalidRequest."""
    try:
        return msgspec.json.decode(body.removeprefix(BYTE_ORDER_MARK))
    except RecursionError:
        reason = "it is nested too deeply"
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except msgspec.DecodeError as error:  # these name positions, never content
        reason = _malformed(str(error))
    raise InvalidRequest(f"{what} is not valid JSON: {reason}", param=param, code="invalid_json")


def _malformed(reason: str) -> str:
    if reason == "Input data was truncated":
        return "it ends within a value or a surrogate pair"
    if "trailing characters" in reason:
        reason += "; several values go as JSON lines, one a line"
    return reason.removeprefix("JSON is malformed: ")


def read(model: type[Model], value: object, prefix: str = "") -> Model:
    """`value` as a `model`. `prefix` is what comes before a field's name in the caller's words: `messages[2].`"""
    if not isinstance(value, dict):
        path = prefix.rstrip(".")
        raise InvalidRequest(f"{path or 'the document'} must be a JSON object", param=path or None)
    # Before pydantic, which would build an error for each of the millions of names that a body can hold.
    _refuse_unknown(model, value, prefix)
    _refuse_unsupported(model, value, prefix)
    try:
        return model.model_validate({name: value[name] for name in model.model_fields if name in value})
    except ValidationError as error:
        refusal = _invalid(model, error, prefix)
    raise refusal


def _refuse_unknown(model: type[Wire], value: Mapping[str, object], prefix: str) -> None:
    known = model.model_fields.keys() | model.neutral.keys() | model.ignored
    unknown = [name for name in value if name not in known]
    if not unknown:
        return
    shown = list(islice(filter(FIELD_NAME.fullmatch, unknown), MOST_NAMES))
    fields = "fields" if len(unknown) > 1 else "field"
    if shown:
        more = f" and {len(unknown) - len(shown)} more" if len(unknown) > len(shown) else ""
        what, param = f"unknown {fields} {', '.join(prefix + name for name in shown)}{more}", f"{prefix}{shown[0]}"
    else:
        param = prefix.rstrip(".")
        what = f"{param or 'the document'} has {len(unknown)} unknown {fields}"
    message = f"{what}; known are {', '.join(model.model_fields)}"
    raise InvalidRequest(message, param=param or None, code="unknown_parameter")


def _refuse_unsupported(model: type[Wire], value: Mapping[str, object], prefix: str) -> None:
    for name, values in model.neutral.items():
        given = value.get(name)
        if given is None or any(_same(given, neutral) for neutral in values):
            continue
        why = model.refusals.get(name, "is not supported yet")
        message = f"{prefix}{name} {why}: leave it out{_or_give(values)}"
        raise InvalidRequest(message, param=f"{prefix}{name}", code="unsupported_parameter")


def _same(given: object, neutral: object) -> bool:
    return given == neutral and isinstance(given, bool) == isinstance(neutral, bool)


def _or_give(values: Sequence[object]) -> str:
    return "".join(f" or give {msgspec.json.encode(value).decode()}" for value in values)


def _invalid(model: type[Wire], error: ValidationError, prefix: str) -> InvalidRequest:
    """The first error in the caller's words. Pydantic's own sentences are not used: some quote the value."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name, *indices = first["loc"]
    field = f"{prefix}{name}"
    path = field + "".join(f"[{index}]" for index in indices)
    if first["type"] == "missing":
        return InvalidRequest(f"{field} is missing", param=field)
    expected = model.model_fields[str(name)].description
    return InvalidRequest(f"{field} must be {expected}" + (f"; see {path}" if indices else ""), param=path)
