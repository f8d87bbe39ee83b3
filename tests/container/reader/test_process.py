"""The reader of a large document, without a process of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from container.core import Constants, DeadlineReason
from container.dialects.document import RequestHead
from container.reader import messages
from container.reader.process import Reader

DOCUMENTS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Hello!"}]},
    {"prompt": "Hello!"},
    {"inputs": "Hello!", "parameters": {"details": True}},
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=["chat", "completion", "Hugging Face"])
@pytest.mark.parametrize("reason", ["deadline", "length"])
def test_reader_tells_cut_texts_as_set(
    tmp_path: Path, tiny_model_dir: Path, document: dict[str, Any], reason: DeadlineReason
) -> None:
    config = messages.ReaderConfig(
        model_dir=str(tiny_model_dir),
        trust_remote_code=False,
        max_sequence_tokens=100,
        default_max_new_tokens=9,
        name="served",
        deadline_reason=reason,
    )
    (tmp_path / "body").write_text(json.dumps(document))
    with (tmp_path / "body").open("rb") as body, (tmp_path / "answer").open("wb") as answer:
        reader = Reader(body.fileno(), answer.fileno())
        reader.reply_to(messages.Load(config))
        reader.reply_to(messages.Open(RequestHead.parse("invocations", "application/json", None), Constants(bytes(16))))
        reader.reply_to(messages.Render())
    told = json.loads((tmp_path / "answer").read_bytes())
    end = told[0]["details"] if isinstance(told, list) else told["choices"][0]
    assert (end["finish_reason"], end.get("deadline", False)) == (reason, reason == "length")
