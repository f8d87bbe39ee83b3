"""Servers of models as people have them: in a folder of their tar, with nothing but sentencepiece's file."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

from testing.server import Server
from testing.tiny_models import save_tiny_family
from testing.tokenizer_files import PIECES, save_sentencepiece


def test_model_in_folder_without_tokenizer_json_serves(start: Callable[..., Server], tmp_path: Path) -> None:
    model, scratch = tmp_path / "mount" / "my-model", tmp_path / "scratch"
    for directory in (model, scratch):
        directory.mkdir(parents=True)
    save_tiny_family(model, "mistral", vocab_size=PIECES, sliding_window=None)
    save_sentencepiece(model)
    server = start(tmp_path / "mount", LONGHAUL_SPOOL_DIR=scratch).wait_until_ready()
    parameters = {"max_new_tokens": 4, "return_full_text": False}
    text = "def add(self,  name):"
    alone = server.post(json={"inputs": text, "parameters": parameters}).json()
    # Spaces behind it make it a document that a reader of its own reads.
    document = json.dumps({"inputs": [text], "parameters": parameters}).encode() + b" " * (1 << 20)
    large = server.post(content=document, headers={"Content-Type": "application/json"})
    assert large.status_code == 200 and large.json()[0] == alone[0]
    (line,) = [line for line in server.log_lines() if line.get("action") == "model"]
    assert "a sequence holds 512 tokens (its max_position_embeddings); it has no chat template" in line["message"]
    assert [path.name[:18] for path in scratch.iterdir()] == ["longhaul-tokenizer"]
    server.send(signal.SIGTERM)
    assert server.exit_status() == 0
    assert list(scratch.iterdir()) == []
