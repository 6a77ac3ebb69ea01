"""Check what `pgaudit-wf bundle` gave to an organization's auditor, without pgaudit_wf.

    python check.py BUNDLE.zip --key KEY [--key KEY ...] [--checkpoint FILE]

KEY is a public key of the log, or of a witness: a line of text, or a file of such lines. FILE is
the checkpoint that you kept from last time. Get the key, and this program, from somebody else than
whoever made the bundle. Needs Python 3.11 and the package `cryptography`. Exit code 0: complete and
unaltered; 1: it is not; 2: wrong usage; 4: nothing is wrong, but not everything is shown.
Of 250 lines, so that you can read it before you trust it. Merkle proofs are those of RFC 6962.
"""
import argparse
import base64
import csv
import hashlib
import io
import json
import re
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MAX_LINE, MAX_BUNDLE, MAX_TOLD = 64 << 20, 1 << 30, 100
PARTS = {"pgaudit_wf.event/2": ("who", "diff", "metadata"),
         "pgaudit_wf.workflow_version/2": ("who", "change", "snapshot")}
MEMBER = re.compile(r'"(?:[^"\\]|\\.)*": ', re.DOTALL)
FORMULA = re.compile("[=+@\t\r\n\uff1d\uff0b\uff0d\uff20-]")  # to a spreadsheet: gets a quote
UNSAFE = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
Json = dict[str, Any]
Key = tuple[str, bytes, Ed25519PublicKey]

def expect(condition: object, complaint: str) -> None:
    if not condition:
        raise ValueError(complaint)
def sha256(*pieces: bytes) -> bytes:
    return hashlib.sha256(b"".join(pieces)).digest()
def hashes(items: list[str]) -> list[bytes]:
    found = [base64.b64decode(item, validate=True) for item in items]
    expect(all(len(item) == 32 for item in found), "has a hash that is not 32 bytes long")
    return found
def time_of(leaf: Json) -> datetime:
    return datetime.fromisoformat(leaf.get("occurred_at") or leaf["created_at"])
def read_keys(text: str) -> list[Key]:
    keys = []
    for line in (text if "+" in text else Path(text).read_text()).split():
        name, key_id, material = line.split("+", 2)
        raw = base64.b64decode(material, validate=True)
        expect(len(raw) == 33 and raw[0] in (1, 4), "not an Ed25519 key of a log or a witness")
        expect(sha256(name.encode(), b"\n", raw)[:4].hex() == key_id, "the key is mistyped")
        keys.append((name, raw, Ed25519PublicKey.from_public_bytes(raw[1:])))
    return keys
def open_checkpoint(note: str, keys: list[Key]) -> tuple[str, int, bytes, list[str]]:
    """Return origin, size and root of a checkpoint that the log signed, and its witnesses."""
    text, _, lines = note.rpartition("\n\n")
    signers: dict[int, list[str]] = {1: [], 4: []}
    for _, signer, blob in (line.split(" ") for line in lines.splitlines()):
        signature = base64.b64decode(blob, validate=True)
        for name, raw, key in keys:
            if (signer, signature[:4]) == (name, sha256(name.encode(), b"\n", raw)[:4]):
                seconds, at = int.from_bytes(signature[4:12], "big"), 12 if raw[0] == 4 else 4
                time = b"cosignature/v1\ntime %d\n" % seconds if raw[0] == 4 else b""
                key.verify(signature[at:], time + f"{text}\n".encode())
                signers[raw[0]].append(name)
    expect(signers[1], "the checkpoint is not signed by any of the given keys")
    origin, size, root = text.split("\n")[:3]
    return origin, int(size), hashes([root])[0], signers[4]
def climb(index: int, size: int, leaf: bytes, path: list[bytes]) -> bytes:
    expect(0 <= index < size and bool(path) == (size > 1), "has a proof of a wrong length")
    if size == 1:
        return leaf
    split = 1 << ((size - 1).bit_length() - 1)
    if index < split:
        return sha256(b"\x01", climb(index, split, leaf, path[:-1]), path[-1])
    return sha256(b"\x01", path[-1], climb(index - split, size - split, leaf, path[:-1]))
def grow(old: int, new: int, path: list[bytes], root: bytes, whole: bool) -> tuple[bytes, bytes]:
    if old >= new:
        expect(old == new and len(path) == (not whole), "the log is smaller than it was")
        return (root, root) if whole else (path[0], path[0])
    split = 1 << ((new - 1).bit_length() - 1)
    if old <= split:
        first, second = grow(old, split, path[:-1], root, whole)
        return first, sha256(b"\x01", second, path[-1])
    first, second = grow(old - split, new - split, path[:-1], root, False)
    return sha256(b"\x01", path[-1], first), sha256(b"\x01", path[-1], second)
