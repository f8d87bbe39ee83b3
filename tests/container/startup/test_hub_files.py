from __future__ import annotations

import json

import pytest

from container.settings import BadSetting
from container.startup.hub_files import choose_weights, find_folder, list_support_files, read_shards

MISTRAL = [
    ".gitattributes",
    "README.md",
    "config.json",
    "consolidated.safetensors",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "params.json",
    "tokenizer.json",
    "tokenizer.model",
]
GPT_OSS = [
    "chat_template.jinja",
    "config.json",
    "metal/model.bin",
    "model-00000-of-00002.safetensors",
    "model.safetensors.index.json",
    "onnx/model.onnx",
    "original/config.json",
    "original/model.safetensors",
    "original/tokenizer.json",
]


def index(*shards: str) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": {f"w{n}": name for n, name in enumerate(shards)}}).encode()


@pytest.mark.parametrize(
    ("files", "weights"),
    [
        (MISTRAL, "model.safetensors.index.json"),
        ([*MISTRAL, "model.safetensors"], "model.safetensors"),
        (["config.json", "model.safetensors", "pytorch_model.bin", "model.fp16.safetensors"], "model.safetensors"),
        (["config.json", "model.safetensors", "model.Q4_K_M.gguf"], "model.safetensors"),
    ],
    ids=["consolidated too", "whole beside shards", "pickle and variant too", "gguf too"],
)
def test_weights_are_chosen_once(files: list[str], weights: str) -> None:
    assert choose_weights("org/name", files, allow_pickle=True) == weights


def test_pickles_are_chosen_where_allowed() -> None:
    files = ["config.json", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"]
    assert choose_weights("org/name", files, allow_pickle=True) == "pytorch_model.bin.index.json"
    with pytest.raises(BadSetting, match="LONGHAUL_ALLOW_PICKLE=1"):
        choose_weights("org/name", files, allow_pickle=False)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["config.json", "model.fp16.safetensors"], r"expected model\.safetensors, .* \(it has model\.fp16"),
        (["config.json", "model.Q8_0.gguf"], "model.Q8_0.gguf is weights for llama.cpp"),
        (["config.json", "adapter_config.json", "adapter_model.safetensors"], "is an adapter's"),
    ],
    ids=["variant", "gguf", "adapter"],
)
def test_repository_without_weights_is_refused(files: list[str], reason: str) -> None:
    with pytest.raises(BadSetting, match=f"org/name has no weights that can be loaded: .*{reason}"):
        choose_weights("org/name", files, allow_pickle=False)


def test_copies_are_no_support_files() -> None:
    assert list_support_files(GPT_OSS, with_code=False) == {"chat_template.jinja", "config.json"}
    support = list_support_files(MISTRAL, with_code=False)
    assert support == {"config.json", "generation_config.json", "params.json", "tokenizer.json", "tokenizer.model"}


def test_named_templates_and_trusted_code_come() -> None:
    files = ["config.json", "additional_chat_templates/tool_use.jinja", "modeling_own.py", "layers/own.py"]
    assert list_support_files(files, with_code=False) == set(files[:2])
    assert list_support_files(files, with_code=True) == set(files)


def test_shards_are_those_of_index() -> None:
    files = ["a/1.safetensors", "a/2.safetensors", "b/1.safetensors"]
    assert read_shards("org/name", "i", index("a/1.safetensors", "a/2.safetensors"), files) == set(files[:2])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (index("1.safetensors", "2.safetensors"), "lacks 1 of the 2 files in i, the first is 2.safetensors"),
        (b"{}", "i is not an index of weights"),
        (b"version https://git-lfs", "i is not an index of weights"),
    ],
    ids=["missing shard", "no map", "no JSON"],
)
def test_unusable_index_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(BadSetting, match=reason):
        read_shards("org/name", "i", content, ["1.safetensors"])


def test_root_goes_before_folders() -> None:
    assert find_folder("org/name", GPT_OSS) == ("", GPT_OSS)


def test_only_folder_of_repository_is_found() -> None:
    names = ["README.md", "bf16/config.json", "bf16/model.safetensors", "original/config.json"]
    assert find_folder("org/name", names) == ("bf16/", ["config.json", "model.safetensors"])


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["bf16/config.json", "int8/config.json"], r"2 models \(bf16, int8\)"),
        (["README.md"], "it has no config.json"),
        (["adapter_config.json", "adapter_model.safetensors"], "is an adapter's"),
        (["model.gguf"], "is weights for llama.cpp"),
        (["params.json", "consolidated.safetensors", "tekken.json"], "their maker's own format"),
    ],
    ids=["several", "nothing", "adapter", "gguf", "consolidated"],
)
def test_repository_without_model_is_refused(names: list[str], reason: str) -> None:
    with pytest.raises(BadSetting, match=f"org/name holds .*{reason}"):
        find_folder("org/name", names)
