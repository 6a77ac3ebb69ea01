"""JSON in and out of the package, exact to the digit and safe for any value in the log.

The log holds whatever applications wrote: numbers that do not fit a float, integers with more
digits than Python converts, nesting deeper than its stack. `loads` reads all of it, and `dumps`
writes it back.
"""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

__all__ = ["MAX_DEPTH", "UNSAFE", "dumps", "key_parts", "loads"]

MAX_DEPTH = 250
"""How deep arrays and objects may be nested; anything deeper is returned as its JSON text."""

# Control characters, line and paragraph separators, bidirectional controls, and lone surrogates:
# a value may contain them, but must not alter the text around it or end its line.
_UNSAFE = (
    "\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f"
)
UNSAFE = re.compile(f"[\x00-\x1f{_UNSAFE}]")
_UNSAFE_IN_JSON = re.compile(f"[{_UNSAFE}]")
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]')
# PostgreSQL prints no exponent and at most this many digits; more would mean a forged proof.
_PLAIN_SCALE = 20_000


def _constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _integer(text: str) -> int | Decimal:
    try:
        return int(text)
    except ValueError:
        # More digits than sys.get_int_max_str_digits(), which protects from quadratic time.
        return Decimal(text)


def _fraction(text: str) -> Decimal | str:
    try:
        return Decimal(text)
    except InvalidOperation:
        return text


# The first is a third faster, and suffices for almost all values.
_decode = json.JSONDecoder(parse_float=Decimal, parse_constant=_constant).decode
_decode_any = json.JSONDecoder(
    parse_float=_fraction, parse_int=_integer, parse_constant=_constant
).decode
# The encoder can only write our digits as a string; an unguessable prefix marks those strings.
_MARK = f"{secrets.token_hex(8)}:"
_MARKED = re.compile(f'"{_MARK}([^"]*)"')


def loads(data: str | bytes) -> Any:  # noqa: ANN401 - any JSON
    """Read JSON without losing a digit.

    Integers come as `int`, or as `Decimal` where they have more digits than Python converts;
    fractions as `Decimal`. Anything nested deeper than `MAX_DEPTH` comes as its JSON text.

    Raises:
        ValueError: It is not JSON.
    """
    # A database in SQL_ASCII may hold bytes of any encoding.
    text = data if isinstance(data, str) else data.decode("utf-8", "replace")
    try:
        value = _read(text)
    except RecursionError:
        try:
            return _read(_shallow(text))
        except RecursionError:
            raise ValueError("it is nested too deeply, and not closed") from None
    # Looking at the values is faster than at the text.
    is_deep = text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(value)
    return _read(_shallow(text)) if is_deep else value


def _read(text: str) -> Any:  # noqa: ANN401 - any JSON
    try:
        return _decode(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, InvalidOperation):
        return _decode_any(text)


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for each in level
            if isinstance(each, dict | list)
            for item in (each.values() if isinstance(each, dict) else each)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True


def _shallow(text: str) -> str:
    """Return JSON in which values nested too deep are replaced by their text."""
    done: list[str] = []
    depth = start = written = 0
    for token in _TOKEN.finditer(text):
        mark = text[token.start()]
        if mark in "[{":
            depth += 1
            if depth == MAX_DEPTH + 1:
                start = token.start()
        elif mark != '"':
            if depth == MAX_DEPTH + 1:
                done += text[written:start], json.dumps(text[start : token.end()])
                written = token.end()
            depth -= 1
    return "".join(done) + text[written:] if done else text


def dumps(
    value: object,
    indent: int | None = None,
    *,
    moment: Callable[[datetime], str] = datetime.isoformat,
) -> str:
    """Write JSON whose numbers have the digits that `loads` read.

    Dataclasses become objects. Characters that would affect the text around them are escaped, so
    without `indent` the result is one line for every program.

    Args:
        value: The value.
        indent: Spaces to indent members by, each on its own line; None: one line.
        moment: Formats a `datetime`.

    Raises:
        TypeError: It contains a value that JSON cannot represent.
    """

    def simpler(item: object) -> object:
        if isinstance(item, Decimal):
            return _MARK + _digits(item)
        if isinstance(item, datetime):
            return moment(item)
        if isinstance(item, Mapping):
            return dict(item)
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
        raise TypeError(f"{type(item).__name__} is not JSON")

    encoder = json.JSONEncoder(
        ensure_ascii=False, check_circular=False, indent=indent, default=simpler
    )
    text = _UNSAFE_IN_JSON.sub(_escape, encoder.encode(value))
    return _MARKED.sub(r"\1", text) if _MARK in text else text


def _escape(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1] if match[0] != "\x7f" else "\\u007f"


def _digits(value: Decimal) -> str:
    if not value.is_finite():
        raise TypeError(f"{value} is not JSON")
    exponent = int(value.as_tuple().exponent)
    return format(value, "f") if -_PLAIN_SCALE < exponent <= 0 else str(value)


def key_parts(resource_id: str | None) -> list[str] | None:
    """Return the key columns of a composite `resource_id` as texts; None for any other."""
    if resource_id is None or not resource_id.startswith("["):
        return None
    try:
        parts = loads(resource_id)
    except ValueError:
        return None
    return [part if isinstance(part, str) else dumps(part) for part in parts] or None
