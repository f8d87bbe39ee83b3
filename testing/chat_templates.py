"""Chat templates of the styles that models come with, written for tests, with tokenizers that know their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from testing import tiny_tokenizers


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """A template with its tokens: special ones, and others that were added to the vocabulary."""

    template: str
    special: Sequence[str]
    added: Sequence[str] = ()
    named: dict[str, str] = field(default_factory=dict)

    def tokenizer(self, **given: Any) -> Any:
        return tiny_tokenizers.byte_level(self.special, self.added, chat_template=self.template, **self.named, **given)


STYLES = {
    "chatml": Style(
        template="""{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}""",
        special=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<file_sep>"],
        named={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    ),
    # Reasoning is cut out of earlier answers, and its tags are no special tokens.
    "reasoning": Style(
        template="""{% if tools %}<|im_start|>system
Call them within <tool_call></tool_call>: {{ tools | tojson }}<|im_end|>
{% endif %}{% for message in messages %}{% set content = message.content %}
{%- if message.role == 'assistant' and '</think>' in content %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}{% endif -%}
<|im_start|>{{ message.role }}
{{ content }}{% for call in message.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}""",
        special=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        added=["<think>", "</think>", "<tool_call>", "</tool_call>"],
        named={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    ),
    # All markers are special tokens, and a system message goes into the question.
    "instructions": Style(
        template="""{{ bos_token }}{% set given = namespace(system='') %}{% for message in messages %}
{%- if message.role == 'system' %}{% set given.system = message.content + '\n\n' %}
{%- elif message.role == 'user' %}[INST]{{ given.system }}{{ message.content }}[/INST]{% set given.system = '' %}
{%- elif message.role == 'tool' %}[TOOL_RESULTS]{{ message.content }}[/TOOL_RESULTS]
{%- elif message.tool_calls %}[TOOL_CALLS]{{ message.tool_calls | tojson }}{{ eos_token }}
{%- else %}{{ message.content }}{{ eos_token }}{% endif %}{% endfor %}""",
        special=["<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[MIDDLE]"],
        named={"bos_token": "<s>", "eos_token": "</s>"},
    ),
    "channels": Style(
        template="""{% for message in messages %}{% if message.role == 'assistant' -%}
{% if message.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ message.thinking }}<|end|>{% endif -%}
<|start|>assistant<|channel|>final<|message|>{{ message.content }}<|return|>
{%- else %}<|start|>{{ message.role }}<|message|>{{ message.content }}<|end|>
{%- endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}""",
        special=["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"],
        named={"eos_token": "<|return|>"},
    ),
    # Tokens of turns are no special ones, and one of the answer's is.
    "plain turns": Style(
        template="""{{ bos_token }}{% for message in messages %}
{%- if message.role == 'user' %}<|User|>{{ message.content }}
{%- elif message.role == 'assistant' %}<|Assistant|>{% for call in message.tool_calls %}<|call|>{{ call.function.name }}
{%- endfor %}{{ message.content }}{{ eos_token }}{% else %}{{ message.content }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|Assistant|><think>
{% endif %}""",
        special=["<s>", "</s>", "<|call|>"],
        added=["<|User|>", "<|Assistant|>", "<think>"],
        named={"bos_token": "<s>", "eos_token": "</s>"},
    ),
    "parts": Style(
        template="""{% for message in messages %}<|user|>{{ message.role }}:
{%- if message.content is string %} {{ message.content }}{% else %}{% for part in message.content %}
{%- if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}</s>
{%- endfor %}{% if add_generation_prompt %}<|user|>assistant:{% endif %}""",
        special=["</s>", "<|user|>"],
        named={"eos_token": "</s>"},
    ),
}
