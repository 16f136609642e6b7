from __future__ import annotations

import logging

import pytest

from gateway.bounded_text import LONGEST_TEXT, log_defect, shortened


def test_a_text_within_the_limit_is_unchanged() -> None:
    assert shortened("é" * LONGEST_TEXT) == "é" * LONGEST_TEXT


def test_a_longer_text_is_cut_and_has_its_length() -> None:
    assert shortened("abcdef", 3) == "abc... (6 characters)"


def test_characters_that_utf8_cannot_encode_are_replaced() -> None:
    assert shortened("a\ud800b") == "a?b"
    assert shortened("\ud800" * 10, 3) == "???... (10 characters)"


@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG])
def test_a_defect_is_one_line_and_has_a_stack_at_debug_level_only(caplog: pytest.LogCaptureFixture, level: int) -> None:
    logger = logging.getLogger("defects")
    with caplog.at_level(level, logger.name):
        try:
            raise ValueError("two\nlines " + "x" * 1000)
        except ValueError as error:
            log_defect(logger, "it failed", error)

    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("it failed: ValueError: two lines xxx")
    assert " at " in message
    assert f"{__file__}:" in message
    assert "\n" not in message
    assert len(message) < 700 + len(__file__)
    assert (record.exc_info is not None) is (level == logging.DEBUG)


def test_a_defect_that_was_never_raised_has_no_place(caplog: pytest.LogCaptureFixture) -> None:
    log_defect(logging.getLogger("defects"), "it failed", ValueError("x"))

    assert caplog.records[0].getMessage() == "it failed: ValueError: x"
