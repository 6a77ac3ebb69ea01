"""Witnesses and time-stamp authorities: what outside parties sign, and up to when they vouch."""

from __future__ import annotations

import base64
import json
import subprocess
import time
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import pytest

from pgaudit_wf.errors import NoteError, ProofError, PushError, WitnessError
from pgaudit_wf.integrity.bundle import write_bundle
from pgaudit_wf.integrity.note import (
    Checkpoint,
    Note,
    SigningKey,
    VerifierKey,
    sign_checkpoint,
)
from pgaudit_wf.integrity.proof import newest_checkpoint
from pgaudit_wf.integrity.push import push
from pgaudit_wf.integrity.report import Report
from pgaudit_wf.integrity.seal import Sealer
from pgaudit_wf.integrity.timestamp import Authority, check_timestamp
from pgaudit_wf.integrity.verify import verify
from pgaudit_wf.integrity.vouching import verify_vouchers
from pgaudit_wf.trail.statement import one
from support import authority as tsa
from support import witness as c2sp
from support.authority import TimeStamps, make_authority
from support.command import command
from support.needs import missing
from support.server import Conn
from support.tampering import unlock
from support.witness import Refusal, Request, Witness

KEY = SigningKey("example.com/audit", bytes(range(32)))

# The example of C2SP tlog-witness, as it stands there; its signatures are those of other texts.
EXAMPLE = """\
old 20852014
PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=
jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=
5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=
/6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=

example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
— example.com/behind-the-sofa opLqBQsREYCgu6xQkYQwJr9fo45a62DN9EdmHXnZdXNqlcVGlCum2Wks+49/V6267UEjw6QUXTS5Rovnzv++qbSzm9Q=
"""  # noqa: E501


def refused(witness: Witness, body: str) -> tuple[int, str]:
    with pytest.raises(Refusal) as caught:
        witness.add_checkpoint(body.encode())
    return caught.value.status, caught.value.body


def test_the_witness_reads_the_published_request() -> None:
    request = Request.parse(EXAMPLE.encode())
    assert (request.old_size, request.size, len(request.proof)) == (20852014, 20852163, 4)
    assert [number.hex() for _, number, _ in request.signatures] == ["033de0ae", "a292ea05"]
    witness = Witness("witness.example.com/w1")
    assert refused(witness, EXAMPLE) == (404, "")
    # Of a key with another name or id, it is no signature at all; of a known one, it must hold.
    witness.know(str(SigningKey("example.com/behind-the-sofa", b"k" * 32).verifier))
    assert refused(witness, EXAMPLE) == (403, "")
    name = "example.com/behind-the-sofa"
    witness.logs[name] = (name, bytes.fromhex("033de0ae"), witness.logs[name][2])
    assert refused(witness, EXAMPLE) == (403, "")


def test_the_witness_answers_the_published_request_under_a_key_of_ours() -> None:
    log = SigningKey("example.com/behind-the-sofa", b"k" * 32)
    text = EXAMPLE.partition("\n\n")[2].rpartition("\n\n")[0] + "\n"
    note = sign_checkpoint(Checkpoint.parse(text), log)
    assert note.text == text
    proof = EXAMPLE.partition("\n\n")[0]
    witness = Witness("witness.example.com/w1")
    witness.know(str(log.verifier))
    assert refused(witness, f"{proof}\n\n{note}") == (409, "0\n")
    assert refused(witness, f"old 20852164\n\n{note}") == (400, "")
    assert refused(witness, f"{proof.replace('20852014', '0')}\n\n{note}") == (422, "")
    for malformed in ("old 020852014", "old  1", "old -1", "new 1", "old 1\n!"):
        assert refused(witness, f"{malformed}\n\n{note}") == (400, "")
    line = witness.add_checkpoint(f"old 0\n\n{note}".encode())
    signed = Note.parse(str(note) + line)
    assert signed.signers([VerifierKey.parse(witness.vkey)]) == [VerifierKey.parse(witness.vkey)]
    # From now on the example's old size is not what it has seen, either.
    assert refused(witness, f"{proof}\n\n{note}") == (409, "20852163\n")
    witness.seen[log.name] = (20852014, bytes(32))
    assert refused(witness, f"{proof}\n\n{note}") == (422, "")


