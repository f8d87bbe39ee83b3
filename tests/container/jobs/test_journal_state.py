from __future__ import annotations

from typing import Any, cast

import pytest

from container.jobs.job_journal import JobJournal
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
    journal = JobJournal("id", "digest", "name", cast(Any, None))  # it takes the step alone: no store is asked
    journal.state = before
    if (before.name, after.name) in LEGAL:
        journal.become(after)
        assert journal.state is after
    else:
        with pytest.raises(AssertionError, match=f"{before.name} can't become {after.name}"):
            journal.become(after)
        assert journal.state is before
