"""Control tokens: which tokens have a meaning of their own, and which of those a text shows.

Nothing in a model's files says what a token is for. The chat template tells: it is looked at, and given short chats.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_SYSTEM = {"role": "system", "content": "Be kind."}
_QUESTION = {"role": "user", "content": "Which sea?"}
_ANSWER = {"role": "assistant", "content": "The North Sea."}
_CALL = {"id": "call00001", "type": "function", "function": {"name": "tide", "arguments": {"sea": "Baltic"}}}
_CALLING = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
_REASONING = {**_ANSWER, "reasoning_content": "Hm.", "thinking": "Hm."}
_RESULT = {"role": "tool", "tool_call_id": "call00001", "name": "tide", "content": "low"}
_IMAGES = [{"role": "user", "content": [{"type": kind}]} for kind in ("image", "image_url", "video", "audio")]
_PARTS = ("The Baltic", "or the North Sea")
"""Texts of a content with several parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlTokens:
    """Names of tokens, by who may write them."""

    all: frozenset[str] = frozenset()
    """Tokens that only the chat template and the model write: the special ones, and added ones that are in the
    template."""
    markers: frozenset[str] = frozenset()
    """Those of `all` that mark something in an answer, such as `<think>` and `[TOOL_CALLS]`: the template knows them,
    and neither a chat of plain texts nor a tool's result nor an image has them, and no text ends with them."""
    shown: frozenset[str] = frozenset()
    """Special tokens that a text shows, as it would lose its meaning without them."""

    @classmethod
    def of(cls, tokenizer: Any, end_token_ids: Collection[int]) -> ControlTokens:
        """Sort the tokens of a tokenizer of transformers'. `end_token_ids` end the model's texts."""
        added = tokenizer.added_tokens_decoder
        special = {token.content for token in added.values() if token.special}
        source = template_source(tokenizer)
        if not source:
            return cls(all=frozenset(special))
        templates = tokenizer.chat_template
        names = templates.values() if isinstance(templates, dict) else [templates]
        control = special.union(*map(tokenizer._get_control_tokens, names))
        chat = (_QUESTION, _ANSWER, _QUESTION)
        # Where there is no system message, some templates write one that explains the marks.
        with_turns = _render(tokenizer, _SYSTEM, *chat) or _render(tokenizer, *chat)
        if with_turns is None:
            return cls(all=frozenset(control))

        def within(*chat: dict[str, Any]) -> set[str]:
            text = _render(tokenizer, *chat) or ""
            return {name for name in control if name in text}

        answers = within(_QUESTION, _CALLING) | within(_QUESTION, _REASONING)
        others = within(_QUESTION, _CALLING, _RESULT).union(*map(within, _IMAGES))
        turns = {name for name in control if name in with_turns}
        ends = {tokenizer.special_tokens_map.get(name) for name in _NAMED}
        ends |= {added[token_id].content for token_id in end_token_ids if token_id in added}
        written = {name for name in control if name in source} - ends
        markers = written - turns - (others - answers)
        shown = written if _has_structured_answers(tokenizer, control) else markers
        return cls(all=frozenset(control), markers=frozenset(markers), shown=frozenset(shown & special))


def template_source(tokenizer: Any) -> str:
    """Return the text of the chat template, or of all of them; empty if there is none."""
    template = tokenizer.chat_template
    return "\n".join(template.values()) if isinstance(template, dict) else template or ""


def roles_with_parts(tokenizer: Any) -> frozenset[str]:
    """Return the roles whose content the template takes as a list of text parts."""
    content = [{"type": "text", "text": text} for text in _PARTS]
    chats: dict[str, list[dict[str, Any]]] = {
        "system": [{**_SYSTEM, "content": content}, _QUESTION],
        "user": [{**_QUESTION, "content": content}],
        "assistant": [_QUESTION, {**_ANSWER, "content": content}, _QUESTION],
    }
    texts = {role: _render(tokenizer, *chat) or "" for role, chat in chats.items()}
    return frozenset(
        role
        for role, text in texts.items()
        # A template that knows no parts writes the list as Python or JSON shows it.
        if all(part in text for part in _PARTS) and not any(f"{quote}text{quote}: " in text for quote in "'\"")
    )


def any_of(names: Collection[str]) -> re.Pattern[str]:
    """Return a pattern of any of the names, the longest where several fit.

    It is a tree of their characters: to try a thousand names in turn at every `<` of a long text would take seconds.
    """
    tree: dict[str, Any] = {}
    for name in names:
        node = tree
        for character in name:
            node = node.setdefault(character, {})
        node[""] = {}
    return re.compile(_pattern_of(tree) or "(?!)")  # which nothing matches


def _pattern_of(node: dict[str, Any]) -> str:
    branches = [re.escape(character) + _pattern_of(child) for character, child in node.items() if character]
    pattern = "|".join(branches)
    if len(branches) > 1 or (branches and "" in node):
        pattern = f"(?:{pattern})"
    return f"{pattern}?" if branches and "" in node else pattern


def _has_structured_answers(tokenizer: Any, control: Collection[str]) -> bool:
    """Whether even a plain answer has words of its own between its tokens: `<|channel|>final<|message|>The North Sea.`

    All of its tokens are needed to tell those words from the answer's.
    """
    prompt, answered = _render(tokenizer, _QUESTION, is_begun=True), _render(tokenizer, _QUESTION, _ANSWER) or ""
    if prompt is None or prompt == _render(tokenizer, _QUESTION) or not answered.startswith(prompt):
        return False
    head, found, _ = answered.removeprefix(prompt).partition(_ANSWER["content"])
    words = any_of(control).sub("", head)
    return bool(found) and len(words) < len(head) and bool(words.strip())


def _render(tokenizer: Any, *messages: dict[str, Any], is_begun: bool = False) -> str | None:
    """Return a chat's text, None if the template refuses it. `is_begun`: with the beginning of an answer."""
    try:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=is_begun)
    except MemoryError:
        raise
    except Exception:  # a template is a program: it can fail in any way
        return None
    return text
