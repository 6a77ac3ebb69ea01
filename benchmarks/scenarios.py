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
    "captured": "true",
    "attested": "false",
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
    most: float | None = None
    """What we may add at most, as a multiple of what django-pghistory adds."""
    rows: int = 10_000
    """Rows of the item table."""
    changes: int = 1
    """Rows that a transaction changes."""
    context: bool = False
    """Whether each transaction first says who is asking."""
    deletes: int = 0
    """How many of these it deletes, from the lowest id on."""
    grows: bool = False
    """Whether rows get so many that the table is emptied before each round."""

    @property
    def uses_up(self) -> bool:
        """Whether rows get fewer, so that there have to be enough for all rounds."""
        return self.deletes == self.changes

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What is run in turn; without context one bare table serves as base for all."""
        if self.context:
            return (NONE, BARE, OURS, NONE_PGHISTORY, PGHISTORY)
        return (NONE, BARE, OURS, Variant("pghistory", "none"))

    def records(self, variant: str) -> bool:
        """Whether there is something to record: a touch is nothing to those who look."""
        return variant == BARE.name or not self.name.startswith("touch")

    def script(self, variant: Variant) -> str:
        """Return the pgbench script; one round trip a transaction, whatever it sends."""
        context = variant.context if self.context else ""
        statements = context + self.statements.format(tables=variant.tables)
        if statements.count(";") > 1:
            statements = f"\\startpipeline\nbegin;\n{statements}commit;\n\\endpipeline\n"
        return self.variables + statements


RANDOM = "\\set id random(1, {rows})\n\\set r random(1, 1000000000)\n"
ITEM = RANDOM.format(rows=10_000)
# The client counts what is gone (pgbench.py): a query for a row left costs more than its delete.
NEXT = "\\set gone :gone + 1\n"
NEXT_1000 = "\\set first :gone + 1\n\\set gone :gone + 1000\n\\set r random(1, 1000000000)\n"

UPDATE = "update item_{tables} set name = 'renamed ' || :r, updated_at = now() where id = :id;\n"
TOUCH = "update item_{tables} set last_used_at = now() where id = :id;\n"
COLUMNS = "org_id, name, kind, enabled, quota, tags, created_at, updated_at"
VALUES = "'org_1', 'new ' || :r, 'standard', true, 100, array['read', 'write'], now(), now()"
INSERT = f"insert into item_{{tables}} ({COLUMNS}) values ({VALUES});\n"
INSERT_1000 = (
    f"insert into item_{{tables}} ({COLUMNS}) select {VALUES} from generate_series(1, 1000);\n"
)
DELETE = "delete from item_{tables} where id = :gone;\n"
DELETE_1000 = "delete from item_{tables} where id between :first and :gone;\n"
DELETE_INSERT = (
    "delete from item_{tables} where id = :id;\n"
    f"insert into item_{{tables}} (id, {COLUMNS}) values (:id, {VALUES});\n"
)
UPDATE_ALL = "update item_{tables} set name = 'renamed ' || :r, updated_at = now();\n"
TOUCH_ALL = "update item_{tables} set last_used_at = now();\n"
RENAME = "update document_{tables} set name = 'renamed ' || :r where id = :id;\n"

SCENARIOS = (
    Scenario("update", "one-row update of a small table", ITEM, UPDATE, 0.8),
    Scenario(
        "update-context", "the same, with a request's context", ITEM, UPDATE, 0.8, context=True
    ),
    Scenario("touch", "touch of an ignored column", ITEM, TOUCH, 0.6),
    Scenario("insert", "insert of one row", ITEM, INSERT, 1.3),
    Scenario("delete", "delete of one row", NEXT, DELETE, 1.3, deletes=1),
    Scenario("delete-insert", "delete of one row and its insert", ITEM, DELETE_INSERT, changes=2),
    Scenario(
        "update-1000", "update of 1,000 rows in one statement", ITEM, UPDATE_ALL, 1.0,
        rows=1_000, changes=1_000,
    ),
    Scenario(
        "touch-1000", "touch of 1,000 rows in one statement", ITEM, TOUCH_ALL, 2.0,
        rows=1_000, changes=1_000,
    ),
    Scenario(
        "insert-1000", "insert of 1,000 rows in one statement", ITEM, INSERT_1000, 1.0,
        rows=1_000, changes=1_000, grows=True,
    ),
    Scenario(
        "delete-insert-1000", "delete of 1,000 rows in one statement, insert in the next",
        NEXT_1000, DELETE_1000 + INSERT_1000, 1.0,
        changes=2_000, deletes=1_000,
    ),
    Scenario(
        "rename-100k", "rename beside 100 KiB of untouched jsonb", RANDOM.format(rows=100), RENAME
    ),
)  # fmt: skip
