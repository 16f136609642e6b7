from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain import Chunk, Delta, Endpoint, OutputPart
from gateway.errors import EngineFailed
from gateway.protocols.chat import CHAT
from gateway.protocols.completions import COMPLETIONS
from gateway.protocols.json_text import escaped
from gateway.protocols.openai import DONE
from tests.support.engine import chunk_template

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


PROTOCOLS = {protocol.endpoint: protocol for protocol in (CHAT, COMPLETIONS)}


BOTH = pytest.mark.parametrize("endpoint", list(Endpoint))


def documents(pieces: list[OutputPart], endpoint: Endpoint = Endpoint.CHAT, **template: Any) -> list[dict[str, Any]]:
    """The stream of `pieces`, each taken by itself."""
    encoder = PROTOCOLS[endpoint].encoder(chunk_template(endpoint, **template))
    return [orjson.loads(document) for piece in pieces for document in encoder.encode([piece])]


def content(stream: list[dict[str, Any]]) -> str:
    """What a client that concatenates gets to read."""
    choices = [choice for document in stream for choice in document["choices"]]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in choices)


SEPARATORS = "a\u2028b\u2029c\x85d\u2027\u202a\xe2\x84e"


@BOTH
def test_every_document_names_the_stream(endpoint: Endpoint) -> None:
    stream = documents([Delta("a", 1), Delta("b", 1, "stop")], endpoint, include_usage=True, model='m"1')
    kind = "chat.completion.chunk" if endpoint is Endpoint.CHAT else "text_completion"
    identities = {(document["id"], document["object"], document["created"], document["model"]) for document in stream}

    assert identities == {(stream[0]["id"], kind, 1700000000, 'm"1')}


@BOTH
def test_usage_comes_in_a_chunk_of_its_own_after_the_finish(endpoint: Endpoint) -> None:
    *others, finish, usage = documents([Delta("a", 2), Delta("b", 3, "stop")], endpoint, include_usage=True)

    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 7, "total_tokens": 12, "completion_tokens": 5}
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert not any("usage" in document for document in [*others, finish])


@BOTH
def test_continuous_usage_counts_along(endpoint: Endpoint) -> None:
    stream = documents(
        [Delta("a", 2), Delta("b", 3), Delta("", 1, "stop")], endpoint, include_usage=True, continuous_usage=True
    )
    counts = [document["usage"]["completion_tokens"] for document in stream]

    assert counts == ([0, 2, 5, 6, 6] if endpoint is Endpoint.CHAT else [2, 5, 6, 6])


@BOTH
def test_without_usage_nothing_counts(endpoint: Endpoint) -> None:
    assert not any("usage" in document for document in documents([Delta("a", 1, "stop")], endpoint))


@BOTH
@pytest.mark.parametrize("include_usage", [False, True])
def test_the_fingerprint_rides_on_the_last_document_only(endpoint: Endpoint, include_usage: bool) -> None:
    stream = documents([Delta("a", 1), Delta("b", 1, "stop")], endpoint, fingerprint="fp", include_usage=include_usage)

    assert [document.get("system_fingerprint") for document in stream] == [None] * (len(stream) - 1) + ["fp"]


def test_tokens_without_text_get_no_chunk_where_empty_ones_are_dropped() -> None:
    stream = documents([Delta("", 1), Delta("a", 1), Delta("", 1), Delta("", 1, "stop")], drop_empty=True)

    assert [document["choices"][0]["delta"] for document in stream] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {},
    ]


def test_dropped_tokens_still_count() -> None:
    usage = documents([Delta("", 4), Delta("", 1, "stop")], drop_empty=True, include_usage=True)[-1]["usage"]

    assert usage["completion_tokens"] == 5


def test_empty_texts_are_sent_where_nothing_is_dropped() -> None:
    stream = documents([Delta("", 1), Delta("", 1, "stop")], Endpoint.COMPLETION)

    assert len(stream) == 2


@pytest.mark.parametrize("stop", [None, 42, "END"])
def test_the_stop_reason_keeps_its_type(stop: int | str | None) -> None:
    assert documents([Delta("", 1, "stop", stop)])[-1]["choices"][0]["stop_reason"] == stop


def test_ready_made_documents_pass_untouched() -> None:
    assert CHAT.encoder(chunk_template()).encode([Chunk(b'{"any": "thing"}')]) == [b'{"any": "thing"}']


@given(endpoint=st.sampled_from(list(Endpoint)), texts=st.lists(TEXT, max_size=8), drop=st.booleans())
def test_concatenated_deltas_are_the_text_however_it_was_split(
    endpoint: Endpoint, texts: list[str], drop: bool
) -> None:
    """Non-ASCII, control characters and quotes included; both ends in one test."""
    pieces: list[OutputPart] = [Delta(text, 1) for text in texts]
    pieces.append(Delta("", 1, "stop"))

    assert content(documents(pieces, endpoint, drop_empty=drop and endpoint is Endpoint.CHAT)) == "".join(texts)


