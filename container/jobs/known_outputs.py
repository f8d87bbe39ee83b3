"""Outputs that requests of a job have generated, so that later ones need not generate them again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from container.errors import OutOfSpace
from container.journal.job_reader import DigestConflict
from container.journal.merged_output import MergedOutput
from container.journal.output_table import OutputTable
from container.journal.segment import Entry, GenerationKey
from container.journal.stores.store import StoreError

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class KnownOutputs:
    """Owns the table of a job's outputs. There is none before the job has a past, or a second request."""

    table: OutputTable | None = None
    loading: asyncio.Task[None] | None = None
    """The task that fills the table. It ends when all is there, or can't be."""
    _held_back: list[Entry] | None = None
    """Entries that came while the table is filled: they are newer than what it is filled with, and added after it."""

    @property
    def is_loading(self) -> bool:
        return self._held_back is not None

    def load(self, table: OutputTable, read: Callable[[OutputTable], Awaitable[bool]], entries: list[Entry]) -> None:
        """Begin to fill the table by `read`, then with `entries` and those that are added meanwhile.

        `read` returns False if what it found is not this job's.
        """
        self.table, self._held_back = table, entries
        self.loading = asyncio.create_task(self._load(table, read))

    async def _load(self, table: OutputTable, read: Callable[[OutputTable], Awaitable[bool]]) -> None:
        try:
            if not await read(table):
                self._drop("another server has begun the job anew")
        except (StoreError, OutOfSpace, DigestConflict) as error:
            logger.warning("the journal of a job can't be read, and its outputs may be generated again: %s", error)
        finally:
            held_back, self._held_back = self._held_back, None
            self.add(held_back or [])

    def add(self, entries: list[Entry]) -> None:
        if self._held_back is not None:
            self._held_back += entries
        elif self.table is not None:
            try:
                self.table.add(entries)
            except OutOfSpace as error:
                self._drop(error)

    def get(self, key: GenerationKey) -> MergedOutput | None:
        """Return what is known of an output: while the table is filled, perhaps a part."""
        try:
            return None if self.table is None else self.table.get(key)
        except OutOfSpace as error:
            self._drop(error)
            return None

    def forget_slot(self, slot: int) -> None:
        """Forget the outputs of a slot that is not used again."""
        try:
            if self.table is not None:
                self.table.drop(slot)
        except OutOfSpace as error:
            self._drop(error)

    def _drop(self, cause: OutOfSpace | str) -> None:
        logger.warning("outputs of a job that are journalled may be generated again: %s", cause)
        if self.table is not None:
            self.table.close()
            self.table = None
