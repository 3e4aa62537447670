"""A short form of `make fuzz`: some hundred inputs for each parser, made of what it looks for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from overlay_boot.dpkg import FOLDER, Database
from tests.fuzz.parsers import PARSERS, WORDS


@pytest.mark.parametrize("name", ["a" * 251, "a" * 256, "../../a", "/etc/a"])
def test_a_package_that_no_file_can_be_named_after(tmp_path: Path, name: str) -> None:
    (tmp_path / FOLDER).mkdir(parents=True)
    rows = [f"Package: {each}\nStatus: install ok installed\nVersion: 1\n" for each in (name, "b")]
    (tmp_path / FOLDER / "status").write_text("\n".join(rows))
    root = os.open(tmp_path, os.O_PATH)
    try:
        with Database(root) as database:
            assert database.versions == {"b": "1"}
            assert database.owners() == {}
    finally:
        os.close(root)


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
