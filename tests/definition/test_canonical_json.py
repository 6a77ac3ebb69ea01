"""`canonical_json` against RFC 8785's own vectors and the `rfc8785` library."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
import rfc8785
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pgaudit_wf.errors import DefinitionError
from pgaudit_wf.workflow import definition

HISTORIES = sorted(
    (Path(__file__).parents[3] / "shared" / "data" / "workflow-histories").glob("*.jsonl")
)

# Pure functions over a shared connection: nothing to undo between two examples.
SHARED = settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

Canonical = Callable[[str], str]


@pytest.fixture
def canonical(conn: psycopg.Connection) -> Canonical:
    def run(document: str) -> str:
        row = conn.execute(
            "select pgaudit_wf._canonical_json(%s::text::jsonb)", [document]
        ).fetchone()
        assert row is not None
        return str(row[0])

    return run


def expected(document: str) -> str:
    # To JavaScript every number is a double, so the vectors' integers are read as such too.
    return rfc8785.dumps(json.loads(document, parse_int=float)).decode()


# RFC 8785, appendix B, but for NaN and Infinity, which no JSON text can hold.
APPENDIX_B = [
    ("0000000000000000", "0"),
    ("8000000000000000", "0"),
    ("0000000000000001", "5e-324"),
    ("8000000000000001", "-5e-324"),
    ("7fefffffffffffff", "1.7976931348623157e+308"),
    ("ffefffffffffffff", "-1.7976931348623157e+308"),
    ("4340000000000000", "9007199254740992"),
    ("c340000000000000", "-9007199254740992"),
    ("4430000000000000", "295147905179352830000"),
    ("44b52d02c7e14af5", "9.999999999999997e+22"),
    ("44b52d02c7e14af6", "1e+23"),
    ("44b52d02c7e14af7", "1.0000000000000001e+23"),
    ("444b1ae4d6e2ef4e", "999999999999999700000"),
    ("444b1ae4d6e2ef4f", "999999999999999900000"),
    ("444b1ae4d6e2ef50", "1e+21"),
    ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
    ("3eb0c6f7a0b5ed8d", "0.000001"),
    ("41b3de4355555553", "333333333.3333332"),
    ("41b3de4355555554", "333333333.33333325"),
    ("41b3de4355555555", "333333333.3333333"),
    ("41b3de4355555556", "333333333.3333334"),
    ("41b3de4355555557", "333333333.33333343"),
    ("becbf647612f3696", "-0.0000033333333333333333"),
    ("43143ff3c1cb0959", "1424953923781206.2"),
]


@pytest.mark.parametrize(("ieee", "text"), APPENDIX_B)
def test_numbers_of_the_rfc(canonical: Canonical, ieee: str, text: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(ieee))
    assert canonical(repr(number)) == text


def test_sorting_example_of_the_rfc(canonical: Canonical) -> None:
    document = r"""{
        "\u20ac": "Euro Sign", "\r": "Carriage Return", "\ufb33": "Hebrew Letter Dalet With Dagesh",
        "1": "One", "\ud83d\ude00": "Emoji: Grinning Face", "\u0080": "Control",
        "\u00f6": "Latin Small Letter O With Diaeresis"}"""
    assert list(json.loads(canonical(document)).values()) == [
        "Carriage Return",
        "One",
        "Control",
        "Latin Small Letter O With Diaeresis",
        "Euro Sign",
        "Emoji: Grinning Face",
        "Hebrew Letter Dalet With Dagesh",
    ]


def test_serialisation_example_of_the_rfc(canonical: Canonical) -> None:
    document = r"""{
        "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/", "literals": [null, true, false]
    }"""
    assert canonical(document) == (
        '{"literals":[null,true,false],'
        '"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        r'"string":"€$\u000f\nA' + "'" + r'B\"\\\\\"/"}'
    )


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ("1.0", "1"),
        ("-0.0", "0"),
        ("1e-400", "0"),
        ("-1e-400", "0"),
        ("100000000000000", "100000000000000"),
        ("9007199254740993", "9007199254740992"),
        ("123456789012345678901", "123456789012345680000"),
        ("1e21", "1e+21"),
        ("0.0000010", "0.000001"),
        ("0.00000010", "1e-7"),
        ("1.797693134862315807e308", "1.7976931348623157e+308"),
        ("{}", "{}"),
        ("[]", "[]"),
        ('[[], {}, [{}], ""]', '[[],{},[{}],""]'),
        ('{"bb": 1, "a": 2, "ab": 3}', '{"a":2,"ab":3,"bb":1}'),
        ('"\\u007f\\u2028/"', '"\x7f\u2028/"'),
        ("null", "null"),
    ],
)
def test_corners(canonical: Canonical, document: str, text: str) -> None:
    assert canonical(document) == text


@pytest.mark.parametrize(
    "keys",
    [
        # UTF-16 puts surrogates, and so U+10000 and above, before U+E000 to U+FFFF.
        ["\U0001f600", "\ufb33", "\ue000", "\ud7ff", "\ud7ff\ue000", "\ud7ff\U00010000"],
        ["a\U00010000", "a\uffff", "a", "a\ud7ff", "ab", "a\U0010ffff"],
    ],
)
def test_keys_sort_by_utf16_code_unit(canonical: Canonical, keys: list[str]) -> None:
    result = json.loads(canonical(json.dumps(dict.fromkeys(keys, 0))))
    assert list(result) == sorted(keys, key=lambda key: key.encode("utf-16-be"))


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
numbers = st.one_of(
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(1e-320, 1e308),
    st.decimals(-(10**9), 10**9, places=4).map(float),
)
documents = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=6),
    max_leaves=25,
)


@SHARED
@given(document=documents)
def test_agrees_with_rfc8785_on_random_documents(canonical: Canonical, document: object) -> None:
    text = json.dumps(document)
    assert canonical(text) == expected(text)
    assert definition.canonical_json(document) == expected(text)


@SHARED
@given(number=st.floats(2.0**53, 1e41))
@example(number=1e23)
@example(number=3.573108780496291e16)
def test_agrees_with_rfc8785_on_decimals_halfway_between_doubles(
    canonical: Canonical, number: float
) -> None:
    assert canonical(repr(number)) == expected(repr(number))


@SHARED
@given(mantissa=st.integers(1, 10**20), exponent=st.integers(-340, 288))
def test_agrees_with_rfc8785_on_decimal_numbers(
    canonical: Canonical, mantissa: int, exponent: int
) -> None:
    text = f"{mantissa}e{exponent}"
    assert canonical(text) == expected(text)


def test_agrees_on_every_character(canonical: Canonical) -> None:
    characters = [chr(c) for c in range(1, 0x110000) if not 0xD800 <= c <= 0xDFFF]
    for start in range(0, len(characters), 50_000):
        text = json.dumps("".join(characters[start : start + 50_000]), ensure_ascii=False)
        assert canonical(text) == expected(text)


def test_agrees_on_a_key_of_every_block(canonical: Canonical) -> None:
    keys = [chr(c) for c in range(1, 0x110000, 61) if not 0xD800 <= c <= 0xDFFF]
    text = json.dumps(dict.fromkeys(keys, 0))
    assert canonical(text) == expected(text)


@pytest.mark.skipif(not HISTORIES, reason="../shared/data/workflow-histories is not there")
@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_agrees_on_real_workflows(canonical: Canonical, path: Path) -> None:
    for line in path.read_text().splitlines():
        assert canonical(line) == expected(line)


@pytest.mark.parametrize("digits", [-15, 0, 1, 3])
def test_does_not_depend_on_extra_float_digits(
    conn: psycopg.Connection, canonical: Canonical, digits: int
) -> None:
    conn.execute(f"set extra_float_digits = {digits}")
    assert canonical("[333333333.33333329, 1E30, 1e-27]") == "[333333333.3333333,1e+30,1e-27]"


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1.797693134862315808e308"])
def test_number_that_no_double_holds_is_refused(canonical: Canonical, number: str) -> None:
    with pytest.raises(psycopg.Error, match="out of range for canonical JSON") as caught:
        canonical(f'{{"a": [{number}]}}')
    assert caught.value.sqlstate == "PA201"
    with pytest.raises(DefinitionError):
        definition.canonical_json([json.loads(number), 10**400])


@pytest.mark.parametrize("shape", ["[", "{", "[{", "{["])
def test_depth_has_a_limit_with_a_clear_error(
    conn: psycopg.Connection, canonical: Canonical, shape: str
) -> None:
    def nested(depth: int) -> str:
        opened = (shape * depth)[:depth]
        closed = "".join({"[": "]", "{": "}"}[bracket] for bracket in reversed(opened))
        return opened.replace("{", '{"a":') + "1" + closed

    deepest = nested(definition.MAX_DEPTH)
    assert canonical(deepest) == deepest
    assert definition.canonical_json(json.loads(deepest)) == deepest
    for depth in (definition.MAX_DEPTH + 1, 5000):
        with pytest.raises(psycopg.Error, match="nested more than 200 levels") as caught:
            canonical(nested(depth))
        assert caught.value.sqlstate == "PA202"
        assert len(caught.value.diag.context or "") < 2000
    with pytest.raises(DefinitionError, match="nested more than 200 levels"):
        definition.canonical_json(json.loads(nested(definition.MAX_DEPTH + 1)))


def test_null_gives_null(conn: psycopg.Connection) -> None:
    assert conn.execute("select pgaudit_wf._canonical_json(null)").fetchone() == (None,)


def test_reference_refuses_what_is_no_json() -> None:
    for value in (float("nan"), float("inf"), "\ud800", object()):
        with pytest.raises(DefinitionError):
            definition.canonical_json(value)
