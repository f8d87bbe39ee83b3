"""Greedy tokens compared with those of `model.generate`, token for token except at ties.

Another machine or another batch rounds differently, so that of two tokens whose scores are as good as equal either may
come first; everything after it then differs. Such rows pass as long as they are few, and the end of a test run names
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

TIE = 1e-5
"""Largest difference of two tied scores, as a share of the distance between their position's largest and smallest
score."""
SHARE_OF_TIES = 0.02
"""Share of a test run's rows that may leave at a tie: one in fifty, and one in a run of fewer."""
DISTINCT = 8
"""Number of different tokens that a long row must hold: a model that repeats itself would show nothing."""


class Reference:
    """Greedy `model.generate` of transformers in float32, one prompt at a time, so that nothing is padded."""

    def __init__(self, model_dir: str, **options: Any) -> None:
        """`options`: more arguments for `generate`."""
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=torch.float32, attn_implementation="eager"
        )
        self._options = options

    def generate(self, prompts: Sequence[list[int]], *, new_tokens: int | Sequence[int] = 16) -> list[list[int]]:
        limits = [new_tokens] * len(prompts) if isinstance(new_tokens, int) else new_tokens
        return [
            self._generate(prompt, limit).sequences[0, len(prompt) :].tolist()
            for prompt, limit in zip(prompts, limits, strict=True)
        ]

    def scores(self, ids: list[int]) -> torch.Tensor:
        """Return the scores of the next token [V], float32, as the options change them."""
        scores: torch.Tensor = self._generate(ids, 1).scores[0][0]
        return scores

    def _generate(self, prompt: list[int], limit: int) -> Any:
        inputs = torch.tensor([prompt])
        return self.model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=False,
            max_new_tokens=limit,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
            **self._options,
        )


class Exactness:
    """A pytest plugin that counts the rows compared in a test run and those that left at a tie."""

    def __init__(self) -> None:
        self.rows = 0
        self.ties: list[str] = []

    def check(
        self,
        reference: Reference,
        prompts: Sequence[list[int]],
        got: Sequence[list[int]],
        expected: Sequence[list[int]],
        *,
        test: str = "",
    ) -> None:
        """Raise AssertionError unless every row is the expected one, or leaves it at a tie of the reference."""
        for number, (prompt, row, due) in enumerate(zip(prompts, got, expected, strict=True)):
            assert len(set(due)) >= min(DISTINCT, len(due) // 2), f"row {number} repeats itself: {due}"
            self.rows += 1
            if row != due:
                self.ties.append(f"{test} row {number}: {describe_tie(reference, prompt, row, due)}")

    @property
    def has_too_many_ties(self) -> bool:
        return len(self.ties) > max(1, SHARE_OF_TIES * self.rows)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Add what a process of pytest-xdist has counted."""
        rows, ties = getattr(node, "workeroutput", {}).get("exactness", (0, []))
        self.rows += rows
        self.ties += ties

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["exactness"] = (self.rows, self.ties)
            return
        if self.has_too_many_ties and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.rows:
            return
        verdict = f", more than {SHARE_OF_TIES:.0%}: FAILED" if self.has_too_many_ties else ""
        terminalreporter.write_line(
            f"exactness: {self.rows} rows compared, {len(self.ties)} diverged at ties{verdict}",
            red=self.has_too_many_ties,
        )
        for tie in self.ties:
            terminalreporter.write_line(f"  {tie}")


def describe_tie(reference: Reference, prompt: list[int], got: list[int], expected: list[int]) -> str:
    """Describe the tie at which a row leaves the expected one. Raise AssertionError if it is not a tie."""
    position = next((n for n, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), None)
    assert position is not None, f"{len(got)} tokens instead of {len(expected)}, the same as far as they go"
    scores = reference.scores(prompt + expected[:position])
    possible = scores[torch.isfinite(scores)]
    apart = float((scores[got[position]] - scores[expected[position]]).abs() / (possible.max() - possible.min()))
    found = f"token {position} is {got[position]}, not {expected[position]}, {apart:.1e} of the scores' spread apart"
    assert apart <= TIE, f"{found}: {got} instead of {expected}"
    return found
