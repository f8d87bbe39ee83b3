"""The documents compared with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from container.dialects.batch import read_line
from container.dialects.document import JSON_LINES
from container.engine.worker.model import SUPPORTED
from container.engine.worker.model_table import model_table
from container.server.app import create_app
from container.server.exchange import Exchanges
from container.server.state import ServerState
from container.settings import Settings, settings_table
from testing import ROOT
from testing.container.documents import read_document
from testing.exactness import TIE

README = (ROOT / "README.md").read_text()
FENCED = re.findall(r"(<!-- request -->\n)?```(\w+)\n(.*?)```", README, re.DOTALL)
REQUESTS = [text for marked, language, text in FENCED if marked and language == "json"]
LINES = [text for marked, language, text in FENCED if not marked and language == "json"]
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text()
CASES = re.findall(
    r"^\| (.+) \| (.+) \| (0\.\d+) \| `(test_\w+(?:\[[^`]+\])?)` \|$",
    (ROOT / "docs" / "requests.md").read_text(),
    re.MULTILINE,
)
PROMISES = re.findall(r"^\| ([^|`]+?) \| (`test_.*) \|$", RELIABILITY, re.MULTILINE)
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("findings/*.md")]
FOLDERS = "container|endpoint|testing|tests|scripts|examples|docs|findings"
# No URI, host or longer path before it, and no placeholder in it: s3://bucket/docs, /opt/longhaul/container, scripts/….
FILE_NAME = re.compile(rf"(?<![\w/.:<{{-])(?:\./|\$PWD/)?((?:{FOLDERS})/[\w./-]*\w)(?![\w<{{*…])")
MODULE_NAME = re.compile(r"(?<![\w/.:-])((?:container|endpoint|testing)(?:\.[A-Za-z_]\w*)+)(?![\w(])")
CURLS = re.findall(r"^curl .*?(?<!\\)$", README, re.DOTALL | re.MULTILINE)


def test_settings_table_matches_code() -> None:
    assert f"<!-- settings -->\n{settings_table()}\n<!-- /settings -->" in README


def types_in(summary: str) -> list[str]:
    """Return the types that the README lists in the details with this summary, in its order."""
    part = re.search(rf"<details><summary>{summary}</summary>\n(.*?)</details>", README, re.DOTALL)
    assert part is not None
    return re.findall(r"`([\w-]+)`", part[1])


def test_list_of_models_matches_code() -> None:
    assert types_in(r"All \d+ types") == sorted(SUPPORTED)


def test_refused_models_match_code() -> None:
    assert sorted(types_in(r"\d+ types are refused")) == sorted(model_table().types.keys() - SUPPORTED)


def test_tie_matches_tests() -> None:
    assert f"within {TIE:.0e} of".replace("e-05", "e-5") in README


def test_readme_has_requests_lines_and_commands() -> None:
    assert len(REQUESTS) >= 3 and len(LINES) >= 1 and len(CURLS) >= 3


@pytest.mark.parametrize("body", REQUESTS)
def test_request_is_accepted(body: str) -> None:
    assert read_document("application/json", body.encode(), None).items


@pytest.mark.parametrize("line", [line for text in LINES for line in text.splitlines()])
def test_batch_line_is_accepted(line: str) -> None:
    assert read_line(line.encode(), 1).call is not None


def routes() -> set[str]:
    app = create_app(ServerState(Settings()), Exchanges())
    return {getattr(route, "path", "") for route in app.routes}


@pytest.mark.parametrize("command", CURLS)
def test_command_names_an_existing_path(command: str) -> None:
    path = re.search(r"localhost:8080(/\S*)", command)
    assert path is not None and path[1] in routes()


@pytest.mark.parametrize("command", CURLS)
def test_commands_body_is_accepted(command: str) -> None:
    content_type = re.search(r"Content-Type: ([\w/]+)", command)
    attributes = re.search(r"Custom-Attributes: ([^']+)", command)
    body = re.search(r"-d '(.*?)'", command, re.DOTALL)
    assert content_type is not None
    if content_type[1] in JSON_LINES:
        file = re.search(r"--data-binary @(\S+)", command)
        assert file is not None
        lines = (ROOT / file[1]).read_bytes().splitlines()
        assert all(read_line(line, 1).call for line in lines)
    else:
        assert body is not None
        assert read_document(content_type[1], body[1].encode(), attributes[1] if attributes else None).items


def names_of_tests() -> set[str]:
    files = (path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    return {name for text in files for name in re.findall(r"^(?:async )?def (test_\w+)", text, re.MULTILINE)}


def test_every_promise_names_existing_tests() -> None:
    there = names_of_tests()
    assert len(PROMISES) >= 10
    for promise, tests in PROMISES:
        named = re.findall(r"`(test_\w+)`", tests)
        assert named and set(named) <= there, (promise, set(named) - there)


def test_every_case_of_requests_is_tested() -> None:
    rows = re.findall(r"^\| (?!sent|answered)", (ROOT / "docs" / "requests.md").read_text(), re.MULTILINE)
    tests = [test for *_, test in CASES]
    assert len(CASES) == len(rows), "each row has four columns, the last with one test"
    assert len(set(tests)) == len(tests), "each case has a test of its own"
    assert {test.partition("[")[0] for test in tests} <= names_of_tests()


def test_every_promise_is_explained_and_tested() -> None:
    told = re.findall(r"^\*\*How\.\*\*", RELIABILITY, re.MULTILINE)
    assert len(told) == len(PROMISES)


def code_of(document: Path) -> str:
    """Return what is in code blocks and backticks, with the targets of links."""
    text = document.read_text()
    blocks = re.findall(r"^```.*?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(((?!https?:)[^)#]+)", prose)
    relative = [str((document.parent / link).resolve().relative_to(ROOT)) for link in links]
    return "\n".join([*blocks, *re.findall(r"`([^`]+)`", prose), *relative])


def missing_files(text: str) -> set[str]:
    """Find the names of files of the checkout that don't exist. NAME is a placeholder."""
    return {name for name in FILE_NAME.findall(text) if not (ROOT / name).exists() and "NAME" not in name}


