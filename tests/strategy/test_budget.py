"""What fits into a time."""

from __future__ import annotations

import pytest

from finetune.strategy.budget import Option, choose, seconds_of, told
from finetune.strategy.strategies import cheaper_than


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("1h30m", 5400), ("2h", 7200), ("1m5s", 65)])
def test_a_time_is_read_as_it_is_written(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds
    assert seconds_of(told(seconds)) >= seconds


def test_seconds_are_told_rounded_up() -> None:
    assert [told(s) for s in (0.2, 89.1, 121, 3600, 5401)] == ["1s", "90s", "3m", "1h", "1h31m"]


def option(strategy: str, *, epochs: int = 12, once: float = 0.0, epoch: float = 10.0, least: int = 1) -> Option:
    return Option(strategy, epochs, least, once, epoch)


def test_what_fits_whole_stays_and_what_does_not_has_fewer_epochs() -> None:
    full = option("full")
    assert choose([full], 120) == (full, 12)
    assert choose([full], 119) == (full, 11)
    assert choose([full], 10) == (full, 1)
    assert choose([full], 9.9) is None


def test_with_less_than_a_third_of_its_epochs_a_cheaper_strategy_is_taken() -> None:
    full, top, head = option("full"), option("top-k", epoch=2, once=10), option("head-only", epoch=0.1, once=10)
    assert choose([full, top, head], 40) == (full, 4)
    assert choose([full, top, head], 39) == (top, 12)
    assert choose([full, top, head], 17) == (head, 12)


def test_where_no_third_fits_the_last_that_has_an_epoch_is_taken() -> None:
    top, head = option("top-k", once=10, epoch=5), option("head-only", once=15, epoch=1)
    assert choose([top, head], 16) == (head, 1)
    assert choose([top, head], 15) == (top, 1)


def test_fewer_epochs_than_phases_do_not_fit() -> None:
    assert choose([option("gradual", least=4)], 39) is None
    assert choose([option("gradual", least=4)], 40) == (option("gradual", least=4), 4)


def test_a_solved_head_takes_what_it_takes_once() -> None:
    probe = option("linear-probe", epochs=30, once=5, epoch=0)
    assert choose([probe], 5) == (probe, 30)
    assert choose([probe], 4) is None


def test_what_is_cheaper() -> None:
    assert cheaper_than("full") == ("top-k", "head-only", "linear-probe")
    assert cheaper_than("gradual") == ("top-k", "head-only", "linear-probe")
    assert cheaper_than("linear-probe") == ()
