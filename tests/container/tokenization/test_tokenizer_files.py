"""Tokenizers from whichever files a model has, compared with what their own libraries make of the texts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from container.core import Chat, Text
from container.tokenization.detokenizer import Detokenizer
from container.tokenization.tokenizer import Tokenizer
from container.tokenization.tokenizer_files import is_to_convert, load_tokenizer
from testing.tokenizer_files import PIECES, save_sentencepiece, save_tekken

TEXTS = [
    "The capital of France is",
    "für 日本 🙂\n",
    "def f(x):\n    return  x +  1\n\n\n        # deep",
    "a\x00b\u2028c\r\n\t",
    "1,234.5 e\u0301 ﬁ ½ <0x41>",
    "x" * 50,
]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a  sea."},
    {"role": "assistant", "content": "The Baltic Sea."},
    {"role": "user", "content": "für 日本?"},
]


def model(directory: Path, model_type: str = "mistral", **files: Any) -> Path:
    """Write a model's files without weights; `__` is a dot in a keyword."""
    for name, content in {"config__json": {"model_type": model_type}, **files}.items():
        (directory / name.replace("__", ".")).write_text(json.dumps(content))
    return directory


@pytest.fixture(scope="module")
def sentencepiece_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sentencepiece(tmp_path_factory.mktemp("sentencepiece"))


@pytest.fixture
def put_sentencepiece(sentencepiece_file: Path, tmp_path: Path) -> Callable[..., Path]:
    def put(model_type: str = "mistral", **files: Any) -> Path:
        (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file.read_bytes())
        return model(tmp_path, model_type, **files)

    return put


@pytest.fixture(scope="module")
def tekken_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tekken(tmp_path_factory.mktemp("tekken"))


@pytest.fixture
def tekken_model(tekken_file: Path, tmp_path: Path) -> Path:
    (tmp_path / "tekken.json").write_bytes(tekken_file.read_bytes())
    return model(tmp_path)


def load(directory: Path) -> Tokenizer:
    return Tokenizer.load(str(directory), trust_remote_code=False)


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(Text(text=text), param="prompt", max_tokens=1000).ids


@pytest.mark.parametrize("model_type", ["llama", "mistral", "phi3", "gemma2"])
def test_sentencepiece_model_alone_loads(model_type: str, put_sentencepiece: Callable[..., Path]) -> None:
    directory = put_sentencepiece(model_type)
    tokenizer = load(directory)
    reference: Any = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    assert [encode(tokenizer, text) for text in TEXTS] == [reference.encode(text, add_bos=True) for text in TEXTS]


def test_sentencepiece_texts_come_back(put_sentencepiece: Callable[..., Path]) -> None:
    tokenizer = load(put_sentencepiece())
    for text in TEXTS:
        ids = encode(tokenizer, text)
        detokenizer = Detokenizer(tokenizer.vocabulary)
        assert "".join(map(detokenizer.add, ids)) + detokenizer.finish() == text == tokenizer.decode(ids)


def test_sentencepiece_settings_are_kept(put_sentencepiece: Callable[..., Path]) -> None:
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "chat_template": "{{ messages }}"}
    directory = put_sentencepiece(tokenizer_config__json=settings, added_tokens__json={"<pad>": PIECES})
    tokenizer: Any = load_tokenizer(str(directory), trust_remote_code=False)
    assert tokenizer("The sea")["input_ids"] == tokenizer("The sea", add_special_tokens=False)["input_ids"]
    assert (tokenizer.eos_token, tokenizer.chat_template) == ("</s>", "{{ messages }}")
    assert tokenizer.convert_tokens_to_ids(["[INST]", "<pad>"]) == [3, PIECES]


def test_foreign_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    with pytest.raises(ValueError, match=r"tokenizer\.model is not one of sentencepiece's: give .* a tokenizer\.json"):
        load(model(tmp_path))


