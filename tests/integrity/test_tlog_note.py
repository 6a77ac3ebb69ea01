"""Notes, checkpoints and keys against what others published."""

import base64
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pgaudit_wf.errors import NoteError, SigningKeyError
from pgaudit_wf.integrity.note import (
    WITNESS,
    Checkpoint,
    CommandSigner,
    Note,
    Signature,
    SigningKey,
    VerifierKey,
    open_checkpoint,
    sign_checkpoint,
)

# golang.org/x/mod/sumdb/note, whose format C2SP signed-note writes down.
GO_PRIVATE = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
GO_PUBLIC = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_TEXT = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
)
GO_NOTE = (
    f"{GO_TEXT}\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvq"
    "fqdngotpRZb6KE6RyyBwJnAM=\n"
)
# The checkpoint that the example of C2SP tlog-checkpoint was made of, under its real name.
SUMDB_KEY = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
SUMDB_ROOT = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I="
SUMDB_NOTE = (
    f"go.sum database tree\n20852163\n{SUMDB_ROOT}\n\n— sum.golang.org Az3grlgtzPICa5OS8npVmf1Myq/5"
    "IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
)
C2SP_COSIGNED = (
    f"example.com/behind-the-sofa\n20852163\n{SUMDB_ROOT}\n\n— example.com/behind-the-sofa Az3grlgt"
    "zPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    "— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2"
    "oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
)


def test_published_note_is_signed_and_checked_byte_for_byte() -> None:
    private, public = SigningKey.parse(GO_PRIVATE), VerifierKey.parse(GO_PUBLIC)
    assert private.verifier == public
    assert (str(private), str(public)) == (GO_PRIVATE, GO_PUBLIC)
    signature = Signature(private.name, public.id, private.sign(GO_TEXT.encode()))
    assert str(Note(GO_TEXT, (signature,))) == GO_NOTE
    assert Note.parse(GO_NOTE).signers([public]) == [public]


def test_published_checkpoint_holds() -> None:
    checkpoint = open_checkpoint(SUMDB_NOTE, [VerifierKey.parse(SUMDB_KEY)])
    root = base64.b64decode(SUMDB_ROOT)
    assert checkpoint == Checkpoint("go.sum database tree", 20852163, root)
    assert f"{checkpoint.text}\n" in SUMDB_NOTE


def test_published_example_with_a_cosignature_is_read() -> None:
    note = Note.parse(C2SP_COSIGNED)
    assert str(note) == C2SP_COSIGNED
    assert [s.name for s in note.signatures] == ["example.com/behind-the-sofa",
                                                 "witness.example.com/w1"]  # fmt: skip
    # The time is the one that the specification shows being signed.
    assert int.from_bytes(note.signatures[1].value[:8], "big") == 1679315147
    assert Checkpoint.parse(note.text).size == 20852163
    # It was made for another name, so nobody's key holds.
    with pytest.raises(NoteError, match="not by any of the given keys"):
        open_checkpoint(C2SP_COSIGNED, [VerifierKey.parse(SUMDB_KEY)])


@pytest.mark.parametrize("at", range(0, len(GO_PUBLIC), 3))
def test_a_damaged_key_is_refused(at: int) -> None:
    damaged = f"{GO_PUBLIC[:at]}{chr(ord(GO_PUBLIC[at]) ^ 1)}{GO_PUBLIC[at + 1 :]}"
    with pytest.raises(SigningKeyError):
        VerifierKey.parse(damaged)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "PeterNeumann",
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        GO_PRIVATE,
    ],
)
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(SigningKeyError):
        VerifierKey.parse(text)


@pytest.mark.parametrize("text", ["", GO_PUBLIC, GO_PRIVATE[:-4], GO_PRIVATE.replace("c7", "c8")])
def test_what_is_no_private_key_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(SigningKeyError) as caught:
        SigningKey.parse(text)
    assert "AYEKFALVFGyNhPJEMzD1QIDr" not in str(caught.value)


def test_a_private_key_does_not_show_in_its_repr() -> None:
    key = SigningKey.generate("example.com/audit")
    assert base64.b64encode(key.seed).decode()[:10] not in repr(key)
    assert SigningKey.parse(str(key)) == key


@pytest.mark.parametrize("name", ["", "two words", "a+b", "tab\tbed"])
def test_a_name_that_cannot_stand_in_a_note_is_refused(name: str) -> None:
    with pytest.raises(SigningKeyError, match="cannot name a key"):
        SigningKey.generate(name)


def test_a_changed_text_or_signature_does_not_hold() -> None:
    public = VerifierKey.parse(GO_PUBLIC)
    with pytest.raises(NoteError, match="is not valid"):
        Note.parse(GO_NOTE.replace("answer", "Answer")).signers([public])
    with pytest.raises(NoteError, match="is not valid"):
        Note.parse(GO_NOTE.replace("JnAM=", "JnBM=")).signers([public])


