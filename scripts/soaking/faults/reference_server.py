"""The server that is left in peace, and what it answered: what every other answer is held to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testing.exactness import DISTINCT, SHARE_OF_TIES
from testing.server import Server, eventually

from .answer_line import Choice, Told
from .batch import Work
from .call import Call
from .errors import expect
from .oracle import Oracle

MAX_MODEL_LEN = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Peace:
    """Of one batch in peace."""

    lines: tuple[Told, ...]
    tokens: int
    """That the server counted, those behind a stop string among them."""


class Undisturbed:
    """Owns one model's server, started when it is first asked, its answers, and the count of ties against them."""

    def __init__(
        self, model_dir: Path, directory: Path, settings: dict[str, Any], repeating_share: float = 0.0
    ) -> None:
        """`repeating_share`: of the rows, so many may repeat themselves."""
        self._model_dir = model_dir
        self._directory = directory
        self._settings = settings
        self._repeating_share = repeating_share
        self._server: Server | None = None
        self._peace: dict[Work, Peace] = {}
        self._oracle: Oracle | None = None
        self.rows = 0
        self.ties: list[str] = []

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    @property
    def has_too_many_ties(self) -> bool:
        return len(self.ties) > max(1, SHARE_OF_TIES * self.rows)

    def of(self, work: Work) -> Peace:
        if work not in self._peace:
            self._peace[work] = self._ask(work)
        return self._peace[work]

    def _ask(self, work: Work) -> Peace:
        if self._server is None:
            settings = self._settings | {"LONGHAUL_CHECKPOINT_URI": self._directory / "journal"}
            self._server = Server(self._model_dir, self._directory / "log", **settings)
            self._server.wait_until_ready()
        before = self._server.metric("longhaul_generation_tokens_total")
        lines = Call(self._server.port, work).answer().lines
        server = self._server
        eventually(lambda: not server.metric("longhaul_sequences_running"))
        tokens = int(server.metric("longhaul_generation_tokens_total") - before)
        for number, line in enumerate(lines):
            expect(not line.error, f"in peace, item {number} is an error: {line.error}")
        self._check_varied(lines)
        return Peace(lines=tuple(lines), tokens=tokens)

    def _check_varied(self, lines: list[Told]) -> None:
        """A model that repeats itself would show nothing. A real one's greedy rows do at times."""
        rows = [choice for line in lines for choice in line.choices if choice.finish_reason == "length"]
        varied = [len(set(self.oracle.ids_of(row.text))) >= DISTINCT for row in rows]
        found = f"in peace, {varied.count(False)} of {len(varied)} rows repeat themselves"
        expect(varied.count(False) <= self._repeating_share * len(varied), found)

    @property
    def oracle(self) -> Oracle:
        if self._oracle is None:
            self._oracle = Oracle(self._model_dir, MAX_MODEL_LEN)
        return self._oracle

    def check(self, work: Work, lines: list[Told], *, but: frozenset[int] = frozenset()) -> None:
        """Raises Wrong unless the answer is whole and says what was said in peace. `but`: lines not to look at."""
        expect(len(lines) == len(work.lines), f"{len(lines)} lines for {len(work.lines)} items")
        for number, line in enumerate(lines):
            if number not in but:
                expect(line.error is None, f"item {number} is an error: {line.error}")
                cut = sum(choice.is_cut for choice in line.choices)
                expect(not cut, f"item {number} is cut, and the answer should be whole")
                self.check_line(work, number, line)

    def check_line(self, work: Work, number: int, line: Told) -> None:
        """Raises Wrong unless each choice is that of the undisturbed run, or where it is cut, its beginning."""
        due = self.of(work).lines[number]
        found = f"item {number} has {len(line.choices)} choices instead of {len(due.choices)}"
        expect(len(line.choices) == len(due.choices), found)
        for index, (got, other) in enumerate(zip(line.choices, due.choices, strict=True)):
            self.rows += 1
            if got.equals(other) or (got.is_cut and _begins(other, got)):
                continue
            where = f"item {number}, choice {index}: {_difference(got, other)}"
            expect(got.text != other.text, where)
            expect(self.oracle.admits(work.lines[number], index, got), f"{where}, and it is no tie")
            if not _may_be_longer(other, got):
                self.ties.append(f"{work.name}, {where}")


def _begins(whole: Choice, cut: Choice) -> bool:
    return whole.text.startswith(cut.text.rstrip("\N{REPLACEMENT CHARACTER}"))


def _may_be_longer(whole: Choice, cut: Choice) -> bool:
    """The beginning of a stop string is text until the string is whole."""
    return cut.is_cut and whole.finish_reason == "stop" and cut.text.startswith(whole.text)


def _difference(got: Choice, due: Choice) -> str:
    if got.finish_reason != due.finish_reason and not got.is_cut:
        reasons = f"finish reason {got.finish_reason} instead of {due.finish_reason}, "
    else:
        reasons = ""
    if got.text == due.text:
        return f"{reasons}the same text with other log probabilities"
    pairs = zip(got.text, due.text, strict=False)
    same = next((place for place, (one, other) in enumerate(pairs) if one != other), None)
    same = min(len(got.text), len(due.text)) if same is None else same
    return f"{reasons}{len(got.text)} characters instead of {len(due.text)}, the same up to {same}"
