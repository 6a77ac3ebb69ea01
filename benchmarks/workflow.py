"""Saves of workflows: no versions at all, ours, and the same in application code.

One client in Python with prepared statements, which is what would save a workflow. Each round
saves the same graph by all variants, one right after the other, in an order that changes; all
numbers are medians over rounds, of times and of differences and ratios within a round.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from benchmarks import application
from benchmarks.application import Graph
from benchmarks.database import ROOT
from benchmarks.pgbench import go_first
from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.schema.migrate import migrate

NAME = "workflow"
DATABASE = "bench_workflow"
HISTORIES = ROOT.parent / "shared" / "data" / "workflow-histories"
DELAY = 500
"""Microseconds of added round-trip time."""

Conn = psycopg.Connection[TupleRow]
Save = Callable[[Conn, str, Graph], None]


@dataclass(frozen=True)
class Case:
    """Graphs to save one after another, and what is aimed at."""

    title: str
    graphs: list[Graph]
    rounds: int
    most_added: float | None = None
    """Milliseconds that we may add on a local socket."""


@dataclass(frozen=True)
class Row:
    """What one case took, in milliseconds a save."""

    title: str
    delay: int
    none: float
    ours: float
    app: float
    ours_added: float
    app_added: float
    ratio: float
    """How many times as long application code takes as we do."""
    most_added: float | None


def node(number: int) -> dict[str, Any]:
    """Make a node as an editor saves it: some 600 bytes, a third of them canvas."""
    return {
        "id": f"n{number}",
        "type": "action",
        "position": {"x": 120 * number, "y": 80},
        "measured": {"width": 240, "height": 80},
        "selected": False,
        "dragging": False,
        "data": {
            "label": f"Step {number}",
            "type": "action",
            "description": "Calls the endpoint and keeps the answer",
            "status": "idle",
            "enabled": True,
            "config": {
                "actionType": "HTTP Request",
                "endpoint": f"https://api.example.com/v1/items/{number}",
                "httpMethod": "POST",
                "httpHeaders": '{"content-type": "application/json"}',
                "httpBody": '{"key": "{{@n0:Trigger.id}}"}',
                "retries": 3,
            },
        },
    }


def graph(size: int) -> Graph:
    """Make a chain of nodes."""
    edges = [
        {"id": f"e{n}", "source": f"n{n}", "target": f"n{n + 1}", "style": {"stroke": "#999"}}
        for n in range(size - 1)
    ]
    return [node(number) for number in range(size)], edges


def edited(size: int, count: int, cosmetic: bool) -> list[Graph]:
    """Return copies that differ in one field of one node."""
    graphs = []
    for number in range(count):
        nodes, edges = copy.deepcopy(graph(size))
        if cosmetic:
            nodes[size // 2]["position"]["x"] = -number - 1
        else:
            nodes[size // 2]["data"]["config"]["endpoint"] = f"https://api.example.com/{number}"
        graphs.append((nodes, edges))
    return graphs


def cases() -> list[Case]:
    """Return what is measured; the real histories only where they are."""
    found = [
        Case("cosmetic edit, 20 nodes", edited(20, 40, True), 5, 0.15),
        Case("one-field edit, 20 nodes", edited(20, 40, False), 5, 0.8),
        Case("cosmetic edit, 200 nodes", edited(200, 20, True), 3),
        Case("one-field edit, 50 nodes", edited(50, 30, False), 3),
        Case("one-field edit, 100 nodes", edited(100, 20, False), 3),
        Case("one-field edit, 200 nodes", edited(200, 20, False), 3),
    ]
    for file in sorted(HISTORIES.glob("*.jsonl")):
        saves = [json.loads(line) for line in file.read_text().splitlines()]
        if len(saves) > 2:
            graphs = [(save["nodes"], save["edges"]) for save in saves]
            found.append(Case(f"history {file.stem.split('--')[1]}", graphs, 60 // len(graphs) + 1))
    return found


def _plain(table: str) -> Save:
    query = sql.SQL(
        "update {} set nodes = %s, edges = %s, updated_at = now() where id = %s"
    ).format(sql.Identifier(table))

    def save(conn: Conn, key: str, graph: Graph) -> None:
        with conn.transaction():
            conn.execute(query, [Jsonb(graph[0]), Jsonb(graph[1]), key])

    return save


VARIANTS: dict[str, tuple[str, Save]] = {
    "none": ("plain_workflow", _plain("plain_workflow")),
    "ours": ("workflow", _plain("workflow")),
    "app": ("app_workflow", application.save),
}


def _create(server: DevServer) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"drop database if exists {DATABASE}")
        admin.execute(f"create database {DATABASE}")
    migrate(server.dsn(DATABASE), with_app_schema=True)
    with psycopg.connect(server.dsn(DATABASE)) as conn:
        conn.execute("insert into organization (id, name) values ('o_1', 'One')")
        conn.execute("create table plain_workflow (like public.workflow including all)")
        conn.execute(application.TABLES.encode())


@contextmanager
def _delayed(server: DevServer) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        port = server.port
        target = f"{server.socket_dir}/.s.PGSQL.{port}"
        listen = f"{folder}/.s.PGSQL.{port}"
        proxy = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.delay", listen, target, str(DELAY)], cwd=ROOT
        )
        try:
            go_first(proxy.pid)
            while not Path(listen).exists():
                time.sleep(0.01)
            yield f"host={folder} port={port} user=postgres dbname={DATABASE}"
        finally:
            proxy.terminate()
            proxy.wait()


def _measure(conn: Conn, case: Case) -> dict[str, list[float]]:
    key = ""
    for table, _ in VARIANTS.values():
        # A workflow of its own for each case, the same in all variants.
        query = sql.SQL(
            "insert into {} (id, org_id, name, nodes, edges) "
            "values (coalesce(nullif(%s, ''), gen_random_uuid()::text)::uuid, 'o_1', 'W', %s, %s) "
            "returning id::text"
        ).format(sql.Identifier(table))
        first = case.graphs[-1]
        row = conn.execute(query, [key, Jsonb(first[0]), Jsonb(first[1])]).fetchone()
        key = row[0] if row else ""
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    order = list(VARIANTS.items())
    for round_number in range(-2, case.rounds):
        if round_number == -1:
            # Not before there is something to analyze, or queries would be planned for one row.
            conn.execute("vacuum (analyze)")
        for saved in case.graphs:
            order = [*order[1:], order[0]]
            for name, (_, save) in order:
                started = time.perf_counter()
                save(conn, key, saved)
                if round_number >= 0:
                    times[name].append(1000 * (time.perf_counter() - started))
    _check(conn, key)
    return times


def _check(conn: Conn, key: str) -> None:
    query = (
        "select (select array_agg(content_hash order by version) from pgaudit_wf.workflow_history "
        "where workflow_id = %(key)s and version > 1) is not distinct from "
        "(select array_agg(content_hash order by version) from app_history"
        " where workflow_id = %(key)s)"
    )  # fmt: skip
    if conn.execute(query, {"key": key}).fetchone() != (True,):
        raise RuntimeError("ours and the application recorded different versions")


def run(server: DevServer) -> list[Row]:
    """Measure all cases, on a local socket and with a longer way."""
    _create(server)
    go_first(0)
    rows = []
    with _delayed(server) as far:
        for delay, dsn in ((0, server.dsn(DATABASE)), (DELAY, far)):
            with psycopg.connect(dsn, autocommit=True, prepare_threshold=1) as conn:
                for case in cases():
                    times = _measure(conn, case)
                    none, ours, app = times["none"], times["ours"], times["app"]
                    rows.append(
                        Row(
                            case.title, delay, median(none), median(ours), median(app),
                            median(a - b for a, b in zip(ours, none, strict=True)),
                            median(a - b for a, b in zip(app, none, strict=True)),
                            median(a / b for a, b in zip(app, ours, strict=True)),
                            case.most_added if delay == 0 else None,
                        )
                    )  # fmt: skip
    return rows


def markdown(rows: list[Row]) -> str:
    """Return the table, with the aims where there are any."""
    lines = [
        "### workflow: one save with its version and event, against application code\n",
        "| save | added round trip | none, ms | ours, ms | app, ms | ours adds | app adds "
        "| app / ours | aim |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]  # fmt: skip
    for row in rows:
        met = row.ratio > 1 and (row.most_added is None or row.ours_added < row.most_added)
        aim = "ahead" if row.most_added is None else f"ahead, adds < {row.most_added} ms"
        lines.append(
            f"| {row.title} | {row.delay / 1000} ms "
            f"| {row.none:.2f} | {row.ours:.2f} | {row.app:.2f} "
            f"| {row.ours_added:.3f} | {row.app_added:.3f} | {row.ratio:.2f} "
            f"| {aim}: {'met' if met else '**missed**'} |"
        )
    return "\n".join(lines) + "\n"
