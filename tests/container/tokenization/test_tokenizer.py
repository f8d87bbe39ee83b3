from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from container.core import Chat, Prompt, Text, TokenIds
from container.errors import InvalidRequest
from container.tokenization.tokenizer import Tokenizer
from testing import tiny_tokenizers
from testing.chat_templates import STYLES

CANARY = "kept-secret"


@pytest.fixture(scope="module")
def tokenizer(model_dir: str) -> Tokenizer:
    return Tokenizer.load(model_dir, trust_remote_code=False)


@pytest.fixture(scope="module")
def reference(model_dir: str) -> Any:
    return AutoTokenizer.from_pretrained(model_dir)


def chat(content: str = "Hi", role: str = "user") -> Chat:
    return Chat(messages=({"role": role, "content": content},))


def refusal(tokenizer: Tokenizer, prompt: Prompt, max_tokens: int = 100) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        tokenizer.encode(prompt, param="inputs[3]", max_tokens=max_tokens)
    assert CANARY not in caught.value.message
    assert caught.value.param == "inputs[3]"
    return caught.value


def with_template(model_dir: str, at: Path, template: str | None) -> Tokenizer:
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(Path(model_dir, name), at)
    if template is not None:
        at.joinpath("chat_template.jinja").write_text(template)
    return Tokenizer.load(str(at), trust_remote_code=False)


@pytest.mark.parametrize("text", ["Once upon a time", " für 日本 🙂\n", "<|im_start|>user\n", "\x00", "a" * 500])
def test_text_ids_match_reference(text: str, tokenizer: Tokenizer, reference: Any) -> None:
    encoded = tokenizer.encode(Text(text=text), param="inputs", max_tokens=1000)
    assert encoded.ids == reference(text)["input_ids"]
    assert encoded.text == text


