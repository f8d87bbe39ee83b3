from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from container.settings import BadSetting, Settings, is_service_link
from container.startup.model_source import find_model, local_directory


def refusal(**environ: str) -> str:
    with pytest.raises(BadSetting) as caught:
        Settings.from_env(environ)
    return str(caught.value)


def test_defaults_need_no_variables() -> None:
    settings = Settings.from_env({})
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert (settings.max_new_tokens, settings.stall_timeout_s) == (4096, 120.0)
    assert (settings.max_body_bytes, settings.max_json_bytes) == (1 << 30, 64 << 20)
    assert settings.spool_dir == tempfile.gettempdir()
    assert not settings.trust_remote_code and not settings.allow_pickle and not settings.unverified_models


def test_variables_are_read() -> None:
    settings = Settings.from_env({"LONGHAUL_THREADS": "3", "LONGHAUL_DEVICE": "cuda:1", "HF_MODEL_ID": "some/model"})
    assert (settings.threads, settings.device, settings.hf_model_id) == (3, "cuda:1", "some/model")


def test_empty_variable_counts_as_unset() -> None:
    assert Settings.from_env({"LONGHAUL_THREADS": " ", "LONGHAUL_TYPO": ""}) == Settings.from_env({})


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("LONGHAUL_PORT", "http", "a whole number from 1 to 65535"),
        ("LONGHAUL_PORT", "0", "a whole number from 1 to 65535"),
        ("LONGHAUL_PORT", "65536", "a whole number from 1 to 65535"),
        ("LONGHAUL_DEVICE", "gpu", "cpu, cuda or cuda:N"),
        ("LONGHAUL_DTYPE", "int8", "one of float32, float16, bfloat16"),
        ("LONGHAUL_THREADS", "1.5", "a whole number from 1 to 1024"),
        ("LONGHAUL_MAX_MODEL_LEN", "1", "a whole number from 2"),
        ("LONGHAUL_MAX_NEW_TOKENS", "0", "a whole number from 1"),
        ("LONGHAUL_KV_CACHE_TOKENS", "10", "a whole number from 64"),
        ("LONGHAUL_MAX_BATCH_TOKENS", "-1", "a whole number from 16"),
        ("LONGHAUL_STALL_TIMEOUT_S", "0.5", "a number of seconds, at least 1"),
        ("LONGHAUL_STALL_TIMEOUT_S", "nan", "a number of seconds, at least 1"),
        ("LONGHAUL_STALL_TIMEOUT_S", "inf", "a number of seconds, at least 1"),
        ("LONGHAUL_CLIENT_TIMEOUT_S", "0", "a number of seconds, at least 1"),
        ("LONGHAUL_MAX_BODY_BYTES", "1GB", "a whole number from 1024"),
        ("LONGHAUL_MAX_JSON_BYTES", "10", "a whole number from 1024"),
        ("LONGHAUL_SPOOL_DIR", "/no/such/place", "a directory that exists"),
        ("LONGHAUL_CHECKPOINT_URI", "checkpoints", "a directory's absolute path or s3://bucket/prefix"),
        ("LONGHAUL_CHECKPOINT_URI", "s3://", "a directory's absolute path or s3://bucket/prefix"),
        ("LONGHAUL_CHECKPOINT_URI", "gs://bucket/prefix", "a directory's absolute path or s3://bucket/prefix"),
        ("LONGHAUL_CHECKPOINT_INTERVAL_S", "0", "a number of seconds, from 0.1 to 3600"),
        ("LONGHAUL_CHECKPOINT_DAYS", "366", "a number of days, from 0.01 to 365"),
        ("LONGHAUL_CHECKPOINT_MAX_BYTES", "1000", "a whole number from 1048576"),
        ("LONGHAUL_LOG_LEVEL", "debug", "one of DEBUG, INFO, WARNING, ERROR"),
        ("LONGHAUL_PROGRESS", "yes", "one of log, s3"),
        ("LONGHAUL_TRUST_REMOTE_CODE", "maybe", "1, true, on, 0, false or off"),
        ("LONGHAUL_ALLOW_PICKLE", "2", "1, true, on, 0, false or off"),
        ("SAGEMAKER_BIND_TO_PORT", "web", "a whole number from 1 to 65535"),
    ],
)
def test_bad_value_names_variable_value_and_expectation(variable: str, value: str, expected: str) -> None:
    assert refusal(**{variable: value}) == f"{variable} is '{value}'; expected {expected}"


def test_unknown_variable_is_refused_with_known_ones() -> None:
    message = refusal(LONGHAUL_THREAD="3")
    assert message.startswith("LONGHAUL_THREAD is not a setting") and "LONGHAUL_THREADS" in message


def test_foreign_variables_are_ignored() -> None:
    assert Settings.from_env({"LONGHAULER": "1", "PATH": "/bin", "HF_HOME": "/tmp"}) == Settings.from_env({})


def test_sagemaker_variable_chooses_port() -> None:
    assert Settings.from_env({"SAGEMAKER_BIND_TO_PORT": "9000"}).port == 9000
    assert Settings.from_env({"SAGEMAKER_BIND_TO_PORT": "9000", "LONGHAUL_PORT": "9001"}).port == 9001


