"""A server that is never disturbed; every other answer is compared with its answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testing.exactness import DISTINCT, SHARE_OF_TIES
from testing.server import Server, eventually

from .answer_line import AnswerLine, Choice
from .batch import Batch
from .call import Call
from .errors import expect
from .oracle import Oracle

MAX_MODEL_LEN = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceAnswer:
    """Answer of the undisturbed server to one batch."""

    lines: tuple[AnswerLine, ...]
    tokens: int
    """Number of tokens that the server counted, those behind a stop string included."""


class ReferenceServer:
    """One model's server, started at the first request, with its answers and the count of ties against them."""

    def __init__(
        self, model_dir: Path, directory: Path, settings: dict[str, Any], repeating_share: float = 0.0
    ) -> None:
        """`repeating_share`: share of the rows that may repeat themselves."""
        self._model_dir = model_dir
        self._directory = directory
        self._settings = settings
        self._repeating_share = repeating_share
        self._server: Server | None = None
        self._answers: dict[Batch, ReferenceAnswer] = {}
        self._oracle: Oracle | None = None
        self.rows = 0
        self.ties: list[str] = []

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    @property
    def has_too_many_ties(self) -> bool:
        return len(self.ties) > max(1, SHARE_OF_TIES * self.rows)

    def answer_to(self, batch: Batch) -> ReferenceAnswer:
        if batch not in self._answers:
            self._answers[batch] = self._ask(batch)
        return self._answers[batch]

    def _ask(self, batch: Batch) -> ReferenceAnswer:
        if self._server is None:
            settings = self._settings | {"LONGHAUL_CHECKPOINT_URI": self._directory / "journal"}
            self._server = Server(self._model_dir, self._directory / "log", **settings)
            self._server.wait_until_ready()
        before = self._server.metric("longhaul_generation_tokens_total")
        lines = Call(self._server.port, batch).answer().lines
        server = self._server
        eventually(lambda: not server.metric("longhaul_sequences_running"))
        tokens = int(server.metric("longhaul_generation_tokens_total") - before)
        for number, line in enumerate(lines):
            expect(not line.error, f"undisturbed, item {number} is an error: {line.error}")
        self._check_varied(lines)
        return ReferenceAnswer(lines=tuple(lines), tokens=tokens)

    def _check_varied(self, lines: list[AnswerLine]) -> None:
        """Check that few rows repeat themselves, as some of a real model's greedy rows do: they would show nothing."""
        rows = [choice for line in lines for choice in line.choices if choice.finish_reason == "length"]
        varied = [len(set(self.oracle.ids_of(row.text))) >= DISTINCT for row in rows]
        found = f"undisturbed, {varied.count(False)} of {len(varied)} rows repeat themselves"
        expect(varied.count(False) <= self._repeating_share * len(varied), found)

    @property
    def oracle(self) -> Oracle:
        if self._oracle is None:
            self._oracle = Oracle(self._model_dir, MAX_MODEL_LEN)
        return self._oracle

    def check(self, batch: Batch, lines: list[AnswerLine], *, but: frozenset[int] = frozenset()) -> None:
        """Raise CheckFailed unless the answer is whole and equal to the undisturbed one, lines `but` left out."""
        expect(len(lines) == len(batch.lines), f"{len(lines)} lines for {len(batch.lines)} items")
        for number, line in enumerate(lines):
            if number not in but:
                expect(line.error is None, f"item {number} is an error: {line.error}")
                cut = sum(choice.is_cut for choice in line.choices)
                expect(not cut, f"item {number} is cut, and the answer should be whole")
                self.check_line(batch, number, line)

    def check_line(self, batch: Batch, number: int, line: AnswerLine) -> None:
        """Raise CheckFailed unless each choice is the undisturbed one or, if it is cut, its beginning."""
        due = self.answer_to(batch).lines[number]
        found = f"item {number} has {len(line.choices)} choices instead of {len(due.choices)}"
        expect(len(line.choices) == len(due.choices), found)
        for index, (got, other) in enumerate(zip(line.choices, due.choices, strict=True)):
            self.rows += 1
            if got.equals(other) or (got.is_cut and _begins(other, got)):
                continue
            where = f"item {number}, choice {index}: {_difference(got, other)}"
            expect(got.text != other.text, where)
            expect(self.oracle.admits(batch.lines[number], index, got), f"{where}, and it is not a tie")
            if not _may_be_longer(other, got):
                self.ties.append(f"{batch.name}, {where}")


def _begins(whole: Choice, cut: Choice) -> bool:
    return whole.text.startswith(cut.text.rstrip("\N{REPLACEMENT CHARACTER}"))


def _may_be_longer(whole: Choice, cut: Choice) -> bool:
    """Return whether the cut text may have more than the whole one: part of a stop string counts as text until it is
    whole."""
    return cut.is_cut and whole.finish_reason == "stop" and cut.text.startswith(whole.text)


def _difference(got: Choice, due: Choice) -> str:
    if got.finish_reason != due.finish_reason and not got.is_cut:
        reasons = f"finish reason {got.finish_reason} instead of {due.finish_reason}, "
    else:
        reasons = ""
    if got.text == due.text:
        return f"{reasons}the same text with other log probabilities"
    pairs = zip(got.text, due.text, strict=False)
    same = next((position for position, (one, other) in enumerate(pairs) if one != other), None)
    same = min(len(got.text), len(due.text)) if same is None else same
    return f"{reasons}{len(got.text)} characters instead of {len(due.text)}, the same up to {same}"