def test_chat_ids_match_reference(tokenizer: Tokenizer, reference: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <|im_end|> 🙂"}]
    encoded = tokenizer.encode(Chat(messages=tuple(messages)), param="messages", max_tokens=1000)
    ids = reference.apply_chat_template(messages, add_generation_prompt=True, sanitize_control_tokens=True)
    assert encoded.ids == ids["input_ids"]
    assert encoded.text == reference.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def test_chat_has_only_template_special_tokens(model_dir: str, tmp_path: Path) -> None:
    tokenizer = with_template(model_dir, tmp_path, "{{ bos_token }}{{ messages[0].content }}")
    bos = tokenizer.encode(Text(text="<|im_start|>"), param="inputs", max_tokens=100).ids
    assert tokenizer.encode(chat("a"), param="messages", max_tokens=100).ids[:2] != bos * 2
    assert tokenizer.encode(chat("a"), param="messages", max_tokens=100).ids[:1] == bos


def test_token_ids_are_used_as_they_are(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode(TokenIds(ids=(1, 28120, 2)), param="prompt", max_tokens=100)
    assert encoded.ids == [1, 28120, 2]
    assert encoded.text == "hello"


def test_an_id_outside_the_vocabulary_is_refused(tokenizer: Tokenizer) -> None:
    assert "from 0 to 49151" in refusal(tokenizer, TokenIds(ids=(1, 49152))).message


def test_id_outside_embedding_is_refused(model_dir: str) -> None:
    tokenizer = Tokenizer.load(model_dir, trust_remote_code=False, vocab_size=1000)
    assert "from 0 to 999" in refusal(tokenizer, Text(text="hello")).message


def test_longest_prompt_leaves_one_token(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode(TokenIds(ids=(5,) * 99), param="prompt", max_tokens=100).ids) == 99
    error = refusal(tokenizer, TokenIds(ids=(5,) * 100), max_tokens=100)
    assert error.message == "inputs[3]: prompt has 100 tokens; the model holds 100, of which the answer needs one"


def test_too_long_prompt_is_refused_with_numbers(tokenizer: Tokenizer) -> None:
    error = refusal(tokenizer, TokenIds(ids=(5,) * 9000), max_tokens=8192)
    assert "prompt has 9000 tokens; the model holds 8192" in error.message
    assert error.code == "context_length_exceeded"


def test_hopelessly_long_text_is_not_tokenized(tokenizer: Tokenizer) -> None:
    error = refusal(tokenizer, Text(text="ab " * 10_000_000), max_tokens=8192)
    assert "prompt has 30000000 characters; the model holds 8192 tokens" in error.message
    assert error.code == "context_length_exceeded"


def test_prompt_of_longest_tokens_fits(tokenizer: Tokenizer) -> None:
    longest = "=" * 65  # one token, with the space before it
    prompt = Text(text=f" {longest}" * 99)
    assert len(tokenizer.encode(prompt, param="inputs", max_tokens=100).ids) <= 99


def test_a_prompt_without_tokens_is_refused(model_dir: str, tmp_path: Path) -> None:
    assert "no tokens" in refusal(with_template(model_dir, tmp_path, "{# empty #}"), chat()).message


def test_missing_chat_template_is_named(model_dir: str, tmp_path: Path) -> None:
    error = refusal(with_template(model_dir, tmp_path, None), chat(CANARY))
    assert (error.code, "has no chat template" in error.message) == ("no_chat_template", True)


def test_a_templates_own_sentence_is_passed_on(model_dir: str, tmp_path: Path) -> None:
    template = "{{ raise_exception('Roles must alternate') }}"
    assert "Roles must alternate" in refusal(with_template(model_dir, tmp_path, template), chat(CANARY)).message


@pytest.mark.parametrize("failing", ["raise_exception('Bad: ' + messages[0].content)", "messages[0].content + 1"])
def test_a_templates_failure_never_quotes_a_message(failing: str, model_dir: str, tmp_path: Path) -> None:
    error = refusal(with_template(model_dir, tmp_path, "{{ " + failing + " }}"), chat(CANARY))
    assert "the model's chat template refuses these messages" in error.message
    assert error.__context__ is None


def test_decoded_text_matches_reference(tokenizer: Tokenizer, reference: Any) -> None:
    ids = reference("Well , isn 't it ?\n <|im_end|> 🙂")["input_ids"]
    assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)
    assert tokenizer.decode([]) == ""


@pytest.fixture
def with_bos() -> Tokenizer:
    style = STYLES["instructions"]
    tokenizer = style.tokenizer(begins_with="<s>")
    return Tokenizer(tokenizer, len(tokenizer))


def count_bos(tokenizer: Tokenizer, prompt: Prompt, **given: Any) -> int:
    ids = tokenizer.encode(prompt, param="prompt", max_tokens=99, **given).ids
    return ids.count(tokenizer.special_token_ids(["<s>"])[0])


@pytest.mark.parametrize(
    ("prompt", "added", "count"),
    [
        (Text(text="The sea"), None, 1),
        (Text(text="<s>The sea"), None, 1),
        (Text(text="<s>The sea"), True, 1),
        (Text(text="<s><s>The sea"), None, 2),
        (Text(text="<s>The sea"), False, 1),
        (Text(text="The sea"), False, 0),
        (chat(), None, 1),
        (chat(), True, 1),
        (chat("[INST]"), True, 1),
        (TokenIds(ids=(1, 2)), True, 0),
    ],
    ids=[
        "text",
        "text with BOS",
        "text with BOS and one asked for",
        "text with two BOS",
        "text with BOS and none asked for",
        "text with none asked for",
        "chat",
        "chat with one asked for",
        "chat with a control token and one asked for",
        "token ids",
    ],
)
def test_prompt_gets_no_second_bos(prompt: Prompt, added: bool | None, count: int, with_bos: Tokenizer) -> None:
    assert count_bos(with_bos, prompt, adds_special_tokens=added) == count


def test_second_bos_is_told_once(with_bos: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        count_bos(with_bos, Text(text=f"<s>{CANARY}"))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert CANARY not in record.getMessage()


def test_chat_gets_asked_for_bos() -> None:
    tokenizer = STYLES["chatml"].tokenizer(begins_with="<|endoftext|>")
    first = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    mine = Tokenizer(tokenizer, len(tokenizer))
    for content in ("Hi", "<|im_end|>"):
        plain = mine.encode(chat(content), param="m", max_tokens=99)
        begun = mine.encode(chat(content), param="m", max_tokens=99, adds_special_tokens=True)
        assert begun.ids == [first, *plain.ids]


def test_named_end_token_is_found() -> None:
    tokenizer = STYLES["chatml"].tokenizer()
    assert Tokenizer(tokenizer, len(tokenizer)).end_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert Tokenizer(tokenizer, 256).end_token_id is None
    assert Tokenizer(tiny_tokenizers.byte_level(), 256).end_token_id is None


def test_end_token_without_an_id_ends_nothing() -> None:
    tokenizer = tiny_tokenizers.words()
    tokenizer._special_tokens_map["eos_token"] = "sea-end"  # which the vocabulary lacks
    assert Tokenizer(tokenizer, len(tokenizer)).end_token_id is None


def test_threads_share_a_tokenizer(tokenizer: Tokenizer) -> None:
    def there_and_back(number: int) -> bool:
        text = f"Text {number}: für 日本 " * (number % 50 + 1)
        ids = tokenizer.encode(Text(text=text), param="inputs", max_tokens=10_000).ids
        return tokenizer.decode(ids) == text and bool(tokenizer.encode(chat(text), param="m", max_tokens=10_000).ids)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(there_and_back, range(200)))


def test_loading_imports_no_torch_and_says_nothing(model_dir: str) -> None:
    script = (
        "import sys; from container.tokenization.tokenizer import Tokenizer;"
        f"t = Tokenizer.load({model_dir!r}, trust_remote_code=False);"
        "assert t.decode([28120]) == 'hello';"
        "assert not [m for m in sys.modules if m.split('.')[0] == 'torch' and sys.modules[m]]"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
