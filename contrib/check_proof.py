#!/usr/bin/env python3
"""Check a proof of pgaudit_wf, without pgaudit_wf.

    python check_proof.py PROOF.json KEY [KEY ...]

A second implementation, written from docs/how-to/integrity.md, which shares no code with the first.
Needs Python 3.9 and the package `cryptography`. KEY is the log's public key, as a line of text or
a file that holds it. Prints what was proved and exits with 0, or says what does not hold and exits
with 1; wrong usage exits with 2.
"""

import base64
import hashlib
import json
import os
import struct
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


class NoProof(Exception):
    """The proof does not hold."""


def sha256(*pieces):
    return hashlib.sha256(b"".join(pieces)).digest()


def hashes(items):
    """Return the hashes of a path, each of which must be a SHA-256."""
    path = [base64.b64decode(item, validate=True) for item in items]
    expect(all(len(item) == 32 for item in path), "a hash of the path is not 32 bytes long")
    return path


def printable(text):
    """Return text as a terminal may show it: its control characters escaped, but not obeyed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def expect(condition, complaint):
    if not condition:
        raise NoProof(complaint)


def read_key(text):
    if os.path.exists(text):
        with open(text, encoding="utf-8") as file:
            text = file.read()
    name, key_id, material = text.strip().split("+", 2)
    raw = base64.b64decode(material, validate=True)
    expect(len(raw) == 33 and raw[0] == 1, "the key is no Ed25519 key of a log")
    expect(sha256(name.encode(), b"\n", raw)[:4].hex() == key_id, "the key is damaged")
    return name, bytes.fromhex(key_id), Ed25519PublicKey.from_public_bytes(raw[1:])


def open_checkpoint(note, keys):
    """Return origin, size and root of a checkpoint that one of the keys signed."""
    split = note.rindex("\n\n")
    text, lines = note[: split + 1], note[split + 2 :].splitlines()
    holds = False
    for line in lines:
        dash, name, blob = line.split(" ")
        expect(dash == "\u2014", "a line of the signatures is malformed")
        blob = base64.b64decode(blob, validate=True)
        for key_name, key_id, key in keys:
            if (key_name, key_id) == (name, blob[:4]):
                try:
                    key.verify(blob[4:], text.encode())
                except InvalidSignature:
                    raise NoProof("the checkpoint's signature does not hold") from None
                holds = True
    expect(holds, "the checkpoint is signed by none of the keys")
    origin, size, root = text.split("\n")[:3]
    expect(size.isascii() and size.isdecimal() and int(size) > 0, "the checkpoint has no size")
    [root] = hashes([root])
    return origin, int(size), root


def utf16(member):
    """RFC 8785 orders the members of an object by their names' UTF-16 code units."""
    units = member[0].encode("utf-16-be")
    return struct.unpack(f">{len(units) // 2}H", units)


def canonical(value):
    if isinstance(value, dict):
        members = sorted(value.items(), key=utf16)
        return "{" + ",".join(canonical(k) + ":" + canonical(v) for k, v in members) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    expect(value is None or isinstance(value, (str, bool)), "a leaf holds no numbers")
    return json.dumps(value, ensure_ascii=False)


def climb(index, size, leaf, path):
    """Return the root to which an inclusion proof leads, as RFC 6962 defines the path."""
    expect(0 <= index < size, "there is no such leaf")
    if size == 1:
        expect(not path, "the inclusion proof is too long")
        return leaf
    expect(path, "the inclusion proof is too short")
    split = 1 << ((size - 1).bit_length() - 1)
    if index < split:
        return sha256(b"\x01", climb(index, split, leaf, path[:-1]), path[-1])
    return sha256(b"\x01", path[-1], climb(index - split, size - split, leaf, path[:-1]))


def grow(old, new, path, old_root, whole=True):
    """Return the roots of both trees to which a consistency proof leads."""
    if old == new:
        if whole:
            return old_root, old_root
        expect(path, "the consistency proof is too short")
        expect(len(path) == 1, "the consistency proof is too long")
        return path[0], path[0]
    expect(path, "the consistency proof is too short")
    split = 1 << ((new - 1).bit_length() - 1)
    if old <= split:
        first, second = grow(old, split, path[:-1], old_root, whole)
        return first, sha256(b"\x01", second, path[-1])
    first, second = grow(old - split, new - split, path[:-1], old_root, False)
    return sha256(b"\x01", path[-1], first), sha256(b"\x01", path[-1], second)


def check(proof, keys):
    if proof["format"] == "pgaudit_wf.consistency/1":
        origin, old_size, old_root = open_checkpoint(proof["old"], keys)
        new_origin, size, root = open_checkpoint(proof["new"], keys)
        path = hashes(proof["consistency"])
        expect(origin == new_origin and 0 < old_size <= size, "these are not of one growing log")
        expect(old_size < size or not path, "the consistency proof is too long")
        roots = grow(old_size, size, path, old_root)
        expect(roots == (old_root, root), "the newer checkpoint does not continue the older one")
        return f"{origin}: the log of {size} leaves continues that of {old_size}"
    expect(proof["format"] == "pgaudit_wf.proof/1", "the proof's format is unknown")
    origin, size, root = open_checkpoint(proof["checkpoint"], keys)
    leaf = proof["leaf"]
    expect(leaf["format"].startswith("pgaudit_wf."), "the leaf's format is unknown")
    path = hashes(proof["inclusion"])
    expect(type(proof["index"]) is int, "the leaf's number is none")
    hashed = sha256(b"\x00", canonical(leaf).encode())
    expect(climb(proof["index"], size, hashed, path) == root, "it is not in the log, or altered")
    lines = [f"{origin}: leaf {proof['index']} of {size}"]
    lines += [f"  {name}: {value}" for name, value in leaf.items() if isinstance(value, str)]
    for name, part in proof["opened"].items():
        field, _, number = name.partition("/")
        committed = leaf[field][int(number)] if number else leaf[field]
        made = sha256(bytes.fromhex(part["key"]), part["text"].encode()).hex()
        expect(made == committed, f"{name} is not what was sealed")
        lines.append(f"  {name} = {part['text']}")
    return "\n".join(map(printable, lines))


if __name__ == "__main__":
    if len(sys.argv) < 3 or {"-h", "--help"} & set(sys.argv):
        print(__doc__.strip())
        sys.exit(0 if {"-h", "--help"} & set(sys.argv) else 2)
    try:
        with open(sys.argv[1], encoding="utf-8") as proof_file:
            print(check(json.load(proof_file), [read_key(text) for text in sys.argv[2:]]))
    except (NoProof, OSError) as error:
        sys.exit(f"NOT PROVED: {printable(str(error))}")
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        sys.exit(f"NOT PROVED: it is malformed: {type(error).__name__}: {printable(str(error))}")
