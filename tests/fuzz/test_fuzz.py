"""A short form of `make fuzz`: some hundred inputs for each parser, made of what it looks for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.fuzz.parsers import PARSERS, WORDS

ANY = some.binary(max_size=60)


@pytest.mark.parametrize("name", PARSERS)
def test_only_the_documented_errors_come_of_any_bytes(name: str) -> None:
    @settings(max_examples=100, deadline=None, database=None)
    @given(
        some.one_of(
            ANY, some.lists(some.sampled_from(WORDS[name]) | ANY, max_size=30).map(b"".join)
        )
    )
    def try_it(data: bytes) -> None:
        PARSERS[name](data)

    try_it()
