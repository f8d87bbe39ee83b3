from __future__ import annotations

import pytest

from container.engine.supervisor.crash_budget import CrashBudget, Crashes


class Account:
    """Crashes with a clock that a test turns."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.crashes = Crashes(CrashBudget(), clock=lambda: self.now_s)

    def dies(self, times: int = 1, *, has_generated: bool = False, is_explained: bool = False) -> str | None:
        for _ in range(times):
            self.crashes.count(has_generated=has_generated, is_explained=is_explained)
        return self.crashes.spent


def test_fourth_fruitless_death_spends_the_budget() -> None:
    account = Account()
    assert account.dies(3) is None
    account.now_s = 599
    assert "4 times in 600 s, 4 times before" in str(account.dies())


def test_deaths_longer_ago_are_forgotten() -> None:
    account = Account()
    account.dies(3)
    account.now_s = 601
    assert account.dies(3) is None


def test_fruitful_deaths_are_tolerated_longer() -> None:
    account = Account()
    assert account.dies(12, has_generated=True) is None
    assert "13 times in 600 s" in str(account.dies(has_generated=True))


def test_explained_death_clears_the_account() -> None:
    account = Account()
    for _ in range(5):
        assert account.dies(2, has_generated=True) is None and account.dies(is_explained=True) is None


def test_explained_deaths_without_work_between_count() -> None:
    account = Account()
    assert account.dies(2) is None and account.dies(4, is_explained=True) is None
    assert account.dies(is_explained=True) is not None


@pytest.mark.parametrize(("deaths", "delay_s"), [(1, 0.25), (2, 0.5), (3, 1.0)])
def test_each_fruitless_engine_doubles_the_delay(deaths: int, delay_s: float) -> None:
    account = Account()
    account.dies(5, has_generated=True)
    assert account.crashes.delay_s == 0.25
    account.dies(deaths)
    assert account.crashes.delay_s == delay_s
