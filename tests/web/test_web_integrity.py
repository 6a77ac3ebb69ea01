"""The page Integrity, proofs and tiles: what anybody can check with the public key alone."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from pgaudit_wf import audit_trail
from pgaudit_wf.integrity.merkle import tree_root
from pgaudit_wf.integrity.note import SigningKey, open_checkpoint
from pgaudit_wf.integrity.proof import check
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
