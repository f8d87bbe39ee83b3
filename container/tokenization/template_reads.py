"""Fields of a request that a model's chat template reads: it is a program that can be looked into.

A template leaves out silently what it doesn't read, and the answer is then another question's. What a request asks of
its template and the template doesn't read is therefore refused by its name.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from container.core import Chat, Template
from container.errors import InvalidRequest

SWITCHES = ("enable_thinking", "thinking")
"""Variables by which templates turn reasoning on and off."""
NEWER_ROLES = {"developer": "system", "function": "tool"}
"""Roles that OpenAI renamed, with the names that most templates know."""
COMMON_ROLES = frozenset({"system", "user", "assistant"})
"""Roles that every template shows, or refuses in its own words."""
_OWN = frozenset({"raise_exception", "strftime_now"})
"""Functions that transformers gives to every template, so that no request may."""


class _Generation(Extension):
    """Parses the block with which templates mark the assistant's words for training."""

    tags = {"generation"}  # noqa: RUF012  # jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class TemplateReads:
    """A template's source, and what it reads. One that can't be parsed may read anything: rendering it tells why."""

    def __init__(self, source: str) -> None:
        self._variables: frozenset[str] | None = None
        self._fields: frozenset[str] = frozenset()
        self._roles: frozenset[str] = frozenset()
        environment = Environment(extensions=[_Generation, "jinja2.ext.loopcontrols"], autoescape=False)
        try:
            tree = environment.parse(source)
        except TemplateSyntaxError:
            return
        self._variables = frozenset(meta.find_undeclared_variables(tree)) - _OWN
        self._fields = _strings(tree) | {node.attr for node in tree.find_all(nodes.Getattr)}
        compared = (_strings(node) for node in tree.find_all(nodes.Compare) if _has_role(node))
        self._roles = frozenset().union(*compared)

    @classmethod
    @lru_cache(maxsize=8)
    def of(cls, source: str) -> TemplateReads:
        return cls(source)

    def reads(self, variable: str) -> bool:
        """Whether the template has a use for a variable."""
        return self._variables is None or variable in self._variables

    def reads_field(self, name: str) -> bool:
        """Whether the template has a use for a field of messages."""
        return self._variables is None or name in self._fields

    def knows_role(self, role: str) -> bool:
        """Whether the template compares the roles of messages with this one."""
        return self._variables is None or role in self._roles

    def variables(self, template: Template) -> dict[str, Any]:
        """Return the variables that a request gives. Raises InvalidRequest, naming the field that would be lost."""
        at = template.prefix
        if template.tools and not self.reads("tools"):
            raise _unread(f"{at}{template.tools_name}", "takes no tools; leave them out")
        if template.documents and not self.reads("documents"):
            raise _unread(f"{at}documents", "takes no documents; leave them out")
        if unknown := [name for name in template.unknown if not self.reads(name)]:
            fields = "fields" if len(unknown) > 1 else "field"
            message = f"unknown {fields} {', '.join(unknown)}; known are {template.known}"
            message += ", and variables of the model's chat template"
            raise InvalidRequest(message, param=unknown[0], code="unknown_parameter")
        given = dict(template.unknown)
        for name, value in template.controls.items():
            control: dict[str, Any] = {name: value} if self.reads(name) else {}
            if name == "reasoning_effort":  # as in vLLM, any effort is a wish to think
                control |= {switch: value != "none" for switch in SWITCHES if self.reads(switch)}
            if not control:
                raise _unread(f"{at}{name}", "doesn't read it; leave it out")
            given |= control
        return given | dict(template.variables)

    def messages(self, chat: Chat, param: str) -> list[dict[str, Any]]:
        """Return the messages with roles that the template knows. Raises InvalidRequest."""
        calls = next((index for index, message in enumerate(chat.messages) if "tool_calls" in message), None)
        if calls is not None and not self.reads_field("tool_calls"):
            field = "function_call" if calls in chat.older_calls else "tool_calls"
            raise _unread(f"{param}[{calls}].{field}", "takes no tool calls; leave them out")
        renamed = {old: new for old, new in NEWER_ROLES.items() if not self.knows_role(old)}
        return [message | {"role": renamed.get(message["role"], message["role"])} for message in chat.messages]

    def check_shown(
        self, messages: Sequence[Mapping[str, Any]], param: str, render: Callable[[list[dict[str, Any]]], str]
    ) -> None:
        """Raise InvalidRequest if the template leaves out a message because it doesn't know the role.

        A template may print any role, or pass over those that it doesn't know: only `render` tells.
        """
        marks = {
            index: secrets.token_hex(8)
            for index, message in enumerate(messages)
            if message.get("content") and message["role"] not in COMMON_ROLES and not self.knows_role(message["role"])
        }
        if not marks:
            return
        marked = [dict(message) for message in messages]
        for index, mark in marks.items():
            marked[index]["content"] += mark
        text = render(marked)
        for index, mark in marks.items():
            if mark not in text:
                raise _unread(f"{param}[{index}].role", "leaves out messages of this role; leave it out")


def _strings(node: nodes.Node) -> frozenset[str]:
    constants = (constant.value for constant in node.find_all(nodes.Const))
    return frozenset(value for value in constants if isinstance(value, str))


def _has_role(node: nodes.Node) -> bool:
    """Whether an expression has a message's role: `message.role`, `message["role"]`, or a variable called so."""
    names = (name.name for name in node.find_all(nodes.Name))
    attributes = (attribute.attr for attribute in node.find_all(nodes.Getattr))
    return any("role" in name for name in (*names, *attributes)) or "role" in _strings(node)


def _unread(param: str, what: str) -> InvalidRequest:
    message = f"{param}: the model's chat template {what}"
    return InvalidRequest(message, param=param, code="unsupported_parameter")


def find_text_arguments(chat: Chat, param: str) -> str | None:
    """Return where a tool call's arguments are not an object, with which a template may not know what to do."""
    for index, message in enumerate(chat.messages):
        for number, call in enumerate(message.get("tool_calls", ())):
            if isinstance(call["function"]["arguments"], str):
                is_older = index in chat.older_calls
                field = "function_call" if is_older else f"tool_calls[{number}].function"
                return f"{param}[{index}].{field}.arguments"
    return None
