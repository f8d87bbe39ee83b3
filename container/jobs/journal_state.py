"""The states of a job's journal, and how one leads to another."""

from __future__ import annotations

from enum import Enum, auto


class JournalState(Enum):
    """A job's journal as this server sees it."""

    UNOPENED = auto()
    """It is not known yet what the store has."""
    OPEN = auto()
    """The store has nothing, or the job does without it. The job is not taken before there is something to write: a
    request that is refused leaves the name to others."""
    TAKEN = auto()
    """This server is the job's writer."""
    TAKEN_WITHOUT_RANDOM = auto()
    """This server is the writer, but the store has another secret, which came to light when the job was at work
    already. Outputs with random seeds of this server's are worth nothing to those who resume the job: they are left
    out."""
    GIVEN_UP = auto()
    """The job goes on without a journal: another server has taken it, or it has grown too large."""


TRANSITIONS: dict[JournalState, tuple[JournalState, ...]] = {
    # Nothing was found, or the store gave no answer; or there is a past, with which the job is taken at once.
    JournalState.UNOPENED: (JournalState.OPEN, JournalState.TAKEN),
    # The first entries are written; or they need too much memory while the store fails.
    JournalState.OPEN: (JournalState.TAKEN, JournalState.TAKEN_WITHOUT_RANDOM, JournalState.GIVEN_UP),
    # The journal was deleted, and all that is at work is written anew; or another server has taken the job.
    JournalState.TAKEN: (JournalState.OPEN, JournalState.GIVEN_UP),
    JournalState.TAKEN_WITHOUT_RANDOM: (JournalState.OPEN, JournalState.GIVEN_UP),
    JournalState.GIVEN_UP: (),
}
"""States that may follow each state: `JobJournal` takes no other step."""
