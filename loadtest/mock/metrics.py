"""`/metrics`, by vLLM's names, for scrapers, autoscalers and the comparison of token counts."""

from __future__ import annotations

from bisect import bisect_left

from loadtest.mock.slots import Slots

# vLLM's own, without those that the mock does not need.
_BUCKETS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0)
_TTFT = "vllm:time_to_first_token_seconds"


class MockMetrics:
    def __init__(self, model: str, kv_tokens: int) -> None:
        self._labels = f'engine="0",model_name="{model}"'
        self._kv_limit = kv_tokens
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self._ttft_counts = [0] * (len(_BUCKETS_S) + 1)
        self._ttft_sum_s = 0.0

    def observe_ttft(self, after_ns: int) -> None:
        """A request got its first token `after_ns` after its arrival."""
        seconds = after_ns / 1e9
        self._ttft_counts[bisect_left(_BUCKETS_S, seconds)] += 1
        self._ttft_sum_s += seconds

    def exposition(self, slots: Slots) -> bytes:
        """The text that Prometheus reads."""
        lines: list[str] = []

        def add(kind: str, name: str, value: float) -> None:
            lines.append(f"# TYPE {name.removesuffix('_total')} {kind}\n{name}{{{self._labels}}} {value}")

        add("gauge", "vllm:num_requests_running", slots.running)
        add("gauge", "vllm:num_requests_waiting", slots.waiting)
        add("gauge", "vllm:kv_cache_usage_perc", slots.tokens / self._kv_limit)
        add("counter", "vllm:prompt_tokens_total", self.prompt_tokens)
        add("counter", "vllm:generation_tokens_total", self.generation_tokens)
        lines.append(f"# TYPE {_TTFT} histogram")
        so_far = 0
        for bound, count in zip((*map(str, _BUCKETS_S), "+Inf"), self._ttft_counts, strict=True):
            so_far += count
            lines.append(f'{_TTFT}_bucket{{{self._labels},le="{bound}"}} {so_far}')
        lines.append(f"{_TTFT}_sum{{{self._labels}}} {self._ttft_sum_s}")
        lines.append(f"{_TTFT}_count{{{self._labels}}} {so_far}")
        return ("\n".join(lines) + "\n").encode()
