from __future__ import annotations

import orjson
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocols.json_text import dumped, escaped

# Text in which the three separators are frequent, and characters whose bytes begin alike.
TEXT = st.text(st.one_of(st.sampled_from('\x85\u2028\u2029\u2027\u202a\x84a"\\'), st.characters(codec="utf-8")))


@given(TEXT)
def test_a_text_stays_itself_on_one_line(text: str) -> None:
    document = dumped(text)

    assert orjson.loads(document) == text
    assert len(document.decode().splitlines()) == 1


@given(st.dictionaries(TEXT, st.lists(TEXT)))
def test_a_document_stays_itself_on_one_line(document: dict[str, list[str]]) -> None:
    result = escaped(orjson.dumps(document))

    assert orjson.loads(result) == document
    assert len(result.decode().splitlines()) == 1


def test_a_document_without_separators_is_not_copied() -> None:
    for document in (b'{"a":"b"}', '{"a":"é\u2027"}'.encode()):
        assert escaped(document) == document
    ascii_only = b'{"a":"b"}'
    assert escaped(ascii_only) is ascii_only
