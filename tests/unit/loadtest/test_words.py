from __future__ import annotations

import pytest

from loadtest.formatting import count, ms, number, share, signed


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "-"), (0, "0"), (0.042134, "0.04213"), (12.3456, "12.35"), (12.0, "12"), (1234.56, "1,235"),
     (1_234_567, "1,234,567"), (-3.14159, "-3.142"), (100, "100")],
)  # fmt: skip
def test_numbers(value: float | None, said: str) -> None:
    assert number(value) == said


def test_with_units() -> None:
    assert [ms(412.34), ms(9_999), ms(12_345), ms(None)] == ["412.3 ms", "9,999 ms", "12.35 s", "-"]
    assert [share(0.0666), share(1), share(0.99995), share(None)] == ["6.66 %", "100 %", "99.995 %", "-"]
    assert [count(12_345.0), count(None)] == ["12,345", "-"]
    assert [signed(0.0514), signed(-2), signed(0), signed(None)] == ["+0.0514", "-2", "0", "-"]