def test_sentencepiece_that_drops_spaces_is_refused(tmp_path: Path) -> None:
    """It removes them before it cuts a text, which the conversion doesn't."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 9),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type="bpe",
        vocab_size=90,
        minloglevel=2,
    )
    with pytest.raises(ValueError, match="it would give other tokens"):
        load(model(tmp_path))


def test_tekken_alone_loads(tekken_model: Path) -> None:
    tokenizer = load(tekken_model)
    reference = Tekkenizer.from_file(tekken_model / "tekken.json")
    assert [encode(tokenizer, text) for text in TEXTS] == [
        reference.encode(text, bos=True, eos=False) for text in TEXTS
    ]
    for text in TEXTS:
        detokenizer = Detokenizer(tokenizer.vocabulary)
        assert "".join(map(detokenizer.add, encode(tokenizer, text))) + detokenizer.finish() == text


def test_tekken_chat_is_mistrals_own(tekken_model: Path) -> None:
    tokenizer = load(tekken_model)
    prompt = tokenizer.encode(Chat(messages=tuple(CHAT)), param="messages", max_tokens=1000)
    reference = MistralTokenizer.from_file(str(tekken_model / "tekken.json"))
    assert prompt.ids == reference.encode_chat_completion(ChatCompletionRequest(messages=CHAT)).tokens


def test_tekkens_own_template_goes_first(tekken_model: Path) -> None:
    (tekken_model / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    prompt = load(tekken_model).encode(Chat(messages=tuple(CHAT)), param="messages", max_tokens=1000)
    assert prompt.text == "<s>Be brief."


def test_processors_template_is_taken_where_alone(tekken_model: Path) -> None:
    (tekken_model / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages[0].role }}"}))
    assert load(tekken_model).encode(Chat(messages=tuple(CHAT)), param="m", max_tokens=9).text == "system"


def test_whole_tokenizer_goes_before_tekken(tekken_model: Path, model_dir: str) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tekken_model / name).write_bytes(Path(model_dir, name).read_bytes())
    assert not is_to_convert(str(tekken_model))
    assert encode(load(tekken_model), "hello") == [28120]


def test_threads_share_converted_tokenizer(put_sentencepiece: Callable[..., Path]) -> None:
    tokenizer = load(put_sentencepiece())

    def there_and_back(number: int) -> bool:
        text = f"Text {number}: für 日本 " * (number % 50 + 1)
        return tokenizer.decode(tokenizer.encode(Text(text=text), param="p", max_tokens=10_000).ids) == text

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(there_and_back, range(100)))


@pytest.mark.parametrize("kind", ["sentencepiece", "tekken"])
def test_saved_conversion_is_the_same(
    kind: str, put_sentencepiece: Callable[..., Path], tekken_file: Path, tmp_path: Path
) -> None:
    if kind == "tekken":
        (tmp_path / "tekken.json").write_bytes(tekken_file.read_bytes())
        directory = model(tmp_path)
    else:
        directory = put_sentencepiece()
    saved = tmp_path / "saved"
    saved.mkdir()
    first = load(directory)
    first.save(str(directory), str(saved))
    second = load(saved)
    assert is_to_convert(str(directory)) and not is_to_convert(str(saved))
    assert [encode(second, text) for text in TEXTS] == [encode(first, text) for text in TEXTS]
    assert (saved / "config.json").read_text() == (directory / "config.json").read_text()


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "gpt2"])
def test_missing_tokenizer_is_named(model_type: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is none of tokenizer\.json, tokenizer\.model, tekken\.json, vocab"):
        load(model(tmp_path, model_type))


def test_tokenizer_without_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"Qwen2Tokenizer finds no vocabulary in vocab\.txt"):
        load(model(tmp_path, "qwen2"))


@pytest.mark.parametrize("model_type", ["qwen2", "gpt2"])
def test_vocabulary_and_merges_alone_load(model_type: str, tmp_path: Path, model_dir: str) -> None:
    whole = json.loads(Path(model_dir, "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(whole["vocab"]))
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in whole["merges"])
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    tokenizer = load(model(tmp_path, model_type))
    assert tokenizer.decode(encode(tokenizer, "für 日本 hello")) == "für 日本 hello"


def test_broken_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=f"the tokenizer of {tmp_path} can't be loaded: "):
        load(model(tmp_path))


def test_conversion_imports_no_torch(tekken_model: Path) -> None:
    script = (
        "import sys; from container.tokenization.tokenizer import Tokenizer;"
        f"Tokenizer.load({str(tekken_model)!r}, trust_remote_code=False);"
        "assert not [m for m in sys.modules if m.split('.')[0] == 'torch' and sys.modules[m]]"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_id_behind_last_token_has_no_text(model_dir: str) -> None:
    """Embeddings are often rounded up (Qwen: 151,936 rows for 151,669 tokens), and a model may choose the others."""
    tokenizer = load(Path(model_dir))
    hello = encode(tokenizer, "hello")
    detokenizer = Detokenizer(tokenizer.vocabulary)
    pieces = [detokenizer.add(token_id) for token_id in (*hello, 49_152, 60_000, *hello)]
    assert pieces == ["hello", "", "", "hello"]
    assert tokenizer.decode([*hello, 49_152, 60_000, *hello]) == "hellohello"