@pytest.fixture
def witness() -> Witness:
    made = Witness("witness.example.com/w1")
    made.know(str(KEY.verifier))
    return made


@pytest.fixture
def url(witness: Witness) -> Iterator[str]:
    with c2sp.serving(witness) as prefix:
        yield f"witness+{prefix}"


def grow(conn: Conn, count: int) -> str:
    conn.execute(
        "select pgaudit_wf.record_event('key.made', 'key', g::text)"
        " from generate_series(1, %s) as g", [count],
    )  # fmt: skip
    Sealer(KEY).run(conn)
    return newest_checkpoint(conn)


def size_of(note: str) -> int:
    return Checkpoint.parse(Note.parse(note).text).size


def keys_of(*witnesses: Witness) -> list[VerifierKey]:
    return [VerifierKey.parse(one.vkey) for one in witnesses]


def vouched(conn: Conn, *witnesses: Witness, authorities: tuple[Authority, ...] = ()) -> Report:
    keys = [KEY.verifier, *keys_of(*witnesses)]
    report = verify(conn, keys)
    verify_vouchers(conn, report, keys, authorities)
    return report


def test_a_witness_signs_what_continues_what_it_saw(conn: Conn, witness: Witness, url: str) -> None:
    keys = keys_of(witness)
    sizes = [0]
    for count in (5, 3, 300):
        note = grow(conn, count)
        sizes.append(size_of(note))
        before = datetime.now(UTC).replace(microsecond=0)
        push(conn, note, url, keys)
        signed = Note.parse(newest_checkpoint(conn))
        assert signed.signers(keys) == keys
        report = vouched(conn, witness)
        assert report.holds
        assert report.vouched_until is not None
        assert before <= report.vouched_until <= datetime.now(UTC)
        [voucher] = report.vouched
        assert (voucher.by, voucher.size) == ("witness witness.example.com/w1", report.leaves)
    # It is told what it saw last, and so needs to be asked only once.
    assert [request.old_size for request in witness.requests] == sizes[:3]
    # Without that, it says so.
    unlock(conn)
    conn.execute("delete from pgaudit_wf.log_cosignature")
    note = grow(conn, 1)
    push(conn, note, url, keys)
    assert [request.old_size for request in witness.requests[3:]] == [0, sizes[3]]
    # Once more, and there is nothing to prove; this is the address that is asked.
    push(conn, newest_checkpoint(conn), f"{url.removeprefix('witness+')}/add-checkpoint", keys)
    assert (witness.requests[-1].old_size, witness.requests[-1].proof) == (size_of(note), [])


def test_a_witness_that_refuses_says_why(conn: Conn, witness: Witness, url: str) -> None:
    keys = keys_of(witness)
    old, note = grow(conn, 3), grow(conn, 4)
    with pytest.raises(PushError, match="--witness"):
        push(conn, note, url, [KEY.verifier])
    with pytest.raises(WitnessError, match="did not sign with any of the given keys"):
        push(conn, old, url, keys_of(Witness("witness.example.com/w2")))
    push(conn, note, url, keys)

    def refusal(note: str) -> tuple[int | None, str]:
        with pytest.raises(WitnessError) as caught:
            push(conn, note, url, keys)
        return caught.value.status, str(caught.value)

    status, message = refusal(old)
    assert status == 409
    has = f"has seen {size_of(note)} leaves of this log, and the checkpoint has {size_of(old)}"
    assert has in message
    witness.seen[KEY.name] = (3, b"x" * 32)
    status, message = refusal(note)
    assert (status, "does not continue what it has seen" in message) == (422, True)
    witness.seen[KEY.name] = (size_of(note), b"x" * 32)
    assert refusal(note)[0] == 422
    del witness.seen[KEY.name]
    witness.clock = time.time() + 3600
    assert "clock of the witness" in refusal(note)[1]
    witness.clock = 0
    assert "is not valid" in refusal(note)[1]
    witness.clock = None
    witness.more = "no signature\n"
    assert "is not valid" in refusal(note)[1]
    witness.logs.clear()
    assert refusal(note)[0] == 404
    witness.know(str(SigningKey(KEY.name, b"o" * 32).verifier))
    assert refusal(note)[0] == 403
    with pytest.raises(PushError, match=r"nothing could be sent to 127\.0\.0\.1"):
        push(conn, note, "witness+http://127.0.0.1:1/", keys)
    with pytest.raises(PushError, match="not an HTTP URL"):
        push(conn, note, "witness+file:///etc/passwd", keys)
    # What does not fit the tree is not even sent.
    stranger = sign_checkpoint(Checkpoint(KEY.name, size_of(note), b"y" * 32), KEY)
    with pytest.raises(ProofError, match="differs from the checkpoint"):
        push(conn, str(stranger), url, keys)


