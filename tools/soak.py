"""Load a server for minutes while everything around it fails; then count (`make soak`).

    python tools/soak.py [--minutes 4] [--seed N]

Writers change rows and workflows, two followers copy what the log says, a sealer seals, an alert
worker delivers, and somebody reads the trail. Meanwhile the server is killed five times, the
followers ten times, the disk fills up (where a file system of its own may be mounted), and at last
the server is lost for good and a synchronous standby takes over. Then: each change that a writer
saw committed has exactly one event, no event is without its change, versions have no gap, each
follower has each event once, every event that asks for an alert has one, and the tree verifies.

Writers, followers and jobs are processes of their own. What a writer was told is in a file of its
own, outside the database. Exit code 1 if anything is lost or doubled.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg

from pgaudit_wf import audit_trail, request_context
from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.integrity.note import SigningKey
from pgaudit_wf.integrity.verify import verify
from pgaudit_wf.schema.migrate import migrate

WRITERS, FOLLOWERS = 8, 2
KILLS, FOLLOWER_KILLS = 5, 10
_DISK = 512 << 20
_PREPARE = """
create table thing (id text primary key, org_id text, n integer not null, doc jsonb);
create table flow (id text primary key, nodes jsonb, edges jsonb);
create table recorded (follower integer, event_id bigint);
select pgaudit_wf.attach('thing');
select pgaudit_wf.attach_workflow('flow');
insert into pgaudit_wf.alert_rule (action_pattern, channel, audience, address)
values ('flow.*', 'log', 'address', 'soak');
-- An alert that a killed worker was sending is taken up after the lease.
update pgaudit_wf.alert_policy set lease = '1 minute';
"""
_ERRORS = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.InternalError)


def _until(deadline: float, dsn: Path, work: Callable[[psycopg.Connection], None]) -> None:
    """Repeat some work on connections to wherever the server is now."""
    while time.time() < deadline:
        try:
            with psycopg.connect(dsn.read_text(), autocommit=True, connect_timeout=5) as conn:
                while time.time() < deadline:
                    work(conn)
        except _ERRORS:
            time.sleep(0.2)


def write(number: int, dsn: Path, told: Path, deadline: float, seed: int) -> None:
    """Be a writer: note each change before it is tried, and again once it is committed."""
    chance = random.Random(seed * 1000 + number)
    count = 0
    with told.open("a", buffering=1) as notes:

        def change(conn: psycopg.Connection) -> None:
            nonlocal count
            count += 1
            tag = f"w{number}-{count}"
            notes.write(f"tried {tag}\n")
            # Else what failed for want of a server would wait in the user's spool.
            with request_context(
                conn, actor_id=f"u{number}", org_id="o", correlation_id=tag, record_failure=False
            ):
                conn.execute("insert into thing values (%s, 'o', 0, '{\"a\": 1}')", [tag])
                if chance.random() < 0.5:
                    conn.execute(
                        "update thing set n = n + 1, doc = jsonb_set(doc, '{a}', to_jsonb(n + 2))"
                        " where id = %s",
                        [tag],
                    )
                if chance.random() < 0.1:
                    conn.execute(
                        "insert into flow values (%s, jsonb_build_array(jsonb_build_object('id',"
                        " 'n', 'data', jsonb_build_object('v', %s::int))), '[]')"
                        " on conflict (id) do update set nodes = excluded.nodes",
                        [f"f{number}", count],
                    )
            notes.write(f"done {tag}\n")

        _until(deadline, dsn, change)


def follow(number: int, dsn: Path, deadline: float) -> None:
    """Be a follower: write down what came and one's own place in one transaction."""
    name = f"soak{number}"

    def copy(conn: psycopg.Connection) -> None:
        with conn.transaction():
            rows = conn.execute(
                "select cursor, (event).id from pgaudit_wf.read_as(%s, 200)", [name]
            ).fetchall()
            for _, event_id in rows:
                conn.execute("insert into recorded values (%s, %s)", [number, event_id])
            if rows:
                conn.execute(
                    "select pgaudit_wf.advance_reader(%s, %s, %s)", [name, rows[-1][0], len(rows)]
                )
        if not rows:
            time.sleep(0.1)

    _until(deadline, dsn, copy)


def look(dsn: Path, deadline: float) -> None:
    """Be somebody who reads the trail."""

    def read(conn: psycopg.Connection) -> None:
        audit_trail(conn, org_id="o")
        time.sleep(0.1)

    _until(deadline, dsn, read)


def job(dsn: Path, *words: str) -> subprocess.Popen[bytes]:
    """Start a job of the command line; its connection string is the server's of now."""
    program = "import sys; from pgaudit_wf.cli import app; app(sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", program, *words, "-d", dsn.read_text()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@contextlib.contextmanager
def disk(scratch: Path) -> Iterator[Path | None]:
    """A small file system of its own, where we may mount one."""
    mounted = scratch / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK},mode=755", "soak", str(mounted)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        yield None
        return
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)


