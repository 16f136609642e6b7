from __future__ import annotations

import pytest

from loadtest.formatting import format_count, format_ms, format_number, format_percent, format_signed


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0"), (0.042134, "0.04213"), (12.3456, "12.35"), (12.0, "12"), (1234.56, "1,235"),
     (1_234_567, "1,234,567"), (-3.14159, "-3.142"), (100, "100")],
)  # fmt: skip
def test_numbers(value: float | None, text: str) -> None:
    assert format_number(value) == text


def test_units() -> None:
    assert [format_ms(412.34), format_ms(9_999), format_ms(12_345), format_ms(None)] == [
        "412.3 ms",
        "9,999 ms",
        "12.35 s",
        "-",
    ]
    assert [format_percent(0.0666), format_percent(1), format_percent(0.99995), format_percent(None)] == [
        "6.66 %",
        "100 %",
        "99.995 %",
        "-",
    ]
    assert [format_count(12_345.0), format_count(None)] == ["12,345", "-"]
    assert [format_signed(0.0514), format_signed(-2), format_signed(0), format_signed(None)] == [
        "+0.0514",
        "-2",
        "0",
        "-",
    ]