def test_others_are_told_what_one_does_not_take(
    conn: Conn, dsn: str, witness: Witness, url: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    grow(conn, 2)
    down = "witness+http://127.0.0.1:1"
    push_all = ["checkpoint", "push", "-d", dsn, down, url, tmp_path, "--witness", witness.vkey]
    told = command(capsys, *push_all)
    assert told.code == 1
    assert "nothing could be sent to 127.0.0.1" in told.err
    assert Note.parse(newest_checkpoint(conn)).signers(keys_of(witness)) == keys_of(witness)
    assert (tmp_path / "checkpoint").exists()


def test_a_witness_is_not_fooled_by_a_rewritten_log(conn: Conn, witness: Witness, url: str) -> None:
    push(conn, grow(conn, 4), url, keys_of(witness))
    unlock(conn)
    for table in ("log_cosignature", "log_leaf", "log_checkpoint", "log_tile"):
        conn.execute(f"delete from pgaudit_wf.{table}".encode())
    conn.execute("update pgaudit_wf.security_audit_log set actor_id = 'somebody else'")
    conn.execute("update pgaudit_wf.reader set cursor = null where name = 'seal'")
    with pytest.raises(WitnessError, match="does not continue"):
        push(conn, grow(conn, 1), url, keys_of(witness))
    report = vouched(conn, witness)
    assert (report.holds, report.vouched_until) == (True, None)


def test_a_forged_signature_of_a_witness_is_named(conn: Conn, witness: Witness, url: str) -> None:
    sizes = []
    for _ in range(2):
        sizes.append(size_of(note := grow(conn, 4)))
        push(conn, note, url, keys_of(witness))
    held = vouched(conn, witness)
    unlock(conn)
    (line,) = one(conn, "select line from pgaudit_wf.log_cosignature order by size desc limit 1")
    name, value = line.split(" ")[1:]
    raw = bytearray(base64.b64decode(value))
    raw[11] ^= 1
    for forged in (f"— {name} {base64.b64encode(raw).decode()}", f"— {name} AAAA"):
        conn.execute(
            "update pgaudit_wf.log_cosignature set line = %s where size = %s", [forged, sizes[1]]
        )
        report = vouched(conn, witness)
        assert [(p.kind, p.leaf_index) for p in report.problems] == [("checkpoint", sizes[1])]
        # What is left is the word of before.
        assert [v.size for v in report.vouched] == sizes[:1]
    # On a tree that is not this log's, it says nothing of this log.
    conn.execute("delete from pgaudit_wf.log_cosignature where size = %s", [sizes[1]])
    conn.execute("update pgaudit_wf.log_tile set hashes = overlay(hashes placing 'x' from 1)")
    assert vouched(conn, witness).vouched == []
    assert held.vouched_until is not None


@pytest.fixture
def stamps(tmp_path: Path) -> TimeStamps:
    if find_spec("rfc3161_client") is None:
        missing("no package rfc3161-client")
    return make_authority(tmp_path / "tsa")


@pytest.fixture
def stamps_url(stamps: TimeStamps) -> Iterator[str]:
    with tsa.serving(stamps) as address:
        yield f"tsa+{address}"


def test_an_authority_stamps_checkpoints(
    conn: Conn, stamps: TimeStamps, stamps_url: str, tmp_path: Path
) -> None:
    trusted = Authority.parse(stamps.root.read_text())
    assert trusted.name == "Test TSA root"
    note = grow(conn, 3)
    before = datetime.now(UTC).replace(microsecond=0)
    push(conn, note, stamps_url, authorities=[trusted])
    report = vouched(conn, authorities=(trusted,))
    assert report.holds
    [voucher] = report.vouched
    assert (voucher.by, voucher.size) == (
        "time-stamp authority Test TSA root", size_of(note),
    )  # fmt: skip
    assert before <= voucher.at <= datetime.now(UTC)
    # Anybody's tools check it.
    (response,) = one(conn, "select response from pgaudit_wf.log_timestamp")
    (tmp_path / "reply.tsr").write_bytes(response)
    (tmp_path / "checkpoint").write_text(note)
    subprocess.run(
        ["openssl", "ts", "-verify", "-in", "reply.tsr", "-data", "checkpoint", "-CAfile",
         stamps.root],
        check=True, capture_output=True, cwd=tmp_path,
    )  # fmt: skip
    assert vouched(conn).vouched == []


def test_what_is_no_time_stamp_of_a_trusted_authority_is_not_kept(
    conn: Conn, stamps: TimeStamps, stamps_url: str, tmp_path: Path
) -> None:
    trusted = Authority.parse(stamps.root.read_text())
    other = Authority.parse(make_authority(tmp_path / "other", "Other").root.read_text())
    note = grow(conn, 3)
    with pytest.raises(PushError, match="--tsa"):
        push(conn, note, stamps_url)
    with pytest.raises(PushError, match="Other root is not valid"):
        push(conn, note, stamps_url, authorities=[other])
    # An answer to another request.
    stamps.replay = stamps.reply(stamps.queries[-1])
    with pytest.raises(PushError, match="Nonce mismatch"):
        push(conn, note, stamps_url, authorities=[trusted])
    for garbage in (b"", b"\x30\x03\x02\x01\x00", b"<html>", stamps.replay[:-5]):
        stamps.replay = garbage
        with pytest.raises(PushError, match="is not kept"):
            push(conn, note, stamps_url, authorities=[trusted])
    stamps.status, stamps.replay = 500, None
    with pytest.raises(PushError, match="answered 500"):
        push(conn, note, stamps_url, authorities=[trusted])
    assert one(conn, "select count(*) from pgaudit_wf.log_timestamp") == (0,)
    for text in ("", "-----BEGIN CERTIFICATE-----", "no"):
        with pytest.raises(NoteError, match="PEM"):
            Authority.parse(text)


def test_a_forged_time_stamp_is_named(
    conn: Conn, stamps: TimeStamps, stamps_url: str, tmp_path: Path
) -> None:
    trusted = Authority.parse(stamps.root.read_text())
    other = Authority.parse(make_authority(tmp_path / "other", "Other").root.read_text())
    sizes = []
    for _ in range(2):
        sizes.append(size_of(note := grow(conn, 3)))
        push(conn, note, stamps_url, authorities=[trusted])
    # That of an authority that is not asked about is no forgery.
    assert vouched(conn, authorities=(other,)).holds
    unlock(conn)
    (response,) = one(
        conn, "select response from pgaudit_wf.log_timestamp where size = %s", [sizes[0]]
    )
    altered = bytearray(response)
    altered[-4] ^= 1
    for forged in (response, bytes(altered), b"\x00", b"\x30\x80"):
        conn.execute("delete from pgaudit_wf.log_timestamp where size = %s", [sizes[1]])
        conn.execute(
            "insert into pgaudit_wf.log_timestamp values (%(size)s, sha256(%(r)s), %(r)s)",
            {"size": sizes[1], "r": forged},
        )
        report = vouched(conn, authorities=(trusted,))
        assert [(p.kind, p.leaf_index) for p in report.problems] == [("checkpoint", sizes[1])]
        assert [v.size for v in report.vouched] == sizes[:1]
    with pytest.raises(NoteError):
        check_timestamp(newest_checkpoint(conn), bytes(altered), trusted)


def test_a_bundle_has_the_newest_time_stamp(
    conn: Conn, dsn: str, stamps: TimeStamps, stamps_url: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    trusted = Authority.parse(stamps.root.read_text())
    other = make_authority(tmp_path / "other", "Other")
    sizes = []
    for count in (3, 2, 2):
        sizes.append(size_of(note := grow(conn, count)))
        if len(sizes) < 3:
            push(conn, note, stamps_url, authorities=[trusted])
    path = tmp_path / "period.zip"
    with path.open("wb") as file:
        write_bundle(conn, file, "o_1", until=datetime.now(UTC))
    check = ["check", path, "--key", KEY.verifier, "--tsa"]
    told = command(capsys, *check, stamps.root)
    # When the period ends is another matter.
    assert (told.code, told.err) == (4, "")
    assert f"authority Test TSA root saw {sizes[1]} leaves at " in told.out
    (vouched,) = json.loads(command(capsys, *check, stamps.root, "--json").out)["vouched"]
    assert vouched["size"] == sizes[1]
    refused = command(capsys, *check, other.root)
    assert (refused.code, "by other authorities" in refused.out) == (1, True)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)
    stamped = tmp_path / "stamped"
    openssl = ["openssl", "ts", "-verify", "-in", f"{stamped}/1.tsr", "-data"]
    openssl += [f"{stamped}/checkpoint", "-CAfile", str(stamps.root)]
    assert b"Verification: OK" in subprocess.run(openssl, check=True, capture_output=True).stdout
    for name, content, complaint in (
        ("stamped/1.tsr", b"", "not a time-stamp"),
        ("stamped/1.tsr", None, "by other authorities"),
        ("stamped/checkpoint", None, "no time-stamp authority"),
        ("stamped/checkpoint", b"x", "is not the checkpoint"),
        ("stamped/consistency.json", None, "cannot be read"),
        ("stamped/consistency.json", b"[" * 100_000, "cannot be read"),
        ("stamped/consistency.json", b"{}", "proof"),
    ):
        altered = tmp_path / "altered.zip"
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(altered, "w") as target:
            for member in source.namelist():
                if member != name:
                    target.writestr(member, source.read(member))
                elif content is not None:
                    target.writestr(member, content)
        told = command(capsys, "check", altered, *check[2:], stamps.root)
        said = " ".join(told.out.split())
        assert (told.code, complaint in said, told.err) == (1, True, ""), told


def test_the_commands(
    conn: Conn, dsn: str, witness: Witness, url: str, tmp_path: Path,
    stamps: TimeStamps, stamps_url: str, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    key, public = tmp_path / "seal.key", tmp_path / "witness.pub"
    key.write_text(str(KEY))
    public.write_text(witness.vkey)
    grow(conn, 2)
    assert command(capsys, "verify", "-d", dsn, "--key", KEY.verifier).out.count("No outside party")
    conn.execute("select pgaudit_wf.record_event('key.made', 'key', '9')")
    sealed = command(
        capsys, "seal", "-d", dsn, "--key", key, "--push", url, "--witness", public,
        "--push", stamps_url, "--tsa", stamps.root,
    )  # fmt: skip
    assert (sealed.code, sealed.err) == (0, "")
    pushed = command(capsys, "checkpoint", "push", "-d", dsn, url, "--witness", public)
    assert (pushed.code, pushed.out, pushed.err) == (0, "", "")
    options = ["-d", dsn, "--key", KEY.verifier, "--key", public, "--tsa", stamps.root]
    told = command(capsys, "verify", *options)
    assert told.code == 0
    size = size_of(newest_checkpoint(conn))
    assert f"witness witness.example.com/w1 vouched for {size} of {size} leaves." in told.out
    assert f"authority Test TSA root vouched for {size} of {size} leaves." in told.out
    document = json.loads(command(capsys, "verify", *options, "--json").out)
    assert len(document["vouched"]) == 2
    assert document["vouched_until"] == max(v["at"] for v in document["vouched"])
    # A checkpoint that was kept with its co-signature vouches even where the table has none.
    kept = tmp_path / "kept"
    kept.write_text(newest_checkpoint(conn))
    unlock(conn)
    conn.execute("delete from pgaudit_wf.log_cosignature")
    options = ["-d", dsn, "--key", KEY.verifier, "--key", public, "--checkpoint", kept]
    assert f"vouched for {size} of {size}" in command(capsys, "verify", *options).out
    refused = command(capsys, "checkpoint", "push", "-d", dsn, f"{url}/x", "--witness", public)
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert command(capsys, "verify", *options, "--tsa", tmp_path).code == 2
    assert command(capsys, "verify", *options, "--tsa", public).code == 1