@given(texts=st.lists(TEXT, min_size=1, max_size=8))
def test_no_document_holds_a_raw_line_break(texts: list[str]) -> None:
    encoder = CHAT.encoder(chunk_template())

    assert not any(b"\n" in document or b"\r" in document for document in encoder.encode([Delta(t, 1) for t in texts]))


def test_an_encoder_without_a_template_passes_documents_on() -> None:
    """There is no text without a template, so a delta there belongs to no client: it is not made up into a chunk."""
    encode = CHAT.encoder(None).encode

    assert CHAT.encoder(None).encode_text("lost", 1) is None
    assert encode([Chunk(b"1"), Delta("lost", 1), Chunk(b"2")]) == [b"1", b"2"]
    assert encode([]) == []


def test_an_encoder_with_a_template_belongs_to_one_stream() -> None:
    encode = COMPLETIONS.encoder(chunk_template(Endpoint.COMPLETION, continuous_usage=True, include_usage=True)).encode
    counts = [orjson.loads(encode([Delta("a", 2)])[0])["usage"]["completion_tokens"] for _ in range(2)]

    assert counts == [2, 4], "it remembers"
    (first,) = COMPLETIONS.encoder(chunk_template(Endpoint.COMPLETION)).encode([Delta("a", 1)])
    assert orjson.loads(first)["choices"][0]["text"] == "a"


def test_a_stream_ends_with_done_and_a_failed_one_with_its_error_first() -> None:
    error = EngineFailed("Down.")

    assert CHAT.end(None) == [b"[DONE]"]
    assert [orjson.loads(CHAT.end(error)[0]), *CHAT.end(error)[1:]] == [error.body(), DONE]


@BOTH
@pytest.mark.parametrize("continuous", [False, True])
def test_line_separators_of_unicode_leave_escaped(endpoint: Endpoint, continuous: bool) -> None:
    """Clients that split lines with `str.splitlines` would break an event in two."""
    template = chunk_template(endpoint, model=SEPARATORS, continuous_usage=continuous)
    made = (
        PROTOCOLS[endpoint].encoder(template).encode([Delta(SEPARATORS, 1), Delta(SEPARATORS, 1, "stop", SEPARATORS)])
    )
    chunk = orjson.dumps({"x": SEPARATORS})
    ready = [*PROTOCOLS[endpoint].encoder(template).encode([Chunk(chunk)]), *CHAT.encoder(None).encode([Chunk(chunk)])]
    text_document = PROTOCOLS[endpoint].encoder(template).encode_text(SEPARATORS, 1)
    failed = CHAT.end(EngineFailed(SEPARATORS))[0]

    assert text_document is not None
    for document in (*made, *ready, text_document, failed):
        assert len(document.decode().splitlines()) == 1
    assert content([orjson.loads(document) for document in made]) == SEPARATORS * 2
    assert [orjson.loads(document) for document in ready] == [{"x": SEPARATORS}] * 2
    assert content([orjson.loads(text_document)]) == SEPARATORS
    assert orjson.loads(made[-1])["choices"][0]["stop_reason"] == SEPARATORS
    assert orjson.loads(failed)["error"]["message"] == SEPARATORS


@given(st.recursive(TEXT, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=5))
def test_an_escaped_document_means_the_same(value: Any) -> None:
    document = orjson.dumps([value, SEPARATORS])

    assert orjson.loads(escaped(document)) == [value, SEPARATORS]
    assert len(escaped(document).decode().splitlines()) == 1


def test_text_that_needs_no_escape_is_not_copied() -> None:
    for text in ("plain", "größer", "\u2019quoted\u2019 \u2014 so", "日本語", "😀"):
        document = orjson.dumps(text)

        assert escaped(document) == document


@BOTH
def test_fields_at_the_end_of_a_newer_vllms_chunks_stand_last(endpoint: Endpoint) -> None:
    """vLLM 0.33 has null fields that 0.32 has not; a chat's choices have theirs only where they finish."""
    added = {"choice_nulls": ("weight_versions",), "chunk_nulls": ("kv_transfer_params",)}
    pieces: list[OutputPart] = [Delta("a", 1), Delta("b", 1), Delta("c", 1, "stop")]

    old = documents(pieces, endpoint, continuous_usage=True, include_usage=True)
    new = documents(pieces, endpoint, continuous_usage=True, include_usage=True, **added)

    spoken = [document for document in new if document["choices"] and "role" not in str(document["choices"][0])]
    assert all(list(document)[-1] == "kv_transfer_params" for document in spoken)
    finishing = [list(document["choices"][0])[-1] == "weight_versions" for document in spoken]
    assert finishing == ([False, False, True] if endpoint is Endpoint.CHAT else [True, True, True])
    for document in spoken:
        del document["kv_transfer_params"]
        document["choices"][0].pop("weight_versions", None)
    assert new == old
