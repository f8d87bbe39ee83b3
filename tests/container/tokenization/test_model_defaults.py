from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from container.tokenization.model_defaults import ModelDefaults


def load(at: Path, generation: Any = None, config: Any = None) -> ModelDefaults:
    for name, content in (("generation_config.json", generation), ("config.json", config)):
        if content is not None:
            at.joinpath(name).write_text(json.dumps(content))
    return ModelDefaults.load(str(at))


def test_the_real_models_files_are_read(model_dir: str) -> None:
    assert ModelDefaults.load(model_dir) == ModelDefaults(eos_token_ids=(2,), vocab_size=49152)


def test_missing_files_give_no_defaults(tmp_path: Path) -> None:
    assert load(tmp_path) == ModelDefaults()


def test_end_tokens_prefer_generation_config(tmp_path: Path) -> None:
    assert load(tmp_path, config={"text_config": {"eos_token_id": 7}}).eos_token_ids == (7,)
    assert load(tmp_path, {"eos_token_id": None}, {"eos_token_id": 5}).eos_token_ids == (5,)
    assert load(tmp_path, {"eos_token_id": [3, 4]}, {"eos_token_id": 5}).eos_token_ids == (3, 4)


@pytest.mark.parametrize("wrong", [50, -1, True, "2"])
def test_end_token_outside_vocabulary_is_ignored(wrong: object, tmp_path: Path) -> None:
    defaults = load(tmp_path, {"eos_token_id": [49, wrong]}, {"vocab_size": 50})
    assert defaults.eos_token_ids == (49,)
    assert defaults.warnings == (f"eos_token_id: {wrong!r} is not in the model's vocabulary and has no effect",)


def test_sampling_is_read_from_the_generation_config(tmp_path: Path) -> None:
    generation: dict[str, Any] = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1}
    assert load(tmp_path, generation) == ModelDefaults(**generation)
    assert load(tmp_path, {"repetition_penalty": 1.1}) == ModelDefaults(repetition_penalty=1.1)


def test_a_models_temperature_of_zero_means_greedy(tmp_path: Path) -> None:
    assert load(tmp_path, {"do_sample": True, "temperature": 0.0}) == ModelDefaults(do_sample=False)


def test_too_hot_temperature_is_ignored(tmp_path: Path) -> None:
    assert load(tmp_path, {"temperature": 1e6}) == ModelDefaults(temperature=1e6)
    hotter = load(tmp_path, {"temperature": 1e39})
    assert (hotter.temperature, len(hotter.warnings)) == (None, 1)


def test_unsupported_model_settings_are_warnings(tmp_path: Path) -> None:
    asked = {"typical_p": 0.9, "num_beams": 1, "top_p": 7, "bos_token_id": 1, "min_p": None, "repetition_penalty": 0}
    assert [warning.split(": ")[1] for warning in load(tmp_path, asked).warnings] == [
        "top_p is out of range and has no effect",
        "repetition_penalty is out of range and has no effect",
        "typical_p is not supported yet and has no effect",
    ]


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_file_without_json_object_is_error(content: str, tmp_path: Path) -> None:
    tmp_path.joinpath("generation_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"generation_config\.json"):
        ModelDefaults.load(str(tmp_path))


def test_tokenizers_end_token_is_joined() -> None:
    assert ModelDefaults(eos_token_ids=(2, 3)).with_end_token(7).eos_token_ids == (2, 3, 7)
    assert ModelDefaults(eos_token_ids=(2, 3)).with_end_token(3).eos_token_ids == (2, 3)
    assert ModelDefaults().with_end_token(None).eos_token_ids == ()
