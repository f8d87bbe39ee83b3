"""Recovery from an engine's death: its cause, the suspects among its sequences, and the next engine's settings."""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping, Set
from dataclasses import dataclass

from container.engine.messages import EngineConfig, EngineInfo
from container.engine.sequence import Sequence
from container.engine.supervisor.crash_budget import CrashBudget, Crashes
from container.engine.supervisor.memory_shortage import smaller
from container.engine.supervisor.suspects import Suspects

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """The end of one engine process."""

    exit_status: int
    """Negative: the number of the signal that killed it."""
    last_words: str | None
    """The error that it reported, or why the server gave it up."""
    is_shortage: bool
    """Whether it died of a shortage of memory."""
    sequence_ids: Set[int]
    """Sequences that the engine had and had not finished."""
    has_generated: bool
    """Whether any token came from it."""

    @property
    def reason(self) -> str:
        """The last words, or else what the exit status tells."""
        if self.last_words:
            return self.last_words
        if self.exit_status >= 0:
            return f"exit status {self.exit_status}"
        hint = " (out of memory?)" if self.exit_status == -signal.SIGKILL else ""
        return f"killed by signal {-self.exit_status}{hint}"

    @property
    def is_from_outside(self) -> bool:
        """A SIGKILL that neither the kernel nor this process has sent: no sequence caused it."""
        return self.exit_status == -signal.SIGKILL and self.last_words is None and not self.is_shortage


class Recovery:
    """Owns what the deaths of engines leave behind: suspects, a crash budget, and a configuration that shrinks."""

    def __init__(self, config: EngineConfig, budget: CrashBudget) -> None:
        self.config = config
        """Configuration of the next engine."""
        self.suspects = Suspects()
        self.crashes = Crashes(budget)

    def find_cause(self, death: Death, unfinished: Mapping[int, Sequence]) -> Sequence | None:
        """Count a death. Return the sequence that caused it, if that is certain."""
        cause = None if death.is_from_outside else self.suspects.find_cause(death.sequence_ids, unfinished)
        self.suspects.isolated = None
        self.crashes.count(has_generated=death.has_generated, is_explained=cause is not None)
        return cause

    def shrink(self, death: Death, info: EngineInfo | None, needed_tokens: int) -> None:
        """Make the next engine smaller, if the last one died of a shortage of memory.

        `info` is the last engine's, if one ever started; `needed_tokens` is the longest unfinished sequence's limit.
        """
        if not death.is_shortage:
            return
        config = smaller(self.config, info, was_at_work=bool(death.sequence_ids), needed_tokens=needed_tokens)
        if config is None:
            logger.warning("the engine ran out of memory, and has nothing left that could be made smaller")
            return
        self.config = config
        logger.warning(
            "the engine ran out of memory: the next one starts with max_batch_tokens %s and kv_cache_tokens %s",
            config.max_batch_tokens or "as before",
            config.kv_cache_tokens or "as before",
            extra={"action": "engine_made_smaller"},
        )
