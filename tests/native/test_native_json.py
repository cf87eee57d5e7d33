"""The native runtime's JSON reader against Python's, document by document."""

from __future__ import annotations

import json
import math
import random
import subprocess
from pathlib import Path
from typing import Any

from .tree import MARKS, built, write_engine

pytestmark = MARKS
__all__ = ["built"]  # a fixture, used by its name

DEEPEST, MOST_FIELDS = 32, 4096


def read_natively(built: Path, documents: list[bytes]) -> list[str]:
    fed = b"".join(b"%d\n%s" % (len(document), document) for document in documents)
    done = subprocess.run([built / "tests/native/pfdiff_canonical_of"], input=fed, capture_output=True, check=True)
    return done.stdout.decode("ascii").splitlines()


# Python's reader, made as strict.
def read_by_python(document: bytes) -> str:
    """The canonical form, or "refused"."""
    try:
        value = json.loads(
            document.decode("utf-8"),
            object_pairs_hook=_fields,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_refuse,
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # no half of a surrogate pair
        if _depth(value) > DEEPEST:
            return "refused"
    except (ValueError, RecursionError):
        return "refused"
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs) or len(pairs) > MOST_FIELDS:
        raise ValueError
    return dict(pairs)


def _integer(written: str) -> int | float:
    """An int64, or what a float64 makes of it."""
    whole = len(written) < 25 and -(2**63) <= int(written) < 2**63
    return int(written) if whole else _number(written)


def _number(written: str) -> float:
    number = float(written)
    digits = written.lower().partition("e")[0]
    if math.isinf(number) or (number == 0 and any(digit in digits for digit in "123456789")):
        raise ValueError
    return number


def _refuse(name: str) -> Any:
    raise ValueError(name)


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def nest(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def fields(count: int) -> bytes:
    return json.dumps({str(i): i for i in range(count)}).encode()


DOCUMENTS = [
    # Structure.
    *(b"", b" ", b"{", b"[1,]", b"[,1]", b"{,}", b'{"a":1,}', b"[1 2]", b"[] []", b"{1:2}", b'{"a" 1}', b"tru", b"'a'"),
    *(b"[]\x00", b"[]\x00[]", b"\x00[]", b"[1]\n\t\r ", b"\x0b[]", b"/**/[]", b"[] // note", b"\xef\xbb\xbf[]"),
    *(b'{"a":1,"a":1}', b'{"a":{"b":1,"b":2}}', b'{"":0,"\\u0000":1}'),
    b'{"b":1,"a":2,"\xc3\xa9":3,"\\ud83d\\ude00":4,"\\uffff":5}',
    *(nest(32), nest(33), nest(5000), b'{"a":' * 33 + b"1" + b"}" * 33, b"[" * 100000, fields(4096), fields(4097)),
    # Numbers.
    *(b"01", b"-01", b"1.", b".5", b"+1", b"-", b"--1", b"1e", b"1e+", b"0x10", b"1_000", b"NaN", b"-Infinity"),
    *(b"0", b"-0", b"-0.0", b"0e5", b"1E5", b"1e-05", b"1e16", b"1e15", b"123456.789", b"5e-324", b"0.1"),
    *(b"1.7976931348623157e308", b"1e999", b"-1e999", b"1e-999", b"0e-999", b"0.0e-999", b"4.9e-324", b"2e-324"),
    *(b"9223372036854775807", b"9223372036854775808", b"-9223372036854775808", b"-9223372036854775809"),
    *(b"18446744073709551615", b"18446744073709551616", b"100000000000000000000000", b"9007199254740993"),
    *(b"9" * 400, b"1" + b"0" * 308),
    # Strings.
    *(b'"\\u00e9\\ud83d\\ude00\\u0007\\n\\"\\\\\\/"', b'"\\ud800"', b'"\\ud800\\u0041"', b'"\\udc00"', b'"\\x"'),
    *(b'"\\u12"', b'"\\u0000"', b'"a\x00b"', b'"\x01"', b'"\x7f"', "\"ä€😀\"".encode()),
    *(b'"\xc0\x80"', b'"\xed\xa0\x80"', b'"\xf4\x90\x80\x80"', b'"\xff"', b'"\xe2\x82"'),
]  # fmt: skip


def test_documents_are_read_and_refused_as_python_does(built: Path):
    found = read_natively(built, DOCUMENTS)
    assert found == [read_by_python(document) for document in DOCUMENTS]
    assert 40 < found.count("refused") < len(DOCUMENTS) - 30  # both kinds, many times


def test_damaged_manifests_are_read_and_refused_as_python_does(built: Path, tmp_path: Path):
    manifest = (
        write_engine(tmp_path / "some.engine", "pfdiff:k=2,l=1", "cosine:300", nfe=2) / "engine.json"
    ).read_bytes()
    chance = random.Random(11)
    pieces = [
        *(one for one in DOCUMENTS if len(one) < 50),
        b",",
        b":",
        b'"',
        b"\\",
        b"[",
        b"]",
        b"{",
        b"}",
        b"\xc3",
        b"\x00",
    ]
    documents = []
    for _ in range(4000):
        text = manifest
        for _ in range(chance.randint(1, 3)):
            start = chance.randrange(len(text) + 1)
            end = min(len(text), start + chance.choice([0, 0, 1, 1, 2, 30]))
            text = text[:start] + chance.choice([b"", chance.choice(pieces), chance.randbytes(1)]) + text[end:]
        documents.append(text)
    found = read_natively(built, documents)
    expected = [read_by_python(document) for document in documents]
    assert [(d, f, e) for d, f, e in zip(documents, found, expected, strict=True) if f != e] == []
    assert 500 < found.count("refused") < 3900
