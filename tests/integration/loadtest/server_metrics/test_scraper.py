"""The scraper against a real HTTP server on loopback, whose page the test writes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from loadtest.server_metrics import scraper
from loadtest.server_metrics.scraper import Scraper, wait_until_freed

KEY = {"Authorization": "Bearer k"}


class Pages:
    """`page` is called at each request; an int is a status."""

    def __init__(self) -> None:
        self.page: Callable[[], str | int] = lambda: ""
        self.asked: list[tuple[str, str | None]] = []
        self.hangs_up = False
        pages = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                pages.asked.append((self.path, self.headers["Authorization"]))
                answer = pages.page()
                body = answer.encode() if isinstance(answer, str) else b""
                self.send_response(answer if isinstance(answer, int) else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = pages.hangs_up

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def pages() -> Iterator[Pages]:
    pages = Pages()
    yield pages
    pages.close()


def page(*, tokens: float, running: float = 0, ttft: tuple[float, float] = (0, 0), usage: float = 0) -> str:
    return (
        f'vllm:generation_tokens_total{{engine="0"}} {tokens}\nvllm:num_requests_running{{engine="0"}} {running}\n'
        f'vllm:num_requests_waiting{{engine="0"}} 0\nvllm:kv_cache_usage_perc{{engine="0"}} {usage}\n'
        f"sluice_time_to_first_token_seconds_count {ttft[0]}\nsluice_time_to_first_token_seconds_sum {ttft[1]}\n"
        f"sluice_overhead_seconds_count {ttft[0]}\nsluice_overhead_seconds_sum {ttft[0] * 0.0005}\n"
    )


def test_a_run_is_compared_with_the_servers_own_metrics(pages: Pages) -> None:
    pages.page = lambda: page(tokens=1000, ttft=(5, 5))
    scraper = Scraper(pages.url + "/v1", KEY, every_s=0.02)
    t0 = time.perf_counter()
    scraper.start()
    pages.page = lambda: page(tokens=1600, running=3, ttft=(15, 7))
    while len(pages.asked) < 4:
        time.sleep(0.005)
    pages.page = lambda: page(tokens=2000, ttft=(25, 9))
    scraper.stop()
    found = scraper.to_result(t0, 1000, 203.5)

    assert set(pages.asked) == {("/metrics", "Bearer k")}
    assert found.scraped
    assert (found.generated_tokens, found.client_tokens) == (1000, 1000)
    assert found.ttft_gap_ms == 3.5
    assert found.gateway_overhead_ms == 0.5
    assert found.left_over == {}
    assert found.notes == []
    assert [value for _, value in found.series["vllm:num_requests_running"]][1:-1] == [3.0] * (len(pages.asked) - 2)
    assert 0 <= found.series["vllm:num_requests_running"][0][0] < 1
    assert scraper.baseline is not None
    assert set(scraper.baseline.values()) == {0}


def test_gauges_above_the_baseline_are_left_over(pages: Pages) -> None:
    pages.page = lambda: page(tokens=0, usage=0.25, running=1)
    scraper = Scraper(pages.url, KEY)
    scraper.start()
    pages.page = lambda: page(tokens=50, usage=0.5, running=3)
    scraper.stop()
    found = scraper.to_result(time.perf_counter(), 40, None)

    assert found.left_over == {"vllm:num_requests_running": 3, "vllm:kv_cache_usage_perc": 0.5}
    assert found.ttft_gap_ms is None
    assert len(found.notes) == 1
    assert found.notes[0].startswith("the server counted 50 tokens, the client received 40: the rest was generated for")


def test_a_server_that_counts_fewer_tokens_gets_a_note(pages: Pages) -> None:
    pages.page = lambda: page(tokens=50)
    scraper = Scraper(pages.url, KEY)
    scraper.start()
    pages.page = lambda: page(tokens=100)
    scraper.stop()

    assert "fewer than the client's 100" in scraper.to_result(0, 100, None).notes[0]


@pytest.mark.parametrize(("answer", "why"), [(404, "HTTP 404"), ("vllm:num_requests_running", "without a value")])
def test_a_server_without_metrics_is_a_note(pages: Pages, answer: str | int, why: str) -> None:
    pages.page = lambda: answer
    scraper = Scraper(pages.url, KEY)
    scraper.start()
    scraper.stop()
    found = scraper.to_result(0, 7, 1.0)

    assert (found.scraped, found.client_tokens) == (False, 7)
    assert found.notes[0].startswith("2 of 2 readings of the metrics failed: 127.0.0.1/metrics: ")
    assert why in found.notes[0]
    assert scraper.baseline is None


def test_a_closed_port_is_a_note() -> None:
    gone = Pages()
    gone.close()
    scraper = Scraper(gone.url, KEY)
    scraper.start()
    scraper.stop()

    assert "refused" in scraper.to_result(0, 7, 1.0).notes[0]
    assert wait_until_freed(gone.url, KEY, 0.2) is None


def test_a_failed_reading_does_not_affect_others(pages: Pages) -> None:
    answers: list[str | int] = [page(tokens=0), 500, page(tokens=10)]
    pages.page = lambda: answers.pop(0) if len(answers) > 1 else answers[0]
    scraper = Scraper(pages.url, KEY, every_s=0.02)
    scraper.start()
    while len(pages.asked) < 4:
        time.sleep(0.005)
    scraper.stop()
    found = scraper.to_result(0, 10, None)

    assert found.generated_tokens == 10
    assert found.notes == [f"1 of {len(pages.asked)} readings of the metrics failed: 127.0.0.1/metrics: HTTP 500"]


def test_a_closed_idle_connection_is_reopened(pages: Pages) -> None:
    pages.page = lambda: page(tokens=1)
    pages.hangs_up = True
    scraper = Scraper(pages.url, KEY)
    scraper.start()
    scraper.stop()
    found = scraper.to_result(0, 0, None)

    assert (found.scraped, found.notes, len(pages.asked)) == (True, [], 2)


def test_a_restarted_server_is_a_note(pages: Pages) -> None:
    pages.page = lambda: page(tokens=500)
    scraper = Scraper(pages.url, KEY)
    scraper.start()
    pages.page = lambda: page(tokens=20)
    scraper.stop()
    found = scraper.to_result(0, 20, None)

    assert (found.generated_tokens, found.notes) == (20, ["a server was restarted, which reset its counters (1 x)"])


def test_a_page_without_end_is_a_note(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scraper, "_LARGEST_BYTES", 100)
    pages.page = lambda: page(tokens=1)
    watched = Scraper(pages.url, KEY)
    watched.start()
    watched.stop()

    assert "more than 100 bytes" in watched.to_result(0, 0, None).notes[0]


def test_several_servers_are_summed(pages: Pages) -> None:
    other = Pages()
    try:
        pages.page = other.page = lambda: page(tokens=5, running=2)
        scraper = Scraper([pages.url, other.url + "/metrics"], KEY)
        scraper.start()
        pages.page = lambda: page(tokens=15, running=2)
        scraper.stop()
        found = scraper.to_result(0, 10, None)
    finally:
        other.close()

    assert found.generated_tokens == 10
    assert [value for _, value in found.series["vllm:num_requests_running"]] == [4, 4]


def test_an_invalid_address_has_the_fix_in_its_error() -> None:
    with pytest.raises(ValueError, match="write http://HOST:PORT"):
        Scraper("localhost:8000", {})


def test_work_that_goes_away_was_freed(pages: Pages) -> None:
    pages.page = lambda: page(tokens=0, running=max(0, 3 - len(pages.asked)), usage=0.4)

    assert wait_until_freed(pages.url, KEY, 5) is True


def test_work_that_stays_was_not_freed(pages: Pages) -> None:
    pages.page = lambda: page(tokens=0, running=1)

    assert wait_until_freed(pages.url, KEY, 0.3) is False
    assert wait_until_freed(pages.url, KEY, 0.3, {"vllm:num_requests_running": 1}) is True


def test_a_cache_must_be_as_empty_as_before_where_that_is_known(pages: Pages) -> None:
    pages.page = lambda: page(tokens=0, usage=0.4)

    assert wait_until_freed(pages.url, KEY, 0.3, {"vllm:kv_cache_usage_perc": 0.2}) is False
    assert wait_until_freed(pages.url, KEY, 0.3, {"vllm:kv_cache_usage_perc": 0.4}) is True


def test_without_gauges_the_release_is_unknown(pages: Pages) -> None:
    pages.page = lambda: "process_cpu_seconds_total 3\n"

    assert wait_until_freed(pages.url, KEY, 0.2) is None


def test_a_server_whose_gauges_need_engine_steps_is_pinged_once(pages: Pages) -> None:
    running = [1.0]
    pings: list[float] = []

    def ping() -> None:
        pings.append(time.perf_counter())
        running[0] = 0

    pages.page = lambda: page(tokens=0, running=running[0])

    assert wait_until_freed(pages.url, KEY, 0.6, None, ping) is True
    assert len(pings) == 1


def test_under_gevent_it_yields_to_the_other_greenlets(pages: Pages) -> None:
    """Locust patches the process; a reading of half a second must not stop the load for half a second."""
    script = (
        "from gevent import monkey; monkey.patch_all()\n"
        "import sys, time, gevent\n"
        "from loadtest.server_metrics.scraper import Scraper\n"
        "scraper = Scraper(sys.argv[1], {}, 0.01)\n"
        "turns = []\n"
        "turning = gevent.spawn(lambda: [(turns.append(1), gevent.sleep(0.01)) for _ in range(1000)])\n"
        "scraper.start(); scraper.stop(); turning.kill()\n"
        "print(len(turns), scraper.to_result(0, 0, None).scraped)\n"
    )

    def slow() -> str:
        time.sleep(0.5)
        return page(tokens=1)

    pages.page = slow
    done = subprocess.run(
        [sys.executable, "-c", script, pages.url], capture_output=True, text=True, timeout=30, check=False
    )
    turns, scraped = done.stdout.split() or (0, done.stderr)

    assert (int(turns) > 20, scraped) == (True, "True")
