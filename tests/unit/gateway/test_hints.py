"""Hints about names that do not exist."""

from __future__ import annotations

from gateway.hints import did_you_mean, nearest


def test_the_most_similar_name_is_found_and_only_above_the_cutoff() -> None:
    assert nearest("prot", ["host", "port"]) == "port"
    assert nearest("prot", ["host", "port"], cutoff=0.9) == ""
    assert nearest("prot", []) == ""


def test_a_hint_is_a_sentence_of_its_own_or_nothing() -> None:
    assert did_you_mean("port") == " Did you mean `port`?"
    assert did_you_mean("") == ""