SERVICE_LINKS = {
    "LONGHAUL_SERVICE_HOST": "10.0.0.1",
    "LONGHAUL_SERVICE_PORT": "8080",
    "LONGHAUL_SERVICE_PORT_HTTP": "8080",
    "LONGHAUL_PORT": "tcp://10.0.0.1:8080",
    "LONGHAUL_PORT_8080_TCP": "tcp://10.0.0.1:8080",
    "LONGHAUL_PORT_8080_TCP_PROTO": "tcp",
    "LONGHAUL_PORT_8080_TCP_PORT": "8080",
    "LONGHAUL_PORT_8080_TCP_ADDR": "10.0.0.1",
    "LONGHAUL_GPU_SERVICE_HOST": "10.0.0.1",
    "LONGHAUL_GPU_PORT": "udp://10.0.0.1:53",
}


def test_kubernetes_service_links_are_not_settings() -> None:
    assert all(is_service_link(name, value) for name, value in SERVICE_LINKS.items())
    assert Settings.from_env(SERVICE_LINKS) == Settings.from_env({})


@pytest.mark.parametrize("name", ["LONGHAUL_PORT", "LONGHAUL_MODEL", "LONGHAUL_SERVED_NAME"])
def test_own_settings_are_not_service_links(name: str) -> None:
    assert not is_service_link(name, "8080")


def test_token_is_not_shown() -> None:
    settings = Settings.from_env({"HF_TOKEN": "hf_secret"})
    assert settings.hf_token == "hf_secret" and "secret" not in repr(settings)


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({"LONGHAUL_SERVED_NAME": "mine", "LONGHAUL_MODEL": "/models/other"}, "mine"),
        ({"LONGHAUL_MODEL": "/models/SmolLM2/"}, "SmolLM2"),
        ({"HF_MODEL_ID": "some/model"}, "model"),
        ({}, "model"),
    ],
)
def test_model_name_is_setting_or_path_end(environ: dict[str, str], name: str) -> None:
    assert Settings.from_env(environ).name == name


# The model's location


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def find(sagemaker_dir: Path | str = "/no/such/place", **environ: str) -> str:
    return find_model(Settings.from_env(environ), str(sagemaker_dir))


def test_model_setting_comes_first(model: Path) -> None:
    assert find(model, LONGHAUL_MODEL="some/model", HF_MODEL_ID="other/model") == "some/model"


def test_sagemaker_directory_comes_second(model: Path) -> None:
    assert find(model, HF_MODEL_ID="other/model") == str(model)


def test_hub_id_comes_last(tmp_path: Path) -> None:
    assert find(tmp_path, HF_MODEL_ID="other/model") == "other/model"


def test_missing_model_setting_is_refused() -> None:
    with pytest.raises(BadSetting, match=re.escape("set LONGHAUL_MODEL to a directory or hub id")):
        find()


@pytest.mark.parametrize("path", ["/no/such/place", "./nowhere", "../nowhere", "a/b/c"])
def test_missing_path_is_not_a_hub_id(path: str) -> None:
    with pytest.raises(
        BadSetting, match=re.escape(f"LONGHAUL_MODEL is '{path}', which is neither a directory nor a hub id")
    ):
        find(LONGHAUL_MODEL=path)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Become another user if this is root, who may read everything."""
    ids = os.getresuid()
    if ids[0] == 0:
        os.setresuid(54321, 54321, 0)
    try:
        yield
    finally:
        os.setresuid(*ids)


@pytest.mark.parametrize("closed", ["model.safetensors", "."])
@pytest.mark.parametrize("setting", [True, False], ids=["by setting", "in SageMaker's place"])
def test_unreadable_model_file_is_named(closed: str, setting: bool) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own are closed to others
        model = Path(name)
        model.chmod(0o755)
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").touch()
        (model / closed).chmod(0o000)
        with unprivileged(), pytest.raises(BadSetting, match=f"may not read {model / closed} .*chmod -R a"):
            find(LONGHAUL_MODEL=name) if setting else find(name)
        (model / closed).chmod(0o700)


def test_foreign_files_may_be_unreadable() -> None:
    with tempfile.TemporaryDirectory() as name:
        model = Path(name)
        model.chmod(0o755)
        (model / "config.json").write_text("{}")
        (model / "lost+found").mkdir(mode=0o000)
        (model / "notes.md").symlink_to("nowhere")
        with unprivileged():
            assert find(LONGHAUL_MODEL=name) == name


def test_dangling_link_is_named(model: Path) -> None:
    (model / "model.safetensors").symlink_to("../blobs/1")
    with pytest.raises(BadSetting, match=re.escape("model.safetensors is a link to ../blobs/1, which is not there")):
        find(LONGHAUL_MODEL=str(model))


def test_unreadable_sagemaker_directory_allows_hub_id() -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o000)
        with unprivileged():
            assert find(name, HF_MODEL_ID="some/model") == "some/model"


def test_directory_without_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="a directory that holds no model"):
        find(LONGHAUL_MODEL=str(tmp_path))


def test_directory_is_used_in_place(model: Path) -> None:
    assert local_directory(str(model), Settings.from_env({})) == str(model)