def test_signatures_of_unknown_keys_are_ignored() -> None:
    ours, other = SigningKey.generate("example.com/a"), SigningKey.generate("example.com/a")
    note = sign_checkpoint(Checkpoint("example.com/a", 3, bytes(32)), ours)
    assert note.signers([other.verifier]) == []
    both = Note(note.text, (*sign_checkpoint(Checkpoint.parse(note.text), other).signatures,
                            *note.signatures))  # fmt: skip
    assert open_checkpoint(str(both), [ours.verifier]).size == 3
    with pytest.raises(NoteError, match="not by any of the given keys"):
        open_checkpoint(str(note), [other.verifier])


@pytest.mark.parametrize(
    "note",
    [
        "", "text\n", "text\n\n", GO_NOTE[:-1], GO_NOTE.replace("— ", "- "),
        GO_NOTE.replace("PeterNeumann", "Peter Neumann"), GO_NOTE.replace("x08", "x*8"),
        GO_NOTE.replace("If", "I\tf"), f"{GO_TEXT}\n— PeterNeumann AAAA\n",
        GO_TEXT + "\n" + "— a AAAAAAAA\n" * 101,
    ],
)  # fmt: skip
def test_what_is_no_note_is_refused(note: str) -> None:
    with pytest.raises(NoteError):
        Note.parse(note)


def test_sixteen_signatures_are_read() -> None:
    assert len(Note.parse(f"{GO_TEXT}\n" + "— a AAAAAAAA\n" * 16).signatures) == 16


@pytest.mark.parametrize(
    "text",
    [
        "origin\n3\n", f"origin\n03\n{SUMDB_ROOT}\n", f"origin\n-3\n{SUMDB_ROOT}\n",
        f"\n3\n{SUMDB_ROOT}\n", "origin\n3\nAAAA\n", "origin\n3\nno base64\n",
        f"origin\n3\n{SUMDB_ROOT}", f"origin\n3\n{SUMDB_ROOT}\n\nlate\n",
    ],
)  # fmt: skip
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(NoteError):
        Checkpoint.parse(text)


def test_extension_lines_are_skipped() -> None:
    assert Checkpoint.parse(f"origin\n3\n{SUMDB_ROOT}\nmore\n").size == 3


def cosign(note: Note, seed: bytes, name: str, seconds: int) -> tuple[VerifierKey, Note]:
    private = Ed25519PrivateKey.from_private_bytes(seed)
    key = VerifierKey(name, WITNESS, private.public_key().public_bytes_raw())
    message = f"cosignature/v1\ntime {seconds}\n{note.text}".encode()
    value = seconds.to_bytes(8, "big") + private.sign(message)
    return key, Note(note.text, (*note.signatures, Signature(name, key.id, value)))


def test_a_witness_signs_with_the_time() -> None:
    log = SigningKey.generate("example.com/audit")
    note = sign_checkpoint(Checkpoint("example.com/audit", 3, bytes(32)), log)
    witness, cosigned = cosign(note, b"w" * 32, "witness.example.com/w1", 1679315147)
    assert VerifierKey.parse(str(witness)) == witness
    again = Note.parse(str(cosigned))
    assert again.signers([log.verifier, witness]) == [log.verifier, witness]
    late = Note(again.text, (again.signatures[0], Signature(
        witness.name, witness.id, b"\x00" * 8 + again.signatures[1].value[8:])))  # fmt: skip
    with pytest.raises(NoteError, match="witness"):
        late.signers([witness])
    cut = Note(again.text, (Signature(witness.name, witness.id, b"short"),))
    with pytest.raises(NoteError, match="witness"):
        cut.signers([witness])
    # A witness alone does not make a checkpoint the log's.
    with pytest.raises(NoteError, match="not by any of the given keys"):
        open_checkpoint(str(cosigned), [witness])


def signing_script(directory: Path, body: str) -> list[str]:
    script = directory / "sign.py"
    script.write_text(
        "import base64, sys\n"
        "from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey\n"
        f"key = Ed25519PrivateKey.from_private_bytes({b'k' * 32!r})\n"
        f"message = sys.stdin.buffer.read()\n{body}\n"
    )
    return [sys.executable, str(script)]


GOOD = "print(base64.b64encode(key.sign(message)).decode())"


def test_a_command_signs(tmp_path: Path) -> None:
    key = SigningKey("example.com/audit", b"k" * 32)
    signer = CommandSigner(signing_script(tmp_path, GOOD), key.verifier)
    checkpoint = Checkpoint(key.name, 3, bytes(32))
    assert sign_checkpoint(checkpoint, signer) == sign_checkpoint(checkpoint, key)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sys.exit('the card is locked')", "the card is locked"),
        ("print('no base64')", "must print base64"),
        ("print(base64.b64encode(key.sign(b'other')).decode())", "not a signature of"),
        ("import time; time.sleep(30)", "cannot be run"),
    ],
)
def test_a_command_that_does_not_sign_is_named(tmp_path: Path, body: str, message: str) -> None:
    key = SigningKey("example.com/audit", b"k" * 32)
    signer = CommandSigner(signing_script(tmp_path, body), key.verifier, timeout=3)
    with pytest.raises(SigningKeyError, match=message):
        signer.sign(b"text\n")


def test_a_command_that_is_not_there_is_named() -> None:
    signer = CommandSigner(["/nowhere/sign"], SigningKey.generate("a").verifier)
    with pytest.raises(SigningKeyError, match="cannot be run"):
        signer.sign(b"text\n")
