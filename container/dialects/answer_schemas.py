"""The shapes of the answers, for the description of the HTTP surface. What writes them is each dialect's renderer."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """A JSON object with exactly these fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ErrorDetail(Answer):
    message: str = Field(description="says what was expected, and never quotes the request")
    type: Literal["invalid_request_error", "server_error"]
    param: str | None = Field(description="the field, in the request's own words")
    code: str
    job: str | None = Field(None, description="at a shutdown: the request's own name for its job")
    resumable: bool | None = Field(
        None, description="at a shutdown: whether the same request, sent again, goes on where it was"
    )


class Error(Answer):
    error: ErrorDetail


class Health(Answer):
    status: Literal["starting", "ready", "recovering", "draining", "failed"]
    reason: str | None


class Model(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(Answer):
    object: Literal["list"]
    data: list[Model]


class Usage(Answer):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)


class Choice(Answer):
    index: int = Field(ge=0)
    finish_reason: Literal["stop", "length", "deadline"]
    seed: int | None = Field(description="send it again for the same text; null where the choice was greedy")


class ChatRival(Answer):
    token: str
    logprob: float = Field(le=0)
    bytes: list[int] | None


class ChatToken(ChatRival):
    top_logprobs: list[ChatRival]


class ChatLogprobs(Answer):
    content: list[ChatToken]
    refusal: None


class ChatMessage(Answer):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Choice):
    message: ChatMessage
    logprobs: ChatLogprobs | None


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice] = Field(min_length=1)
    usage: Usage


class CompletionLogprobs(Answer):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Choice):
    text: str
    logprobs: CompletionLogprobs | None


class Completion(Answer):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice] = Field(min_length=1)
    usage: Usage


class GeneratedRival(Answer):
    id: int = Field(ge=0)
    text: str
    logprob: float = Field(le=0)


class GeneratedToken(GeneratedRival):
    top: list[GeneratedRival]


class Details(Answer):
    finish_reason: Literal["stop", "length", "deadline"]
    prompt_tokens: int = Field(ge=0)
    generated_tokens: int = Field(ge=0)
    seed: int | None


class ScoredDetails(Details):
    tokens: list[GeneratedToken]


class Generated(Answer):
    generated_text: str


class DetailedGenerated(Generated):
    details: Details | ScoredDetails


class OpenAIResponse(Answer):
    status_code: int
    request_id: str
    body: ChatCompletion | Completion | Error


class OpenAIError(Answer):
    code: str
    message: str


class OpenAILine(Answer):
    id: str
    custom_id: str | None
    response: OpenAIResponse
    error: OpenAIError | None


class BedrockError(Answer):
    errorCode: int
    errorMessage: str


class BedrockLine(Answer):
    recordId: str
    modelInput: Any


class BedrockResult(BedrockLine):
    modelOutput: ChatCompletion | Completion | list[Generated | DetailedGenerated]


class BedrockFailure(BedrockLine):
    error: BedrockError
