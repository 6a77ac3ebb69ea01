"""What is measured: the transactions, and the variants of the tables they run against."""

from __future__ import annotations

from dataclasses import dataclass

CONTEXT = {
    "actor_id": "user_1",
    "actor_label": "Ada Example",
    "org_id": "org_1",
    "org_label": "Example Ltd",
    "auth_method": "session",
    "ip": "203.0.113.9",
    "country": "CH",
    "user_agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "correlation_id": "8c9d2f6e-6f57-4d7c-9a53-1f2f6d9d0b11",
}
"""The app.* settings of a request, less the prefix."""

BARE_ROW = {
    "occurred_at": "now",
    "tx_id": "1000",
    "org_id": "org_1",
    "action": "item.updated",
    "resource_type": "item",
    "resource_id": "1",
    "outcome": "succeeded",
    "diff": '[{"op": "replace", "path": "/name", "old": "item number 1", "value": "renamed 123"}]',
    "metadata": '{"label": "renamed 123"}',
    "db_user": "bench_app",
    "application_name": "pgbench",
}
"""What the bare trigger inserts each time, without context."""

OUR_CONTEXT = "".join(f"set local app.{name} = '{value}';\n" for name, value in CONTEXT.items())
PGHISTORY_CONTEXT = (
    "select set_config('pghistory.context_id', gen_random_uuid()::text, true), "
    """set_config('pghistory.context_metadata', '{"user": 1, "url": "/items"}', true);\n"""
)


@dataclass(frozen=True)
class Variant:
    """One way of recording changes, or of not doing it."""

    name: str
    base: str
    """Variant without a trigger that sends the same statements: what to subtract."""
    context: str = OUR_CONTEXT
    """Statements that say who is asking, in scenarios that have it."""

    @property
    def tables(self) -> str:
        """Suffix of the tables that it runs against."""
        return "none" if self.name == self.base else self.name


NONE = Variant("none", "none")
BARE = Variant("bare", "none")
OURS = Variant("ours", "none")
PGHISTORY = Variant("pghistory", "none (pghistory)", PGHISTORY_CONTEXT)
NONE_PGHISTORY = Variant("none (pghistory)", "none (pghistory)", PGHISTORY_CONTEXT)


@dataclass(frozen=True)
class Scenario:
    """One transaction that pgbench repeats."""

    name: str
    title: str
    variables: str
    statements: str
    rows: int = 10_000
    """Rows of the item table."""
    context: bool = False
    """Whether each transaction first says who is asking."""

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What is run in turn; without context one bare table serves as base for all."""
        if self.context:
            return (NONE, BARE, OURS, NONE_PGHISTORY, PGHISTORY)
        return (NONE, BARE, OURS, Variant("pghistory", "none"))

    def script(self, variant: Variant) -> str:
        """Return the pgbench script; one round trip a transaction, whatever it sends."""
        context = variant.context if self.context else ""
        statements = context + self.statements.format(tables=variant.tables)
        if statements.count(";") > 1:
            statements = f"\\startpipeline\nbegin;\n{statements}commit;\n\\endpipeline\n"
        return self.variables + statements


RANDOM = "\\set id random(1, {rows})\n\\set r random(1, 1000000000)\n"
ITEM = RANDOM.format(rows=10_000)
UPDATE = "update item_{tables} set name = 'renamed ' || :r, updated_at = now() where id = :id;\n"
TOUCH = "update item_{tables} set last_used_at = now() where id = :id;\n"
INSERT = (
    "insert into item_{tables} (org_id, name, kind, enabled, quota, tags, created_at, updated_at) "
    "values ('org_1', 'new ' || :r, 'standard', true, 100, array['read', 'write'], now(), now());\n"
)
DELETE_INSERT = (
    "delete from item_{tables} where id = :id;\n"
    "insert into item_{tables} (id, org_id, name, kind, enabled, quota, tags, created_at,"
    " updated_at) values (:id, 'org_1', 'again ' || :r, 'standard', true, 100,"
    " array['read', 'write'], now(), now());\n"
)
UPDATE_ALL = "update item_{tables} set name = 'renamed ' || :r, updated_at = now();\n"
TOUCH_ALL = "update item_{tables} set last_used_at = now();\n"
RENAME = "update document_{tables} set name = 'renamed ' || :r where id = :id;\n"

SCENARIOS = (
    Scenario("update", "one-row update of a small table", ITEM, UPDATE),
    Scenario("update-context", "the same, with a request's context", ITEM, UPDATE, context=True),
    Scenario("touch", "touch of an ignored column", ITEM, TOUCH),
    Scenario("insert", "insert of one row", ITEM, INSERT),
    Scenario("delete-insert", "delete of one row and its insert", ITEM, DELETE_INSERT),
    Scenario("update-1000", "update of 1,000 rows in one statement", ITEM, UPDATE_ALL, rows=1_000),
    Scenario("touch-1000", "touch of 1,000 rows in one statement", ITEM, TOUCH_ALL, rows=1_000),
    Scenario(
        "rename-100k", "rename beside 100 KiB of untouched jsonb", RANDOM.format(rows=100), RENAME
    ),
)
