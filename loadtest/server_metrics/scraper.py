"""Scrapes the server's own metrics during a run, and compares them with the client's numbers.

The scraper runs on a thread, which is a greenlet where gevent has patched the process, as Locust does. No error here
ends a run: it becomes a note in the result.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from urllib.parse import SplitResult, urlsplit

from loadtest.measure.result import Server
from loadtest.server_metrics.prometheus_text import GAUGES, MetricsHistory, parse_samples, sum_gauges

_TIMEOUT_S = 5.0
# A page of vLLM with its gateway has some 100 KiB; a larger one comes from a wrong address.
_LARGEST_BYTES = 16 * 2**20
_POLL_S = 0.1
# A cache usage is a quotient, and one block of the smallest cache is more than this.
_CACHE_USAGE_TOLERANCE = 0.001
_CACHE_USAGE = "vllm:kv_cache_usage_perc"
_WORK_GAUGES = tuple(name for name in GAUGES if name not in (_CACHE_USAGE, "process_resident_memory_bytes"))
# A server that counts fewer tokens than the client, or more by this share, gets a note.
_TOKEN_TOLERANCE = 0.01


class ScrapeFailed(Exception): ...


class Scraper:
    """Scrapes one or several servers every `every_s`, from `start` to `stop`."""

    def __init__(self, base_url: str | Sequence[str], headers: Mapping[str, str], every_s: float = 1.0) -> None:
        """`base_url`: of a server (an OpenAI base that ends with /v1 is accepted) or of its metrics page; several for
        several servers. `headers` (an API key, for instance) are sent to each."""
        urls = [base_url] if isinstance(base_url, str) else list(base_url)
        self._pages = [_MetricsPage(url, headers) for url in urls]
        self._every_s = every_s
        self._history = MetricsHistory()
        self._readings = 0
        self._failures: list[str] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scraper", daemon=True)

    def start(self) -> None:
        """Read once, as the baseline, then continue in the background."""
        self._read_all()
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and read a last time."""
        self._stopping.set()
        self._thread.join()
        self._read_all()
        for page in self._pages:
            page.close()

    @property
    def baseline(self) -> dict[str, float] | None:
        """The gauges before the run, for `wait_until_freed`; None if they could not be read."""
        return self._history.first_gauges

    def to_result(
        self,
        t0_perf: float,
        client_tokens: int,
        client_ttft_mean_ms: float | None,
        measured_s: tuple[float, float] | None = None,
    ) -> Server:
        """The readings, with times counted from `t0_perf` (`time.perf_counter()` when the run began).

        `client_tokens`: tokens that the client received in the whole run, warm-up and drain included, as the server's
        counter does not separate stages. `client_ttft_mean_ms`: from sending, over `measured_s`, the begin and end of
        the measured stage in seconds from `t0_perf` (None: the whole run)."""
        history = self._history
        if history.first_gauges is None:
            return Server(scraped=False, client_tokens=client_tokens, notes=self._notes(None, client_tokens))
        since_s, until_s = (t0_perf + at_s for at_s in measured_s) if measured_s else (None, None)

        overhead_s = history.mean("sluice_overhead_seconds", since_s, until_s)
        ttft_s = history.mean("sluice_time_to_first_token_seconds", since_s, until_s)
        if ttft_s is None:
            ttft_s = history.mean("vllm:time_to_first_token_seconds", since_s, until_s)
        gap_ms = None
        if client_ttft_mean_ms is not None and ttft_s is not None:
            gap_ms = round(client_ttft_mean_ms - ttft_s * 1000, 3)
        generated = history.increase("vllm:generation_tokens_total")
        return Server(
            scraped=True,
            series={
                name: [[round(at_s - t0_perf, 3), float(f"{value:.6g}")] for at_s, value in points]
                for name, points in sorted(history.series.items())
            },
            generated_tokens=generated,
            client_tokens=client_tokens,
            ttft_gap_ms=gap_ms,
            gateway_overhead_ms=None if overhead_s is None else round(overhead_s * 1000, 4),
            left_over=_above_baseline(history.last_gauges, history.first_gauges),
            notes=self._notes(generated, client_tokens),
        )

    def _notes(self, generated: float | None, client_tokens: int) -> list[str]:
        notes = []
        if self._failures:
            kinds = "; ".join(list(dict.fromkeys(self._failures))[:3])
            notes.append(f"{len(self._failures)} of {self._readings} readings of the metrics failed: {kinds}")
        if self._history.restarts:
            notes.append(f"a server was restarted, which reset its counters ({self._history.restarts} x)")
        if generated is None:
            notes.append("no vllm:generation_tokens_total was found, so token counts cannot be compared")
        elif generated < client_tokens * (1 - _TOKEN_TOLERANCE):
            notes.append(
                f"the server counted {generated:,.0f} tokens, fewer than the client's {client_tokens:,}: "
                "some servers were not scraped, or the client counts wrongly"
            )
        elif generated > client_tokens * (1 + _TOKEN_TOLERANCE):
            notes.append(
                f"the server counted {generated:,.0f} tokens, the client received {client_tokens:,}: the rest was "
                "generated for clients that had left or for others, or was stopped on its way"
            )
        return notes

    def _run(self) -> None:
        due_s = time.perf_counter()
        while True:
            # After a slow page the missed readings are skipped, not made up for.
            due_s = max(due_s + self._every_s, time.perf_counter())
            if self._stopping.wait(due_s - time.perf_counter()):
                return
            self._read_all()

    def _read_all(self) -> None:
        read: list[dict[str, float] | None] = []
        for page in self._pages:
            try:
                read.append(page.read())
            except ScrapeFailed as error:
                read.append(None)
                self._failures.append(str(error))
        self._readings += 1
        self._history.add_reading(time.perf_counter(), read)