def fill_up(mounted: Path, seconds: float) -> None:
    """Leave no room for a while."""
    filler = mounted / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * (1 << 20)):
            pass
    time.sleep(seconds)
    filler.unlink()


def standby_of(primary: DevServer, standby: DevServer) -> None:
    """Make a running server a synchronous standby of another."""
    standby.follow(primary)
    with psycopg.connect(primary.dsn(), autocommit=True) as conn:
        conn.execute("alter system set synchronous_standby_names = '*'")
        conn.execute("select pg_reload_conf()")


def count(conn: psycopg.Connection, told: list[Path], key: SigningKey) -> dict[str, object]:
    """Compare what the writers were told with what the database says."""
    tried, done = set(), set()
    for path in told:
        for line in path.read_text().splitlines():
            word, _, tag = line.partition(" ")
            (done if word == "done" else tried).add(tag)
    there = {row[0] for row in conn.execute("select id from thing")}
    events = Counter(
        row[0]
        for row in conn.execute(
            "select resource_id from pgaudit_wf.security_audit_log where action = 'thing.created'"
        )
    )
    updated = dict(conn.execute("select id, n from thing where n > 0").fetchall())
    updates = Counter(
        row[0]
        for row in conn.execute(
            "select resource_id from pgaudit_wf.security_audit_log where action = 'thing.updated'"
        )
    )
    ids = [row[0] for row in conn.execute("select id from pgaudit_wf.security_audit_log")]
    followed = [
        Counter(r[0] for r in conn.execute(
            "select event_id from recorded where follower = %s", [number]))
        for number in range(FOLLOWERS)
    ]  # fmt: skip
    gaps = conn.execute(
        "select count(*) from (select workflow_id, max(version) <> count(*) or min(version) <> 1"
        " from pgaudit_wf.workflow_history group by 1) as v (id, wrong) where wrong"
    ).fetchone()
    alerts = Counter(
        row[0] for row in conn.execute(
            "select event_id from pgaudit_wf.alert_delivery where state = 'sent'")
    )  # fmt: skip
    wanted = {
        row[0]
        for row in conn.execute(
            "select id from pgaudit_wf.security_audit_log where action ~ '^flow[.]'"
        )
    }
    report = verify(conn, [key.verifier])
    return {
        "changes tried": len(tried),
        "changes committed, as their writers were told": len(done),
        "committed, but the writer was not told": len(there - done),
        "LOST: told to be committed, and not there": len(done - there),
        "LOST: rows without their event": len(there - events.keys()),
        "DOUBLED: rows with several": sum(n > 1 for n in events.values()),
        "FORGED: events of rows that are not there": len(events.keys() - there),
        "WRONG: rows whose updates and their events differ": sum(
            updates[tag] != n for tag, n in updated.items()
        )
        + len(updates.keys() - updated.keys()),
        "events": len(ids),
        "versions": conn.execute("select count(*) from pgaudit_wf.workflow_history").fetchone()[0],  # type: ignore[index]
        "WRONG: workflows whose versions have a gap": gaps and gaps[0],
        "LOST: events that a follower lacks": sum(len(set(ids) - seen.keys()) for seen in followed),
        "DOUBLED: events that a follower has twice": sum(
            n > 1 for seen in followed for n in seen.values()
        ),
        "alerts sent": sum(alerts.values()),
        "LOST: alerts": len(wanted - alerts.keys()),
        "DOUBLED: alerts": sum(n > 1 for n in alerts.values()),
        "leaves sealed": report.leaves,
        "WRONG: problems that verify finds": len(report.problems),
    }