def missing_names(text: str) -> set[str]:
    """Find the names of files of the checkout and of modules that don't exist."""
    # "endpoint.md" is a file beside the document, "container.name" may be a module or what a module has.
    modules = {name for name in MODULE_NAME.findall(text) if not name.endswith((".md", ".py"))}
    return missing_files(text) | {name for name in modules if not is_module_or_attribute(name)}


def is_module_or_attribute(name: str) -> bool:
    """Return whether it is a module, or something that the module before the last dot has."""
    parts = name.split(".")
    if (ROOT / Path(*parts)).is_dir() or (ROOT / Path(*parts).with_suffix(".py")).is_file():
        return True
    parent, attribute = Path(*parts[:-1]), parts[-1]
    source = ROOT / parent / "__init__.py" if (ROOT / parent).is_dir() else ROOT / parent.with_suffix(".py")
    return source.is_file() and re.search(rf"\b{attribute}\b", source.read_text()) is not None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_existing_files_and_modules(document: Path) -> None:
    assert missing_names(code_of(document)) == set()


def test_gone_files_and_modules_are_found() -> None:
    text = "scripts/gone container/edge.py tests/test_edge.py container.edge.Edge ./scripts/bench scripts/soak.py"
    assert missing_names(text) == {"scripts/gone", "container/edge.py", "tests/test_edge.py", "container.edge.Edge"}


def test_uris_placeholders_and_image_paths_pass() -> None:
    text = "s3://docs/gone /opt/longhaul/container/gone https://x/scripts/gone tests/… scripts/<name> findings/NAME.sh"
    assert missing_names(text) == set()


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*")), ids=lambda path: path.name)
def test_scripts_name_existing_files(script: Path) -> None:
    """Shell scripts and the programs beside them name files in strings and comments, which no import checks."""
    if script.is_file():
        assert missing_files(script.read_text()) == set()
