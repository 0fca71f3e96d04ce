"""The canonical line of an item is the library's (RFC 8785), for arbitrary items; the Merkle tree is that of RFC 6962."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import rfc8785
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jouleboard import itemline, merkle, store, strictjson
from jouleboard.errors import DataFileError
from jouleboard.records import Item

numbers = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(0, 2**53 - 1)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
sha = st.just("0" * 64)
items = st.builds(
    Item, task=st.just("piqa"), item=counts, doc_sha256=sha, prompt_sha256=sha, gold=st.none() | counts, loglikelihoods=st.lists(numbers).map(tuple),
    choice_chars=st.lists(counts, max_size=3).map(tuple), text_bytes=st.none() | counts, scores=st.dictionaries(st.sampled_from(["acc", "acc_norm", "f1"]), numbers),
    prompt_tokens=counts, output_tokens=counts, digest=texts, cluster=st.none() | texts, correct=st.lists(counts, max_size=2).map(tuple),
    response=st.none() | texts, response_sha256=st.none() | sha, extracted=st.none() | texts, targets=st.lists(texts, max_size=2).map(tuple),
    stopped=st.none() | st.sampled_from(["stop", "length"]))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(items)
def test_an_item_s_line_is_that_of_the_library(item: Item) -> None:
    plain = msgspec.to_builtins(item)
    assert itemline.canonical(item) == rfc8785.dumps(plain)
    assert itemline.canonical(item, digest="") == rfc8785.dumps(plain | {"digest": ""})


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(numbers | st.integers(-2**53 + 1, 2**53 - 1))
def test_a_number_is_that_of_the_library(value: float) -> None:
    assert itemline.number(value).encode() == rfc8785.dumps(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**53])
def test_a_number_without_a_canonical_form_has_none(value: float) -> None:
    with pytest.raises(rfc8785.CanonicalizationError):
        itemline.number(value)


def by_the_rfc(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962, 2.1, as it is written there."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    size = 1
    while 2 * size < len(leaves):
        size *= 2
    return hashlib.sha256(b"\1" + by_the_rfc(leaves[:size]) + by_the_rfc(leaves[size:])).digest()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.binary(max_size=8), max_size=40))
def test_a_merkle_root_is_that_of_the_rfc(leaves: list[bytes]) -> None:
    assert merkle.root(leaves) == by_the_rfc(leaves).hex()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.binary(max_size=8), min_size=2, max_size=12, unique=True), st.data())
def test_another_order_has_another_root(leaves: list[bytes], data: st.DataObject) -> None:
    other = data.draw(st.permutations(leaves))
    assert (merkle.root(other) == merkle.root(leaves)) == (list(other) == leaves)


json_values = st.recursive(st.none() | st.booleans() | st.integers(-2**53, 2**53) | numbers | texts,
                           lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=20)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(json_values)
def test_strict_json_reads_what_plain_json_does(value: object) -> None:
    data = msgspec.json.encode(value)
    assert strictjson.loads(data, Path("x")) == value


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_read_or_refused_with_a_code(data: bytes) -> None:
    code = None
    try:
        strictjson.loads(data, Path("x"))
    except DataFileError as error:
        code = error.code
    assert code in {None, "json", "encoding", "number", "depth", "duplicate-key", "size"}


@pytest.mark.parametrize("depth", [31, 32, 33])
def test_depth_is_counted_outside_of_strings(depth: int) -> None:
    assert strictjson.loads(b'"' + b"[" * 100 + b'"', Path("x")) == "[" * 100
    data = b"[" * depth + b'"]]]\\"]"' + b"]" * depth
    if depth <= strictjson.MAX_DEPTH:
        assert strictjson.loads(data, Path("x"))
    else:
        with pytest.raises(DataFileError, match="nested too deeply"):
            strictjson.loads(data, Path("x"))


def test_a_store_writes_items_as_the_library_would(tmp_path: Path) -> None:
    made = Item(task="piqa", item=1, doc_sha256="0" * 64, prompt_sha256="0" * 64, gold=0, loglikelihoods=(-1e-9, -0.0, -1e21), choice_chars=(1, 2, 3),
                text_bytes=None, scores={"acc": 1.0}, prompt_tokens=1, output_tokens=1, digest="")
    store.write_items(tmp_path, [made])
    assert store.read_lines(tmp_path / store.ITEMS) == [rfc8785.dumps(msgspec.to_builtins(made))]
