from __future__ import annotations

from pathlib import Path

import pytest
import torch

from testing import ROOT
from testing.exactness import TIE, Exactness, Reference
from testing.tiny_models import VOCABULARY, random_prompt, save_tiny_family

pytest_plugins = ["pytester"]

PROMPT = random_prompt(9)
PLACE = 5


@pytest.fixture
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(save_tiny_family(tmp_path_factory.mktemp("llama"), "llama"))


def with_another_token(row: list[int]) -> tuple[list[int], int]:
    """Return the row with another token at PLACE and others behind it, and that token."""
    other = next(token for token in range(VOCABULARY) if token not in row)
    return [*row[:PLACE], other, *row[PLACE + 1 :][::-1]], other


def bring_together(reference: Reference, row: list[int], other: int, apart: float) -> None:
    """Set the other token's score at PLACE so far from that of the row's own, as a share of the spread."""
    scores = reference.scores(PROMPT + row[:PLACE])
    share = 1 - apart * (scores.max() - scores.min()) / scores[row[PLACE]]
    weight = reference.model.lm_head.weight
    weight.data[other] = weight.data[row[PLACE]] * share


def test_what_is_equal_passes(reference: Reference) -> None:
    rows = reference.generate([PROMPT, PROMPT[:4]])
    exactness = Exactness()
    exactness.check(reference, [PROMPT, PROMPT[:4]], rows, rows)
    assert (exactness.rows, exactness.ties) == (2, [])


@pytest.mark.parametrize("apart", [0.0, 0.5 * TIE])
def test_tied_token_passes_and_is_counted(reference: Reference, apart: float) -> None:
    (expected,) = reference.generate([PROMPT])
    got, other = with_another_token(expected)
    bring_together(reference, expected, other, apart)
    exactness = Exactness()
    exactness.check(reference, [PROMPT], [got], [expected], test="test_this")
    (told,) = exactness.ties
    assert told.startswith(f"test_this row 0: token {PLACE} is {other}, not {expected[PLACE]}, ")


def test_a_token_that_nearly_ties_fails(reference: Reference) -> None:
    (expected,) = reference.generate([PROMPT])
    got, other = with_another_token(expected)
    bring_together(reference, expected, other, 3 * TIE)
    with pytest.raises(AssertionError, match=r"[23]\..e-05 of the scores' spread apart"):
        Exactness().check(reference, [PROMPT], [got], [expected])


def test_any_other_token_fails(reference: Reference) -> None:
    (expected,) = reference.generate([PROMPT])
    got, _ = with_another_token(expected)
    with pytest.raises(AssertionError, match="of the scores' spread apart"):
        Exactness().check(reference, [PROMPT], [got], [expected])


def test_row_of_wrong_length_fails(reference: Reference) -> None:
    (expected,) = reference.generate([PROMPT])
    for got in (expected[:-1], [*expected, 1]):
        with pytest.raises(AssertionError, match=f"{len(got)} tokens instead of 16"):
            Exactness().check(reference, [PROMPT], [got], [expected])


def test_wrong_number_of_rows_fails(reference: Reference) -> None:
    with pytest.raises(ValueError, match="zip"):
        Exactness().check(reference, [PROMPT], [[1], [1]], [[1]])


def test_row_that_repeats_itself_fails(reference: Reference) -> None:
    row = [*range(7), *[6] * 9]
    with pytest.raises(AssertionError, match="repeats itself"):
        Exactness().check(reference, [PROMPT], [row], [row])


def test_scores_follow_options_of_generate(tmp_path: Path) -> None:
    reference = Reference(save_tiny_family(tmp_path, "llama"), suppress_tokens=[7])
    assert torch.isneginf(reference.scores(PROMPT)).nonzero().tolist() == [[7]]


def test_counts_of_two_processes_are_added(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest(
        """
        from testing.exactness import Exactness

        def pytest_configure(config):
            config.pluginmanager.register(Exactness(), "exactness")
        """
    )
    for name in "ab":
        pytester.makepyfile(
            **{
                f"test_{name}": f"""
                def test(pytestconfig):
                    exactness = pytestconfig.pluginmanager.get_plugin("exactness")
                    exactness.rows, exactness.ties = 6, ["test_{name} row 1"]
                """
            }
        )
    result = pytester.runpytest_subprocess("--numprocesses=2", "--dist=loadfile")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["exactness: 12 rows compared, 2 diverged at ties, more than 2%: FAILED"])


@pytest.mark.parametrize(("rows", "ties", "fails"), [(12, 1, False), (12, 2, True), (200, 4, False), (200, 5, True)])
def test_more_ties_than_two_percent_fail_run(pytester: pytest.Pytester, rows: int, ties: int, fails: bool) -> None:
    exactness = Exactness()
    exactness.rows, exactness.ties = rows, [f"test_that row {n}" for n in range(ties)]
    pytester.makepyfile("def test_nothing(): pass")
    result = pytester.runpytest_inprocess(plugins=[exactness])
    assert result.ret == (pytest.ExitCode.TESTS_FAILED if fails else pytest.ExitCode.OK)
    verdict = ", more than 2%: FAILED" if fails else ""
    result.stdout.fnmatch_lines(
        [f"exactness: {rows} rows compared, {ties} diverged at ties{verdict}", f"  test_that row {ties - 1}"]
    )
