from __future__ import annotations

import pytest

from container.jobs.journal_state import JournalState

LEGAL = {
    ("UNOPENED", "OPEN"),
    ("UNOPENED", "TAKEN"),
    ("OPEN", "TAKEN"),
    ("OPEN", "TAKEN_WITHOUT_RANDOM"),
    ("OPEN", "GIVEN_UP"),
    ("TAKEN", "OPEN"),
    ("TAKEN", "GIVEN_UP"),
    ("TAKEN_WITHOUT_RANDOM", "OPEN"),
    ("TAKEN_WITHOUT_RANDOM", "GIVEN_UP"),
}


@pytest.mark.parametrize("before", JournalState, ids=lambda state: state.name)
@pytest.mark.parametrize("after", JournalState, ids=lambda state: state.name)
def test_illegal_transition_is_refused(before: JournalState, after: JournalState) -> None:
    if (before.name, after.name) in LEGAL:
        assert before.to(after) is after
    else:
        with pytest.raises(AssertionError, match=f"{before.name} can't become {after.name}"):
            before.to(after)
