from __future__ import annotations

from gateway.engine.vllm.grammars.check_results import CheckResult, ResultCache, digest


def test_only_equal_grammars_have_equal_digests() -> None:
    assert digest({"json": {"a": 1}}) == digest({"json": {"a": 1}})
    # The order of properties is the order in which the answer has them.
    assert len({digest({"json": {"a": 1, "b": 2}}), digest({"json": {"b": 2, "a": 1}}), digest({"regex": "a"})}) == 3
    assert digest({"regex": "\ud800"})


def test_the_least_recently_used_results_are_dropped() -> None:
    cache = ResultCache(max_bytes=1000)
    for name in (b"a", b"b", b"c"):
        cache.put(name, CheckResult("xgrammar"))
    cache.get(b"a")
    cache.put(b"d", CheckResult(None, "x" * 50))

    assert [name for name in (b"a", b"b", b"c", b"d") if cache.get(name)] == [b"a", b"c", b"d"]
    assert cache.size_bytes <= 1000

    cache.put(b"d", CheckResult("xgrammar"))

    assert (cache.get(b"d"), len(cache), cache.size_bytes) == (CheckResult("xgrammar"), 3, 900)