def part_names(leaf: Json) -> list[str]:
    return [f"{name}/{number}" if type(leaf[name]) is list else name
            for name in PARTS[leaf["format"]] if leaf[name] is not None
            for number in range(len(leaf[name]) if type(leaf[name]) is list else 1)]

def readable(leaf: Json, texts: dict[str, str], columns: list[str]) -> list[bytes]:
    """Return the line of events.ndjson and the row of events.csv that a leaf and its parts make."""
    clear = {k: v for k, v in leaf.items() if v is not None and k not in PARTS[leaf["format"]]}
    parts = {k: f"{{{text}}}" if MEMBER.match(text) else text for k, text in texts.items()}
    shown = {k: json.dumps(v, ensure_ascii=False) for k, v in clear.items()} | parts
    line = f"{{{', '.join(f'{json.dumps(name)}: {text}' for name, text in shown.items())}}}\n"
    cells = [clear[k] if isinstance(clear.get(k), str) else shown.get(k) or
             ", ".join(v for part, v in parts.items() if part.split("/")[0] == k) for k in columns]
    csv.writer(row := io.StringIO()).writerow(f"'{t}" if FORMULA.match(t) else t for t in cells)
    line = UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", line)
    return [line.encode(), row.getvalue().encode()]

class Bundle:
    """A bundle that is being checked: its `problems`, and what it says is gone or withheld."""
    def __init__(self, archive: zipfile.ZipFile, keys: list[Key]) -> None:
        self.archive, infos = archive, archive.infolist()
        expect(len(infos) == len({info.filename for info in infos}), "it contains a file twice")
        most = max(MAX_BUNDLE, 100 * sum(info.compress_size for info in infos))
        expect(sum(info.file_size for info in infos) <= most, "it unpacks to too much")
        self.problems, self.off, self.note = list[str](), list[Json](), self.read("checkpoint")
        self.told, self.releases = dict[str, list[int]](), dict[str, int]()
        self.origin, self.size, self.root, self.seen = open_checkpoint(self.note, keys)
    def read(self, name: str) -> str:
        return self.archive.open(name).read(MAX_LINE).decode()
    def tell(self, what: str, number: int) -> None:
        self.told[what] = [*self.told.get(what, [])[:MAX_TOLD], number]
    def prove(self, entry: Json, org_id: str | None) -> tuple[bytes, dict[str, str]]:
        """Check a leaf and what is opened of it; return its hash and the texts."""
        leaf, texts = entry.get("leaf") or {}, dict[str, str]()
        form = json.dumps(leaf, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        hashed = sha256(b"\0", form.encode()) if leaf else bytes.fromhex(entry["hash"])
        root = climb(entry["index"], self.size, hashed, hashes(entry["inclusion"]))
        expect(root == self.root, "is not in the log, or was altered")
        expect(not leaf or leaf["org_id"] == org_id, "belongs to another organization")
        for name, part in entry.get("opened", {}).items():
            field, _, at = name.partition("/")
            made = sha256(bytes.fromhex(part["key"]), part["text"].encode()).hex()
            expect(made == (leaf[field][int(at)] if at else leaf[field]), f"has an altered {name}")
            texts[name] = part["text"]
        return hashed, texts
    def walk(self, name: str, org_id: str | None, follows: bool) -> Any:  # noqa: ANN401
        """Yield each entry of a chain with its number, leaf and texts; tell where it breaks."""
        number, index, previous = 0, -1, None
        with self.archive.open(name) as lines:
            while (line := lines.readline(MAX_LINE)) and len(self.problems) < MAX_TOLD:
                what = f"{name}: what comes after number {number}"
                try:
                    entry = json.loads(line)
                    leaf = entry.get("leaf")
                    now = int((leaf or entry)["org_number"])
                    what = f"{name}: number {now}"
                    hashed, texts = self.prove(entry, org_id)
                    gap = "is repeated or late, coming" if now <= number else "leaves others out,"
                    expect(not follows or now == number + 1, f"{gap} after number {number}")
                    continues = not (follows and leaf) or leaf["org_previous"] == previous
                    expect(continues and entry["index"] > index, f"does not continue {number}")
                except Exception as error:
                    self.problems.append(f"{what} {error}"[:300])
                    continue
                number, index, previous, follows = now, entry["index"], hashed.hex(), True
                yield now, entry, leaf, texts
    def configuration(self) -> Json:
        """Note when what was off, and what is gone by which event; return the last event."""
        off, leaf = dict[str, Json](), Json()
        for now, _, leaf, texts in self.walk("configuration.ndjson", None, True):
            if leaf is None:
                self.tell("archived configuration", now)
                continue
            expect(leaf["captured"] and leaf["action"][:6] == "audit.", "not the configuration")
            said, action, name = "\n".join(texts.values()), leaf["action"], leaf["resource_id"]
            size = re.search('^"tree_size": ([0-9]{1,18})$', said, re.MULTILINE)
            if size or action == "audit.history_pruned":
                self.releases[leaf["id"]] = int(size[1]) if size else 0
            is_on = action == "audit.recording_enabled" and '"value": []' in said
            if action in ("audit.detached", "audit.recording_disabled") and name not in off:
                off[name] = {"table": name, "from": leaf["occurred_at"], "until": None}
                self.off.append(off[name])
            elif is_on or action == "audit.attached":
                off.pop(name, {})["until"] = leaf["occurred_at"]
        return leaf
    def check(self, keys: list[Key], kept: str) -> Json:
        about, old, old_size = json.loads(self.read("bundle.json")), self.read("old-checkpoint"), 0
        if old:
            _, old_size, root, _ = open_checkpoint(old, keys)
            path = hashes(json.loads(self.read("consistency.json")))
            roots = grow(old_size, self.size, path, root, True)
            expect(roots == (root, self.root), "the log does not continue the old checkpoint")
        mine = open_checkpoint(kept or self.note, keys)[1:3]
        expect(mine[0] <= self.size, "it is stale: your checkpoint is of more leaves than its own")
        expect(mine in ((self.size, self.root), old and (old_size, root)), "yours is not in it")
        since, until = (about[k] and datetime.fromisoformat(about[k]) for k in ("since", "until"))
        newest = self.configuration()
        for line in io.StringIO(self.read("releases.ndjson")):
            self.prove(entry := json.loads(line), (leaf := entry["leaf"])["org_id"])
            expect(leaf["captured"] and leaf["action"] == "actor.pseudonymised", "not an erasure")
            self.releases[leaf["id"]] = 0
        files = [self.archive.open(name) for name in ("events.ndjson", "events.csv")]
        columns = files[1].readline(MAX_LINE).decode().strip().split(",")
        first, last, numbers = Json(), Json(), list[int]()
        for now, entry, leaf, texts in self.walk("leaves.ndjson", about["org_id"], False):
            expect(last is first or "bracket" not in last, "something follows the end")
            first, last = first or entry, entry
            if "bracket" in entry:
                continue
            numbers = [*numbers[:1], now]
            if leaf is None:
                known = self.releases.get(entry.get("archived"), 0) > entry["index"]
                self.tell("archived" if known else "withheld", now)
                continue
            for part in set(part_names(leaf)) - texts.keys():
                known = self.releases.get(entry.get("erased", {}).get(part)) == 0
                self.tell("erased in part" if known else "withheld", now)
            lines = readable(leaf, texts, columns)
            if files and [f.read(len(x)) for f, x in zip(files, lines, strict=True)] != lines:
                self.problems.append(f"events.ndjson or events.csv differs from number {now} on")
                files = []
        if any(file.read(1) for file in files):
            self.problems.append("events.ndjson or events.csv has more than was proved")
        begins = ("bracket" in first and (old or since) and not (old and first["index"] >= old_size)
                  and not (since and time_of(first["leaf"]) >= since))
        shown = {
            "what was before the first number": begins or
            str((first.get("leaf") or first).get("org_number")) == "1",
            "what came after the last": "bracket" in last and time_of(last["leaf"]) >= until,
            "the configuration until the end": newest and time_of(newest) >= until,
            "events sealed before they were numbered": not about["unnumbered"],
            "what was archived": "archived" not in " ".join(self.told),
            "what is withheld": "withheld" not in self.told,
        }
        return {**about, "origin": self.origin, "size": self.size, "old_size": old_size,
                "witnesses": self.seen, "numbers": [*numbers[:1], *numbers[-1:]],
                "gone": self.told, "off": self.off, "not_shown": [k for k in shown if not shown[k]]}

def check_bundle(path: str, keys: list[Key], kept: str = "") -> Json:
    """Return what a bundle shows, its problems, and the exit code."""
    report, problems = Json(), list[str]()
    try:
        with zipfile.ZipFile(path) as archive:
            bundle = Bundle(archive, keys)
            problems = bundle.problems
            report = bundle.check(keys, kept)
    except Exception as error:
        problems.append(f"not a bundle, or altered: {type(error).__name__}: {error}"[:300])
    report["exit_code"] = 1 if problems else 4 if report["not_shown"] else 0
    return {"problems": problems, **report}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--key", action="append", required=True)
    parser.add_argument("--checkpoint")
    given = parser.parse_args()
    try:
        found = [key for text in given.key for key in read_keys(text)]
        mine = Path(given.checkpoint).read_text() if given.checkpoint else ""
    except (OSError, ValueError) as wrong:
        parser.error(ascii(str(wrong)))
    print(json.dumps(answer := check_bundle(given.bundle, found, mine), indent=2))
    raise SystemExit(answer["exit_code"])
