"""The description of the HTTP surface: OpenAPI 3.1, from the dialects' own models and the shapes of the answers.

It knows no request and no engine. Fields that a model reads in a second look (messages, tools, prompts) are described
here.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import msgspec
from msgspec import Struct

from container import __version__
from container.dialects import anthropic, batch, chat, completions, huggingface, messages, plain_text, template_inputs
from container.dialects.document import JSON_LINES
from container.dialects.prompt import MAX_TEXTS
from container.dialects.wire import MAX_COUNT, Wire
from container.errors import ErrorBody
from container.server.paths import HEALTH
from container.server.state import Status

Schema = dict[str, Any]


class Health(Struct, forbid_unknown_fields=True):
    status: Status
    reason: str | None


class ServedModel(Struct, forbid_unknown_fields=True):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(Struct, forbid_unknown_fields=True):
    object: Literal["list"]
    data: list[ServedModel]


_REF = "#/components/schemas/"
_NULL: Schema = {"type": "null"}
_TEXT: Schema = {"type": "string", "minLength": 1}
_TOKEN_IDS: Schema = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": MAX_COUNT},
    "minItems": 1,
}
_SCALAR: Schema = {"type": ["string", "number", "boolean", "null"]}
_VARIABLES: Schema = {
    "type": ["object", "null"],
    "maxProperties": template_inputs.MAX_VARIABLES,
    "propertyNames": {"pattern": f"^[A-Za-z_][A-Za-z0-9_]{{0,{template_inputs.MAX_VARIABLE_LENGTH - 1}}}$"},
    "additionalProperties": {"anyOf": [_SCALAR, {"type": "array", "items": _SCALAR}]},
}
_CUSTOM_ATTRIBUTES: Schema = {
    "name": plain_text.HEADER,
    "in": "header",
    "description": "the deadline, `timeout=1800`, and the text dialect's parameters, `max_new_tokens=64;seed=1`; "
    "what isn't known passes",
    "schema": {"type": "string"},
}
_ERRORS = {
    "400": "a field is unknown, of the wrong type, out of range, or can't be honoured",
    "408": "no more of the request came in time, or not all of it before the deadline",
    "413": "the body is over a limit, or takes too much memory to read",
    "414": "the URL is too long",
    "415": "no dialect for the content type, or a content coding other than gzip and zstd",
    "431": "the head is too large",
    "500": "the engine died of this prompt, could not take it, or died for good",
    "503": "starting, draining or failed",
    "504": "the deadline came before the first token, or before the end where LONGHAUL_ON_DEADLINE is error",
    "507": "the spool's disk is full",
}


@cache
def document() -> Schema:
    """Return the OpenAPI document. Treat it as frozen."""
    health = {"200": _content("can take work", _ref("Health")), "503": _content("can't", _ref("Health"))}
    model = {"200": _content("the one model", _ref("ServedModel")), "404": _content("another name", _ref("ErrorBody"))}
    name = {"name": "name", "in": "path", "required": True, "schema": _TEXT}
    samples = {"200": _content("samples", {"type": "string"}, "text/plain")}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Longhaul",
            "version": __version__,
            "description": "Long LLM generation in continuous batches",
        },
        "paths": {
            **{path: _reading(path.strip("/") or "root", "Whether it can take work", health) for path in HEALTH},
            "/ping": _reading("ping", "Whether it can take work", health, "post"),
            "/invocations": {"post": _invocations()},
            "/v1/chat/completions": {"post": _document_route("chatCompletions", "ChatRequest", "ChatCompletion")},
            "/v1/completions": {"post": _document_route("completions", "CompletionRequest", "TextCompletion")},
            "/v1/models": _reading("models", "The one model", {"200": _content("a list of one", _ref("Models"))}),
            "/v1/models/{name}": _reading("model", "The one model, if that is its name", model, parameters=[name]),
            "/metrics": _reading("metrics", "Prometheus text", samples),
        },
        "components": {"schemas": _requests() | _answers()},
    }


def _reading(operation: str, summary: str, responses: Schema, *methods: str, **more: object) -> Schema:
    """Return what GET reads, and `methods` as well, and what HEAD tells of it."""
    told = {status: {"description": response["description"]} for status, response in responses.items()}
    paths = {
        method: {"operationId": f"{operation}{method.title()}", "summary": summary, "responses": responses} | more
        for method in ("get", *methods)
    }
    paths["get"]["operationId"] = operation
    return paths | {"head": {"operationId": f"{operation}Head", "summary": summary, "responses": told} | more}


def _invocations() -> Schema:
    documents = _any_of("HuggingFaceRequest", "ChatRequest", "CompletionRequest")
    generated = _any_of("ChatCompletion", "TextCompletion", "GeneratedList")
    line = _ref("BatchLine")
    return {
        "operationId": "invocations",
        "summary": "Generate, in the dialect that content type and shape of the body tell",
        "description": "JSON lines are described by one line of theirs: it fails alone, and is answered by one line. "
        "A body may be compressed with gzip or zstd.",
        "parameters": [_CUSTOM_ATTRIBUTES],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": documents}, "text/plain": {"schema": _TEXT}}
            | {media_type: {"schema": line} for media_type in sorted(JSON_LINES)},
        },
        "responses": {
            "200": {
                "description": "in the form of the request",
                "content": {
                    "application/json": {"schema": generated},
                    "application/jsonlines": {"schema": _ref("BatchAnswerLine")},
                    "text/plain": {"schema": {"type": "string"}},
                },
            }
        }
        | _errors(),
    }


def _document_route(operation: str, request: str, answer: str) -> Schema:
    return {
        "operationId": operation,
        "summary": f"OpenAI's {operation.removeprefix('chat').lower()}",
        "parameters": [_CUSTOM_ATTRIBUTES],
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(request)}}},
        "responses": {"200": _content("whole", _ref(answer))} | _errors(),
    }


def _errors() -> Schema:
    return {status: _content(meaning, _ref("ErrorBody")) for status, meaning in _ERRORS.items()}


def _content(description: str, schema: Schema, media_type: str = "application/json") -> Schema:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _requests() -> dict[str, Schema]:
    tools = _nullable(_array(_ref("Tool"), least=0, most=template_inputs.MAX_TOOLS))
    documents = _nullable(_array({"type": "object"}, least=0, most=template_inputs.MAX_DOCUMENTS))
    template = {"tools": tools, "documents": documents, "chat_template_kwargs": _VARIABLES}
    functions = _nullable(_array(_ref("ToolFunction"), least=0, most=template_inputs.MAX_TOOLS))
    chat_messages = {"type": "array", "items": _ref("Message"), "minItems": 1}
    prompts = [chat_messages, _array(chat_messages), _TEXT, _array(_TEXT)]
    content = {"anyOf": [{"type": "string"}, _array(_ref("ContentPart"), least=0, most=None)]}
    calls = _nullable(_array(_ref("ToolCall"), least=0, most=template_inputs.MAX_TOOLS))
    any_body = _any_of("HuggingFaceRequest", "ChatRequest", "CompletionRequest")
    return {
        "HuggingFaceRequest": _object(
            huggingface.Request, inputs={"anyOf": prompts}, parameters=_nullable(_ref("HuggingFaceParameters"))
        ),
        "HuggingFaceParameters": _object(huggingface.Options, **template),
        "ChatRequest": _object(chat.ChatRequest, messages=chat_messages, functions=functions, **template)
        | {"additionalProperties": _NULL},  # others are variables of the model's template
        "CompletionRequest": _object(
            completions.CompletionRequest, prompt={"anyOf": [_TEXT, _array(_TEXT), _TOKEN_IDS, _array(_TOKEN_IDS)]}
        ),
        "Message": _any_of("PromptMessage", "ResultMessage", "OtherMessage"),
        "PromptMessage": _object(
            messages.Message, "content", role={"enum": [*messages.SPOKEN_TO]}, content=content, **_no_calls()
        ),
        "ResultMessage": _object(
            messages.Message, role={"enum": [*messages.CALLED]}, content=_nullable(content), **_no_calls()
        ),
        "OtherMessage": _object(
            messages.Message,
            role={
                "type": "string",
                "pattern": f"^{messages.ROLE}$",
                "not": {"enum": [*messages.SPOKEN_TO, *messages.CALLED]},
            },
            content=_nullable(content),
            tool_calls=calls,
            function_call=_nullable(_ref("CalledFunction")),
        ),
        "ContentPart": {"anyOf": [{"type": "string"}, _ref("TextPart"), _ref("RefusalPart")]},
        "TextPart": _object(messages.TextPart, type={"enum": ["text", "input_text", "output_text", None]}),
        "RefusalPart": _object(messages.RefusalPart, "type", type={"const": "refusal"}),
        "Tool": _object(template_inputs.Tool, "function", function=_ref("ToolFunction")),
        "ToolFunction": _object(template_inputs.ToolFunction),
        "ToolCall": _object(template_inputs.ToolCall, "function", function=_ref("CalledFunction")),
        "CalledFunction": _object(
            template_inputs.CalledFunction,
            arguments={"anyOf": [{"type": ["object", "string", "null"]}, {"type": "array", "maxItems": 0}]},
        ),
        "BatchLine": {"anyOf": [*map(_ref, ("OpenAIBatchLine", "AnthropicBatchLine", "BedrockBatchLine")), any_body]},
        "OpenAIBatchLine": _object(batch.OpenAIRequest, body=any_body),
        "AnthropicBatchLine": _object(batch.AnthropicRequest, params=_ref("AnthropicParams")),
        "AnthropicParams": _object(anthropic.MessageParams, messages=chat_messages, system=_nullable(content)),
        "BedrockBatchLine": _object(
            batch.BedrockRequest, modelInput={"anyOf": [any_body, _ref("BedrockAnthropicParams")]}
        ),
        "BedrockAnthropicParams": {
            "allOf": [_ref("AnthropicParams")],
            "properties": {"anthropic_version": {"type": "string"}},
            "required": ["anthropic_version"],
        },
    }


def _no_calls() -> dict[str, Schema]:
    return {"tool_calls": {"enum": [[], None]}, "function_call": _NULL}


def _object(model: type[Wire], *required: str, **within: Schema) -> Schema:
    """Return the schema of what a model takes; `within` describes what it reads in a second look."""
    schema = model.model_json_schema()
    refused = {
        name: {"enum": [*values, None]} for name, values in model.neutral.items() if name not in model.model_fields
    }
    schema["properties"] |= within | refused | {name: {} for name in sorted(model.ignored)}
    schema["required"] = [*schema.get("required", []), *required]
    schema["additionalProperties"] = True if model.is_open else _NULL
    return schema


def _answers() -> dict[str, Schema]:
    structs = (
        ErrorBody,
        Health,
        Models,
        chat.ChatCompletion,
        completions.TextCompletion,
        huggingface.Generated,
        batch.OpenAILine,
        anthropic.ResultLine,
        anthropic.AnthropicMessage,
        batch.BedrockResult,
        batch.BedrockFailure,
    )
    _, schemas = msgspec.json.schema_components(structs, ref_template=_REF + "{name}")
    # These are written as they are, so that no type says what is in them.
    bodies = ("ChatCompletion", "TextCompletion", "GeneratedList", "ErrorBody")
    schemas["OpenAIResponse"]["properties"]["body"] = _any_of(*bodies)
    schemas["Succeeded"]["properties"]["message"] = _ref("AnthropicMessage")
    outputs = ("ChatCompletion", "TextCompletion", "GeneratedList", "AnthropicMessage")
    schemas["BedrockResult"]["properties"]["modelOutput"] = _any_of(*outputs)
    schemas["GeneratedList"] = {"type": "array", "items": _ref("Generated"), "minItems": 1}
    schemas["BatchAnswerLine"] = _any_of(
        "OpenAILine",
        "ResultLine",
        "BedrockResult",
        "BedrockFailure",
        "ChatCompletion",
        "TextCompletion",
        "GeneratedList",
        "ErrorBody",
    )
    return schemas


def _ref(name: str) -> Schema:
    return {"$ref": _REF + name}


def _any_of(*names: str) -> Schema:
    return {"anyOf": [_ref(name) for name in names]}


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, _NULL]}


def _array(items: Schema, *, least: int = 1, most: int | None = MAX_TEXTS) -> Schema:
    bound = {} if most is None else {"maxItems": most}
    return {"type": "array", "items": items, "minItems": least} | bound
