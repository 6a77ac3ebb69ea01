"""The page Integrity, proofs and tiles: what anybody can check with the public key alone."""

from __future__ import annotations

import base64
import re
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from starlette.testclient import TestClient

from pgaudit_wf import audit_trail
from pgaudit_wf.integrity.check import check_bundle, read_keys
from pgaudit_wf.integrity.merkle import tree_root
from pgaudit_wf.integrity.note import (
    WITNESS,
    Note,
    SigningKey,
    VerifierKey,
    open_checkpoint,
)
from pgaudit_wf.integrity.proof import add_cosignatures, check, newest_checkpoint
from pgaudit_wf.integrity.seal import Sealer
from pgaudit_wf.integrity.tiles import nodes_from_tiles, tile_path
from support.web_world import World, mounted_app

KEY = SigningKey("example.com/audit", bytes(range(32)))
ANA = {"x-test-user": "ana"}


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    with TestClient(
        mounted_app(world, verify_keys=(KEY.verifier,)),
        base_url="http://testserver/audit",
        headers=ANA,
    ) as made:
        yield made


def verify_now(client: TestClient) -> str:
    page = client.get("/integrity").text
    token = re.search(r'name="csrf_token" value="([^"]+)"', page)
    assert token
    return client.post("/integrity", data={"csrf_token": token[1]}).text


def test_before_and_after_sealing(client: TestClient, world: World) -> None:
    page = client.get("/integrity").text
    assert "none yet" in page
    assert client.get("/checkpoint").status_code == 404
    Sealer(KEY).step(world.conn)
    world.rename("After the seal")
    page = client.get("/integrity").text
    assert re.search(r"<dd>\d+ leaves", page)
    assert re.search(r"<dd>1 event</dd>", page)
    assert "Everything matches what was sealed." in verify_now(client)
    assert client.post("/integrity", data={"csrf_token": "x" * 43}).status_code == 403


def test_tampering_shows_without_a_word_of_other_organizations(
    client: TestClient, world: World
) -> None:
    Sealer(KEY).step(world.conn)
    world.conn.execute(
        "set session_replication_role = replica;"
        "alter table pgaudit_wf.security_audit_log disable trigger all;"
        "update pgaudit_wf.security_audit_log set actor_id = 'u_nobody'"
        " where org_id = 'o_globex' and action = 'workflow.created';"
        "reset session_replication_role"
    )
    page = verify_now(client)
    assert "1 problem found." in page
    assert "1 altered" in page
    assert "globex" not in page


def test_a_proof_holds_with_the_public_key_alone(client: TestClient, world: World) -> None:
    entry = client.get("/api/security/audit").json()["entries"][0]
    path = f"/api/security/audit/events/{entry['cursor']}/proof"
    assert client.get(path).json()["code"] == "not_sealed"
    Sealer(KEY).step(world.conn)
    proof = client.get(path).json()
    checked = check(proof, [KEY.verifier])
    assert checked.leaf is not None
    assert checked.leaf["action"] == entry["action"]
    foreign = audit_trail(world.conn, org_id="o_globex").entries[0].cursor
    assert client.get(f"/api/security/audit/events/{foreign}/proof").status_code == 404


def test_checkpoint_and_tiles_are_a_tree(client: TestClient, world: World) -> None:
    Sealer(KEY).step(world.conn)
    checkpoint = open_checkpoint(client.get("/checkpoint").text, [KEY.verifier])

    def read(level: int, number: int) -> bytes:
        width = (checkpoint.size >> 8 * level) - 256 * number
        answer = client.get("/" + tile_path(level, number, min(width, 256)))
        assert answer.headers["content-type"] == "application/octet-stream"
        return answer.content

    assert tree_root(checkpoint.size, nodes_from_tiles(read)) == checkpoint.root
    for path in ("/tile/0/001", "/tile/0/000.p/0", "/tile/0/000.p/256", "/tile/9/x000", "/tile/a"):
        assert client.get(path).status_code == 404


def test_without_the_sealed_log_nothing_is_pretended(world: World) -> None:
    with TestClient(mounted_app(world), base_url="http://testserver/audit", headers=ANA) as client:
        assert "without a connection to the sealed log" in client.get("/integrity").text
        assert client.get("/checkpoint").status_code == 501


def bundled(client: TestClient, tmp_path: Path, query: str = "") -> dict[str, Any]:
    answer = client.get(f"/integrity/bundle{query}")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    path = tmp_path / "period.zip"
    path.write_bytes(answer.content)
    return check_bundle(str(path), read_keys(str(KEY.verifier)))


def test_an_owner_downloads_all_of_one_organization(
    client: TestClient, world: World, tmp_path: Path
) -> None:
    Sealer(KEY).run(world.conn)
    assert "Download bundle" in client.get("/integrity").text
    stop = threading.Event()

    def keep_sealing() -> None:
        with psycopg.connect(world.conn.info.dsn, autocommit=True) as own:
            while not stop.wait(0.1):
                Sealer(KEY).run(own)

    sealer = threading.Thread(target=keep_sealing)
    sealer.start()
    try:
        report = bundled(client, tmp_path)
        size = report["size"]
        assert (report["exit_code"], report["org_id"], report["numbers"][0]) == (0, "o_acme", 1)
        data = zipfile.ZipFile(tmp_path / "period.zip").read("leaves.ndjson")
        assert b"globex" not in data
        report = bundled(client, tmp_path, f"?since=2020-01-01&until=&old_size={size}")
        assert (report["exit_code"], report["old_size"]) == (0, size)
    finally:
        stop.set()
        sealer.join()
    actions = [entry.action for entry in audit_trail(world.conn, org_id="o_acme").entries[:2]]
    assert actions == ["audit.exported", "audit.export_started"]


def test_a_bundle_that_cannot_be_made_is_refused(
    client: TestClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgaudit_wf.web.sealed_log._SEAL_WAIT", 0)
    Sealer(KEY).run(world.conn)
    assert client.get("/integrity/bundle?old_size=99999").status_code == 409
    assert client.get("/integrity/bundle?since=yesterday").status_code == 422
    for user, status in (("bo", 403), ("liar", 403), ("nobody", 401)):
        assert client.get("/integrity/bundle", headers={"x-test-user": user}).status_code == status
    monkeypatch.setattr("pgaudit_wf.web.sealed_log._BUNDLE_LEAVES", 1)
    assert "more than the 1 that fit" in client.get("/integrity/bundle").text


def test_verifying_tells_who_vouches(world: World) -> None:
    witness = SigningKey("witness.example.com/w1", bytes(range(32, 64)))
    public = VerifierKey(witness.name, WITNESS, witness.verifier.public_key)
    Sealer(KEY).step(world.conn)
    keys = (KEY.verifier, public)
    app = mounted_app(world, verify_keys=keys)
    with TestClient(app, base_url="http://testserver/audit", headers=ANA) as client:
        assert "No outside party vouches" in verify_now(client)
        note = newest_checkpoint(world.conn)
        message = f"cosignature/v1\ntime 1770000000\n{Note.parse(note).text}"
        value = (1770000000).to_bytes(8, "big") + witness.sign(message.encode())
        line = f"\u2014 {witness.name} {base64.b64encode(public.id + value).decode()}\n"
        add_cosignatures(world.conn, note + line, [public])
        size = open_checkpoint(note, keys).size
        assert f"The witness witness.example.com/w1 saw {size} leaves" in verify_now(client)
