"""Models fetched from a hub: a real one's requests and answers, on a loopback port."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from testing.container.fake_hub import REPOSITORY, FakeHub

PROGRAM = """
import sys
from container.settings import BadSetting, Settings
from container.startup.model_source import local_directory
try:
    print(local_directory(sys.argv[1], Settings.from_env({})))
except BadSetting as error:
    print(error)
    sys.exit(1)
"""


@pytest.fixture
def hub(tmp_path: Path) -> FakeHub:
    (tmp_path / "repository").mkdir()
    return FakeHub(tmp_path / "repository")


def fetch(hub: FakeHub, model: str = REPOSITORY, *, succeeds: bool = True) -> str:
    """Fetch in a process of its own, as huggingface_hub reads its variables once."""
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(hub.folder.parent / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, model],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (0 if succeeds else 1), done.stderr
    return done.stdout.strip()


def names(directory: str) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in Path(directory).rglob("*") if path.is_file()}


def test_hub_repository_is_fetched_once(hub: FakeHub) -> None:
    weight_map = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    wanted = {
        "config.json": "{}",
        "model.safetensors.index.json": json.dumps({"weight_map": weight_map}),
        "model-1-of-2.safetensors": "1",
        "model-2-of-2.safetensors": "2",
        "tokenizer.json": "3",
        "chat_template.jinja": "4",
        "additional_chat_templates/tool_use.jinja": "5",
    }
    copies = ("consolidated.safetensors", "model.gguf", "pytorch_model.bin", "original/config.json", "onnx/model.onnx")
    for name, content in (*wanted.items(), *((name, "copy") for name in (*copies, "fp16/model.safetensors"))):
        path = hub.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    with hub:
        directory = fetch(hub)
        assert names(directory) == set(wanted)
        assert sorted(hub.fetched) == sorted(wanted)
        assert fetch(hub) == directory
        assert sorted(hub.fetched) == sorted(wanted)
    assert fetch(hub) == directory  # without a connection, as a container that is started again


def test_model_in_repositorys_folder_is_fetched(hub: FakeHub) -> None:
    for name in ("README.md", "bf16/config.json", "bf16/model.safetensors"):
        (hub.folder / name).parent.mkdir(exist_ok=True)
        (hub.folder / name).touch()
    with hub:
        directory = fetch(hub)
    assert directory.endswith("/bf16") and names(directory) == {"config.json", "model.safetensors"}
    assert fetch(hub) == directory


def test_unfetchable_model_is_named(hub: FakeHub) -> None:
    with hub:
        assert "holds no model that can be served: it has no config.json" in fetch(hub, succeeds=False)
        assert fetch(hub, "org/other", succeeds=False).startswith("org/other is not a directory and can't be fetched")
    assert hub.fetched == []