class Soak:
    """One run."""

    def __init__(self, minutes: float, seed: int, scratch: Path) -> None:
        self.seconds = minutes * 60
        self.chance = random.Random(seed)
        self.seed = seed
        self.scratch = scratch
        self.dsn = scratch / "dsn"
        self.told = [scratch / f"writer{number}" for number in range(WRITERS)]
        self.key = SigningKey.generate("example.com/soak")
        self.followers: list[multiprocessing.Process] = []
        self.jobs: list[subprocess.Popen[bytes]] = []
        self.figures: dict[str, object] = {}

    def say(self, text: str) -> None:
        """Print what happens."""
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    def point_at(self, server: DevServer) -> None:
        """Tell everybody where the server is."""
        written = self.scratch / "dsn.new"
        written.write_text(server.dsn())
        written.replace(self.dsn)

    def start_jobs(self) -> None:
        """Start the sealer and the alert worker, which go on over restarts of the server."""
        key = self.scratch / "seal.key"
        if not key.exists():
            key.write_text(str(self.key))
            key.chmod(0o600)
        self.jobs = [
            job(self.dsn, "seal", "--key", str(key), "--watch", "1"),
            job(self.dsn, "alerts", "run", "--channel", "log", "--interval", "0.5"),
        ]

    def end_jobs(self) -> None:
        """End them as an operator does."""
        for process in self.jobs:
            process.send_signal(signal.SIGTERM)
        for process in self.jobs:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                # It has sent an alert, and waits for a server to tell.
                process.kill()
                process.wait()

    def start_follower(self, number: int) -> multiprocessing.Process:
        """Start a follower, which a kill may find anywhere."""
        process = multiprocessing.Process(target=follow, args=(number, self.dsn, self.end))
        process.start()
        return process

    def trouble(self, server: DevServer) -> None:
        """Kill the server and the followers, so many times each, over most of the time."""
        kinds = ["server"] * KILLS + ["follower"] * FOLLOWER_KILLS
        self.chance.shuffle(kinds)
        pause = 0.6 * self.seconds / len(kinds)
        for kind in kinds:
            time.sleep(pause * self.chance.uniform(0.5, 1.5))
            if kind == "server":
                server.kill()
                started = time.monotonic()
                server.start()
                self.say(f"server killed, back after {time.monotonic() - started:.1f} s")
            else:
                number = self.chance.randrange(FOLLOWERS)
                self.followers[number].kill()
                self.followers[number].join()
                self.followers[number] = self.start_follower(number)

    def fail_over(self, primary: DevServer, standby: DevServer) -> None:
        """Lose the server for good; the standby takes over."""
        time.sleep(0.05 * self.seconds)
        primary.kill()
        with psycopg.connect(standby.dsn(), autocommit=True) as conn:
            conn.execute("select pg_promote()")
        self.end_jobs()
        self.point_at(standby)
        self.start_jobs()
        self.say("server lost; the standby has taken over")

    def drain(self) -> None:
        """Let everybody come to the end."""
        with psycopg.connect(self.dsn.read_text(), autocommit=True) as conn:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                waiting = conn.execute(
                    "select (select count(*) from pgaudit_wf.security_audit_log)"
                    " - least((select count(*) from recorded where follower = 0),"
                    " (select count(*) from recorded where follower = 1)),"
                    " (select count(*) from pgaudit_wf.alert_delivery where state <> 'sent'),"
                    " (select count(*) from pgaudit_wf.security_audit_log"
                    " where action ~ '^flow[.]') - (select count(*) from pgaudit_wf.alert_delivery)"
                ).fetchone()
                if waiting == (0, 0, 0):
                    break
                time.sleep(1)

    def run(self) -> bool:
        """Run it all; return whether nothing is lost, doubled or wrong."""
        with disk(self.scratch) as mounted:
            where = str(mounted or self.scratch)
            self.scratch.chmod(0o755)
            settings: dict[str, str | int | float | bool] = {
                "max_connections": 60, "max_wal_size": "64MB", "wal_keep_size": "64MB",
            }  # fmt: skip
            primary = DevServer(settings=settings, durable=True, directory=where)
            standby = DevServer(settings=settings, durable=True, directory=str(self.scratch))
            with primary, standby:
                migrate(primary.dsn())
                with psycopg.connect(primary.dsn(), autocommit=True) as conn:
                    conn.execute(_PREPARE)
                self.point_at(primary)
                writing = time.time() + self.seconds
                self.end = writing + 180
                processes = [
                    multiprocessing.Process(
                        target=write, args=(n, self.dsn, self.told[n], writing, self.seed)
                    )
                    for n in range(WRITERS)
                ]
                processes.append(multiprocessing.Process(target=look, args=(self.dsn, writing)))
                for process in processes:
                    process.start()
                self.followers = [self.start_follower(number) for number in range(FOLLOWERS)]
                self.start_jobs()
                self.say(f"{WRITERS} writers, {FOLLOWERS} followers, seed {self.seed}")
                self.trouble(primary)
                if mounted is None:
                    self.say("full disk: not tried, as no file system may be mounted here")
                else:
                    fill_up(mounted, 0.05 * self.seconds)
                    # It may have gone down by itself, for want of room for the WAL.
                    primary.restart()
                    self.say("disk was full, and has room again")
                standby_of(primary, standby)
                self.fail_over(primary, standby)
                for process in processes:
                    process.join()
                self.drain()
                for process in self.followers:
                    process.kill()
                    process.join()
                self.end_jobs()
                with psycopg.connect(standby.dsn(), autocommit=True) as conn:
                    self.figures = count(conn, self.told, self.key)
        print(json.dumps(self.figures, indent=1))
        return not any(
            number for name, number in self.figures.items() if name.partition(":")[0].isupper()
        )


def main() -> int:
    """Run the tool; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=4.0, help="how long writers write")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pgaudit-wf-soak-") as scratch:
        os.environ.pop("PGAUDIT_WF_DATABASE", None)
        return 0 if Soak(options.minutes, options.seed, Path(scratch)).run() else 1


if __name__ == "__main__":
    sys.exit(main())
