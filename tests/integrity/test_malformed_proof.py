"""Whatever a file that is said to be a proof holds: both checkers answer, and obey none of it."""

from __future__ import annotations

import copy
import json
import random
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgaudit_wf.cli import app
from pgaudit_wf.integrity.note import SigningKey
from pgaudit_wf.integrity.proof import prove_event
from pgaudit_wf.integrity.seal import Sealer

pytestmark = pytest.mark.slow

KEY = SigningKey("example.com/audit", bytes(range(32)))
CHECKER = Path(__file__).parents[2] / "contrib" / "check_proof.py"
ESCAPE = "\x1b[31m"
VALUES: list[Any] = [
    None, True, 0, -1, 1.5, 10**5000, "", ESCAPE, "é" * 10, [], {}, [[]], {"a": 1}, "A" * 100_000,
    [None], "===", "AAAA", "0" * 64, "9" * 5000,
]  # fmt: skip
WHOLE = [b"", b"\xff\xfe", b"null", b"[]", b'"x"', b"[" * 100_000, b'{"a":' * 100_000, b"1" * 9999]


@pytest.fixture
def proof(conn: psycopg.Connection[Any]) -> dict[str, Any]:
    conn.execute("create table t (id int primary key, v text)")
    conn.execute("select pgaudit_wf.attach('t')")
    conn.execute("insert into t select g, 'x' from generate_series(1, 9) as g")
    Sealer(KEY).step(conn)
    return prove_event(conn, 3)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for name, member in pairs:
        yield (*path, name)
        if isinstance(member, (dict, list)):
            yield from places(member, (*path, name))


def malformed(proof: dict[str, Any], seed: int) -> bytes:
    chance = random.Random(seed)
    text = bytearray(json.dumps(proof).encode())
    if seed % 4 == 0:
        for _ in range(chance.randint(1, 5)):
            text[chance.randrange(len(text))] = chance.randrange(256)
        return bytes(text[: chance.choice((len(text), chance.randrange(len(text))))])
    changed = copy.deepcopy(proof)
    *path, last = chance.choice(list(places(changed)))
    holder: Any = changed
    for name in path:
        holder = holder[name]
    if seed % 4 == 1:
        del holder[last]
    else:
        holder[last] = chance.choice(VALUES)
    sys.set_int_max_str_digits(6000)
    try:
        return json.dumps(changed).encode()
    finally:
        sys.set_int_max_str_digits(4300)


def answer_of_the_second(monkeypatch: pytest.MonkeyPatch, file: str, key: str) -> str | None:
    """Return what the independent checker refuses the proof with; None: it proves it."""
    monkeypatch.setattr(sys, "argv", ["check_proof.py", file, key])
    try:
        runpy.run_path(str(CHECKER), run_name="__main__")
    except SystemExit as refusal:
        said = str(refusal.code)
    else:
        return None
    assert said.startswith("NOT PROVED: ")
    return said


def test_both_checkers_answer_whatever_they_get(
    proof: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key, file = str(KEY.verifier), tmp_path / "proof.json"
    inputs = [json.dumps(proof).encode(), *WHOLE]
    inputs += [malformed(proof, seed) for seed in range(120)]
    for number, data in enumerate(inputs):
        file.write_bytes(data)
        with pytest.raises(SystemExit) as first:
            app(["check", str(file), "--key", key])
        refusal = answer_of_the_second(monkeypatch, str(file), key)
        assert ESCAPE not in (refusal or "")
        printed = capsys.readouterr()
        assert ESCAPE not in printed.out + printed.err
        # What one of them accepts, so does the other: the signed content is the same.
        assert first.value.code in (0, 1, 2), data[:500]
        assert bool(refusal) == (first.value.code > 0), data[:500]
        assert number > 0 or not refusal
