from tests.support.http_callers import caller, waits

__all__ = ["caller", "waits"]
