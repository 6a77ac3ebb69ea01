"""`pgaudit-wf serve`, as a person runs it: an address with a secret, and nothing without it."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.command import command
from support.server import Conn
from support.web_world import FLOW, World

PROGRAM = Path(sys.executable).with_name("pgaudit-wf")


def get(address: str, path: str, cookie: str = "") -> tuple[int, str, str]:
    """Status, Set-Cookie and body of an answer."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
    try:
        connection.request("GET", path, headers={"Cookie": cookie} if cookie else {})
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Set-Cookie", ""), answer.read().decode()
    finally:
        connection.close()


def test_the_address_that_is_printed_lets_in_and_no_other(world: World) -> None:
    command: list[str | Path] = [
        PROGRAM, "serve", "--org", "o_acme", "--as", "u_ana", "-d", world.reader_dsn,
        "--write", world.writer_dsn, "--port", "0",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stderr
            found = re.search(r"http://127\.0\.0\.1:\d+/\?enter=\S+", running.stderr.readline())
            assert found
            address = found[0]
            query = urlsplit(address).query
            assert get(address, "/activity")[0] == 401
            assert get(address, "/?enter=guess")[0] == 401
            status, cookie, _ = get(address, f"/?{query}")
            assert (status, "HttpOnly" in cookie, "SameSite=lax" in cookie) == (303, True, True)
            status, _, page = get(address, "/activity", cookie.partition(";")[0])
            assert (status, "Ana Ferreira" in page) == (200, True)
            status, _, page = get(address, f"/workflows/{FLOW}", cookie.partition(";")[0])
            assert (status, "Restore version 1" in page) == (200, True)
            assert get(address, "/healthz")[2] == '{"status":"ok"}'
        finally:
            running.send_signal(signal.SIGINT)
            assert running.wait(20) == 130


@pytest.mark.parametrize("actor", ["u_bo", "u_chidi", "u_nobody"])
def test_only_an_owner_or_admin_is_served_pages(world: World, actor: str) -> None:
    done = subprocess.run(
        [PROGRAM, "serve", "--org", "o_acme", "--as", actor, "-d", world.reader_dsn, "--port", "0"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"{actor} is neither an owner nor an admin of o_acme" in done.stderr


@pytest.mark.slow
def test_the_demo_ends_with_its_day_as_pages() -> None:
    with subprocess.Popen(
        [PROGRAM, "demo", "--keep"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr
        try:
            address = next(
                found[0] for line in running.stderr if (found := re.search(r"http://\S+", line))
            )
            cookie = get(address, f"/?{urlsplit(address).query}")[1].partition(";")[0]
            page = get(address, "/activity", cookie)[2]
            assert "<b>Bo Lindqvist</b> revoked an org API key" in page
            assert "2001:db8:7::b0, SE" in page
            assert "Chidi" not in page
            assert "Verify now" in get(address, "/integrity", cookie)[2]
            assert "version 8" in get(address, "/runs", cookie)[2]
        finally:
            running.send_signal(signal.SIGINT)
            assert running.wait(20) == 0


def test_what_would_fail_later_is_said_at_the_start(
    world: World, dsn: str, conn: Conn, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        done = command(capsys, "serve", "--org", "o_acme", "--as", "u_ana", *arguments)
        assert done.code == 1
        return done.err

    said = refused("-d", world.writer_dsn)
    assert "may not read the trail: it is no member of pgaudit_wf_reader — as a super" in said
    said = refused("-d", world.reader_dsn, "--write", world.reader_dsn)
    assert "cannot restore versions: it may not update public.workflow: grant select, up" in said
    said = refused("-d", world.reader_dsn, "--owner", world.writer_dsn)
    assert "neither pgaudit_wf_owner, to whom the schema belongs, nor a member" in said
    said = refused("-d", dsn)
    assert "the view pgaudit_wf.org_member is still empty" in said
    assert "use_directory('org_member'" in said
    conn.execute("create table belongs (org_id int, user_id uuid, role varchar)")
    conn.execute("select pgaudit_wf.use_directory('org_member', 'public.belongs')")
    assert "org_member says who is" in refused("-d", dsn)
    conn.execute(
        "create role bystander; alter table belongs owner to bystander;"
        "alter table belongs enable row level security"
    )
    said = refused("-d", dsn)
    assert "the directory of users and members cannot be read" in said
    conn.execute("drop table belongs cascade; drop role bystander")
