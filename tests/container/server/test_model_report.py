from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from container.server.model_report import report
from container.tokenization.model_defaults import ModelDefaults
from container.tokenization.tokenizer import Tokenizer
from testing.container.scripted_engine import INFO
from testing.tokenizer_files import save_tekken

LENGTH = {"max_model_len": 8192, "max_sequence_tokens": 8192, "length_reason": "its max_position_embeddings"}


@pytest.fixture
def model(tmp_path: Path, model_dir: str) -> Path:
    """Copy what a model has beside its weights."""
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(model_dir, name), tmp_path)
    return tmp_path


def change(model: Path, name: str, **fields: Any) -> None:
    content = json.loads((model / name).read_text())
    (model / name).write_text(json.dumps(content | fields))


def told(model: Path, **info: Any) -> tuple[str, dict[str, Any]]:
    defaults, tokenizer = ModelDefaults.load(str(model)), Tokenizer.load(str(model), trust_remote_code=False)
    return report(str(model), defaults, tokenizer, msgspec.structs.replace(INFO, **{**LENGTH, **info}))


def test_report_names_ends_length_and_template(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ messages }}")
    line, fields = told(model)
    assert line == (
        "texts end at <|im_end|> (2, from generation_config.json);"
        " a sequence holds 8192 tokens (its max_position_embeddings);"
        " chats go through the template of chat_template.jinja"
    )
    assert fields == {
        "action": "model",
        "end_token_ids": [2],
        "max_sequence_tokens": 8192,
        "chat_templates": ["default"],
    }


def test_report_names_end_of_config(model: Path) -> None:
    (model / "generation_config.json").unlink()
    change(model, "config.json", eos_token_id=[0, 2])
    assert told(model)[0].startswith(
        "texts end at <|endoftext|> (0, from config.json) or <|im_end|> (2, from config.json);"
    )


def test_report_names_end_of_tokenizer(model: Path) -> None:
    tokenizer = Tokenizer.load(str(model), trust_remote_code=False)
    line, _ = report(str(model), ModelDefaults(eos_token_ids=(2, 1)), tokenizer, INFO)
    assert line.startswith("texts end at <|im_end|> (2, from generation_config.json) or <|im_start|> (1, from the tok")


def test_report_says_that_nothing_ends_texts(model: Path) -> None:
    for name in ("generation_config.json", "config.json"):
        change(model, name, eos_token_id=None)
    assert told(model)[0].startswith("no file names a token that ends texts: they end at their limit;")


def test_report_says_what_cut_length(model: Path) -> None:
    cut = told(model, max_sequence_tokens=4096)[0]
    assert "a sequence holds 4096 tokens, as many as fit in the KV cache (the model could take 8192);" in cut
    own = told(model, length_reason="LONGHAUL_MAX_MODEL_LEN, of the model's 9000")[0]
    assert "a sequence holds 8192 tokens (LONGHAUL_MAX_MODEL_LEN, of the model's 9000);" in own


@pytest.mark.parametrize(
    ("settings", "files", "told_of"),
    [
        ({"chat_template": None}, {}, "it has no chat template, so that chats are refused"),
        ({}, {}, "chats go through the template of tokenizer_config.json"),
        ({"chat_template": None}, {"chat_template.json": '{"chat_template": "x"}'}, "template of chat_template.json"),
        (
            {"chat_template": [{"name": "default", "template": "x"}, {"name": "tool_use", "template": "y"}]},
            {},
            "template of tokenizer_config.json, named default, tool_use",
        ),
    ],
    ids=["none", "settings", "processor", "named"],
)
def test_report_names_templates_source(
    settings: dict[str, Any], files: dict[str, str], told_of: str, model: Path
) -> None:
    change(model, "tokenizer_config.json", **({"chat_template": "x"} | settings))
    for name, content in files.items():
        (model / name).write_text(content)
    assert told(model)[0].endswith(told_of)


def test_report_names_mistrals_template(model: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    save_tekken(model)
    assert told(model)[0].endswith("chats go through the template of mistral-common, made for tekken.json")