def wait_until_freed(
    url: str | Sequence[str],
    headers: Mapping[str, str],
    within_s: float,
    baseline: Mapping[str, float] | None = None,
    ping: Callable[[], object] | None = None,
) -> bool | None:
    """Whether the server's gauges (running, waiting, cache usage) return to `baseline` within `within_s` seconds; None
    if it exposes none of them. Without a baseline, nothing may run or wait.

    vLLM alone writes its gauges only in engine steps, and none follows the abort of the last request: `ping` (one small
    request) is called once, half-way, to cause a step. Sluice does not need it."""
    pages = [_MetricsPage(each, headers) for each in ([url] if isinstance(url, str) else url)]
    started_s = time.perf_counter()
    has_gauges = False
    try:
        while True:
            gauges = _read_gauges(pages)
            has_gauges = has_gauges or any(name in gauges for name in _WORK_GAUGES)
            if gauges and has_gauges and not _above_baseline(gauges, baseline or {}):
                return True
            elapsed_s = time.perf_counter() - started_s
            if elapsed_s >= within_s:
                return False if has_gauges else None
            if ping is not None and elapsed_s >= within_s / 2:
                ping()
                ping = None
            time.sleep(min(_POLL_S, within_s - elapsed_s))
    finally:
        for page in pages:
            page.close()


def _read_gauges(pages: Sequence[_MetricsPage]) -> dict[str, float]:
    """Empty if a page cannot be read."""
    with suppress(ScrapeFailed):
        return sum_gauges([page.read() for page in pages])
    return {}


def _above_baseline(now: Mapping[str, float], baseline: Mapping[str, float]) -> dict[str, float]:
    """The gauges that show more work than the baseline. An unknown cache usage in the baseline is no work."""
    above = {name: now[name] for name in _WORK_GAUGES if now.get(name, 0.0) > baseline.get(name, 0.0)}
    if (
        _CACHE_USAGE in now
        and _CACHE_USAGE in baseline
        and now[_CACHE_USAGE] > baseline[_CACHE_USAGE] + _CACHE_USAGE_TOLERANCE
    ):
        above[_CACHE_USAGE] = now[_CACHE_USAGE]
    return above


class _MetricsPage:
    """One metrics page, over a connection that is kept."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._url: SplitResult = urlsplit(url)
        if self._url.scheme not in ("http", "https") or not self._url.hostname:
            raise ValueError(f"{url!r} is not an address of a server; write http://HOST:PORT")
        path = self._url.path.rstrip("/")
        self._path = path if path.endswith("/metrics") else path.removesuffix("/v1") + "/metrics"
        self._headers = {**headers, "Accept": "text/plain; version=0.0.4"}
        self._connection: http.client.HTTPConnection | None = None

    def read(self) -> dict[str, float]:
        """Raises ScrapeFailed."""
        was_open = self._connection is not None
        try:
            return self._fetch()
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            if was_open and isinstance(error, (ConnectionError, http.client.BadStatusLine)):
                # The server had closed the idle connection.
                return self.read()
            raise ScrapeFailed(f"{self._url.hostname}{self._path}: {str(error) or type(error).__name__}") from error

    def close(self) -> None:
        """Close the connection; a later `read` connects again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _fetch(self) -> dict[str, float]:
        if self._connection is None:
            kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
            self._connection = kind(str(self._url.hostname), self._url.port, timeout=_TIMEOUT_S)
        self._connection.request("GET", self._path, headers=self._headers)
        response = self._connection.getresponse()
        body = response.read(_LARGEST_BYTES)
        if response.status != http.client.OK:
            raise ValueError(f"HTTP {response.status}")
        if not response.isclosed():
            raise ValueError(f"more than {_LARGEST_BYTES} bytes")
        return parse_samples(body.decode("utf-8", "replace"))
