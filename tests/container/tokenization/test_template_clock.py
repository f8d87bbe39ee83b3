from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from container.core import Chat
from container.tokenization.tokenizer import Tokenizer

LLAMA = """{%- if not date_string is defined %}{%- if strftime_now is defined %}
{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}Today Date: {{ date_string }}
{{ messages[0].content }}"""
CHAT = Chat(messages=({"role": "user", "content": "Hi"},))


@pytest.fixture
def tokenizer(model_dir: str, tmp_path: Path) -> Tokenizer:
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(Path(model_dir, name), tmp_path)
    (tmp_path / "chat_template.jinja").write_text(LLAMA)
    return Tokenizer.load(str(tmp_path), trust_remote_code=False)


def date_in(tokenizer: Tokenizer, clock: float | None) -> str:
    text = tokenizer.encode(CHAT, param="messages", max_tokens=100, clock=clock).text
    return text.splitlines()[0].removeprefix("Today Date: ")


def test_template_sees_given_clock(tokenizer: Tokenizer) -> None:
    noon = datetime(2026, 3, 1, 12).timestamp()
    assert date_in(tokenizer, noon) == "01 Mar 2026"


def test_template_sees_present_by_default(tokenizer: Tokenizer) -> None:
    before = time.strftime("%d %b %Y")
    assert date_in(tokenizer, None) in {before, time.strftime("%d %b %Y")}


def test_threads_have_clocks_of_their_own(tokenizer: Tokenizer) -> None:
    clocks = [datetime(2026, 1, day, 12).timestamp() for day in range(1, 29)] * 4
    with ThreadPoolExecutor(8) as threads:
        dates = list(threads.map(lambda clock: date_in(tokenizer, clock), clocks))
    assert dates == [datetime.fromtimestamp(clock).strftime("%d %b %Y") for clock in clocks]
