"""Write migrations from sql/, the only place where the database is edited.

    python tools/make_migration.py [NAME]
        Before the first release: rewrite migrations/core/…0001 and migrations/app/…0001.
        After it: write what changed in sql/ since the last migration into a new one called NAME.
        Run again with the same NAME, it rewrites the generated part and keeps the rest.
    python tools/make_migration.py --check
        Exit with 1 if the migrations lag behind sql/; write nothing.
    python tools/make_migration.py --release
        Freeze every migration there is, by adding its checksum to migrations/CHECKSUMS.

What can be replaced in place (functions, views, triggers, comments, privileges) is written for
you, with the previous text in the rollback. What cannot (a column, an index, a constraint, data)
is written by hand above the generated part; the generated part then notes it as done.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pglast
from pglast import ast
from pglast.enums import ObjectType
from pglast.stream import RawStream

ROOT = Path(__file__).parents[1]
GROUPS = ("core", "app")
BEGIN = "-- generated from sql/ by make migration: edit sql/, not this"
END = "-- end of what is generated"
BY_HAND = "-- by hand: "
GONE = "-- gone: "
# Dropped with the table or function that they belong to.
_GOES_ALONG = ("index ", "comment ", "grant ", "revoke ")
# pglast declares each field of a syntax tree as optional, also those that a valid one always has.
Node = Any

_INPUT = {"i", "b", "v", "d"}  # modes of parameters that are part of a function's identity
_MARK = re.compile(rf"{re.escape(BY_HAND)}(?P<key>.+) (?P<digest>[0-9a-f]{{16}})")
_FILE_NAME = re.compile(r"pgaudit_wf\.(?:core|app)\.(?P<number>\d{4})_(?P<name>\w+)\.sql")
_DROPPED_BY_NAME = {
    ast.CreateStmt: "table",
    ast.ViewStmt: "view",
    ast.CreateSeqStmt: "sequence",
    ast.CreateEnumStmt: "type",
    ast.CompositeTypeStmt: "type",
    ast.CreateDomainStmt: "domain",
    ast.IndexStmt: "index",
}


_DROP_CORE = """\
-- First, or they would run for the statements that follow.
do $$
declare
  trigger_name name;
begin
  for trigger_name in
    select e.evtname
    from pg_catalog.pg_event_trigger as e
    inner join pg_catalog.pg_proc as p on e.evtfoid = p.oid
    where p.pronamespace = 'pgaudit_wf'::regnamespace
  loop
    execute format('drop event trigger %I', trigger_name);
  end loop;
end
$$;

-- What views and counters of ours may read of the application's tables.
do $$
declare
  granted record;
begin
  for granted in
    select distinct
      a.attrelid::regclass as relation, quote_ident(a.attname) as name,
      acl.grantee::regrole as reader
    from pg_catalog.pg_attribute as a
    cross join lateral aclexplode(a.attacl) as acl
    where acl.grantee = (select nspowner from pg_catalog.pg_namespace where nspname = 'pgaudit_wf')
      and acl.grantee = to_regrole('pgaudit_wf_owner')
  loop
    begin
      execute format(
        'revoke all (%s) on %s from %s', granted.name, granted.relation, granted.reader);
    exception
      -- Anybody can grant it something; it is of no use to a role that owns nothing.
      when insufficient_privilege then
        raise notice 'the rights of % on % stay', granted.reader, granted.relation;
    end;
  end loop;
end
$$;

-- Takes the triggers on audited tables along, whoever owns those tables.
drop schema pgaudit_wf cascade;

-- Roles belong to the whole server: another database may need them, or we may not be allowed to.
do $$
declare
  role_name name;
begin
  foreach role_name in array
    array['pgaudit_wf_app', 'pgaudit_wf_reader', 'pgaudit_wf_owner']::name[]
  loop
    begin
      execute format('drop role if exists %I', role_name);
    exception
      when dependent_objects_still_exist or insufficient_privilege then
        raise notice 'role % stays', role_name;
    end;
  end loop;
end
$$;
"""


class ToolError(Exception):
    """Something that whoever runs the tool has to settle."""


@dataclass(frozen=True)
class Statement:
    """One statement of sql/: what it defines, its text, and how to take it away."""

    key: str
    text: str
    replaceable: bool = False
    drop: str | None = None
    of: tuple[str, ...] = ()  # the keys of what it belongs to, and goes with
    shape: str = ""  # what "create or replace" cannot change

    @property
    def digest(self) -> str:
        """Return enough of the text's SHA-256 to tell two versions apart."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


@dataclass
class Change:
    """The difference between sql/ and the migrations of one group."""

    forward: list[str] = field(default_factory=list)
    backward: list[str] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    by_hand: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.forward or self.marks)


# By key: the digest of the text that is in force, and the statement if a migration has its text.
State = dict[str, tuple[str, Statement | None]]


def statements(text: str, origin: str) -> list[Statement]:
    """Split SQL text, with PostgreSQL's own grammar, into what each statement defines."""
    try:
        raw: Any = pglast.parse_sql(text)
    except pglast.parser.ParseError as error:
        problem, index = error.args
        line = text.count("\n", 0, index or 0) + 1
        raise ToolError(f"{origin}, line {line}: {problem}") from error
    # A location is past the comments above the statement: they explain the file, not the object.
    return [
        _describe(
            item.stmt,
            text[item.stmt_location : item.stmt_location + (item.stmt_len or len(text))].strip(),
        )
        for item in raw
    ]


def _describe(node: Node, text: str) -> Statement:
    if isinstance(node, ast.CreateFunctionStmt):
        kind = "procedure" if node.is_procedure else "function"
        parameters = node.parameters or ()
        inputs = [p.argType for p in parameters if p.mode.value in _INPUT]
        name = _callable(node.funcname, inputs)
        shape = [
            f"{p.mode.value} {p.name} {RawStream()(p.argType)} {p.defexpr is None}"
            for p in parameters
        ]
        if node.returnType:
            shape.append(RawStream()(node.returnType))
        return Statement(
            f"{kind} {name}",
            _replacing(text),
            True,
            f"drop {kind} {name}",
            shape="; ".join(shape),
        )
    if isinstance(node, ast.CreateTrigStmt):
        target = f"{_identifier(node.trigname)} on {_relation(node.relation)}"
        replaceable = not node.isconstraint
        return Statement(
            f"trigger {target}",
            _replacing(text) if replaceable else text,
            replaceable,
            f"drop trigger {target}",
            (f"table {_relation(node.relation)}", f"view {_relation(node.relation)}"),
        )
    if isinstance(node, ast.CreateSchemaStmt):
        return Statement(f"schema {node.schemaname}", text)
    if isinstance(node, ast.CommentStmt):
        head = text[: re.search(r"\bis\b", text, re.IGNORECASE).end()]
        key = " ".join(head.split())
        return Statement(key, text, True, f"{key} null", _commented(node))
    if isinstance(node, ast.GrantStmt):
        of = tuple(key for item in node.objects or () for key in _owners(item))
        return Statement(" ".join(text.split()), text, True, _reverse_grant(node, text), of)
    for cls, kind in _DROPPED_BY_NAME.items():
        if isinstance(node, cls):
            name = _defined_name(node)
            replaceable = isinstance(node, ast.ViewStmt)
            return Statement(
                f"{kind} {name}",
                _replacing(text) if replaceable else text,
                replaceable,
                f"drop {kind} {name}",
            )
    undone_by = _reverse_data(node, text)
    # It defines nothing with a name, so a changed one is another one.
    key = f"{' '.join(text.split())[:60]}… {hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return Statement(key, text, undone_by is not None, undone_by)


def _reverse_data(node: Node, text: str) -> str | None:
    """Undo rows inserted as VALUES into a table, and a call of attach()."""
    if isinstance(node, ast.InsertStmt) and node.selectStmt and node.selectStmt.valuesLists:
        columns = [_identifier(column.name) for column in node.cols]
        rows = text[re.search(r"\bvalues\b", text, re.IGNORECASE).start() :]
        same = "\n  and ".join(f"t.{c} is not distinct from v.{c}" for c in columns)
        return (
            f"delete from {_relation(node.relation)} as t\nusing (\n{rows}\n) as v"
            f" ({', '.join(columns)})\nwhere {same}"
        )
    call = re.match(r"select pgaudit_wf\.attach(\w*)\(\s*('[^']+')", text, re.IGNORECASE)
    return f"select pgaudit_wf.detach{call[1]}({call[2]})" if call else None


def _replacing(text: str) -> str:
    return re.sub(r"^create\s+(?!or\s+replace\b)", "create or replace ", text, flags=re.IGNORECASE)


def _callable(name: Iterable[ast.String], types: Iterable[Node]) -> str:
    return f"{_dotted(name)}({', '.join(RawStream()(t) for t in types)})"


def _commented(node: Node) -> tuple[str, ...]:
    if node.objtype == ObjectType.OBJECT_COLUMN:
        return (f"table {_dotted(node.object[:-1])}", f"view {_dotted(node.object[:-1])}")
    if node.objtype in {ObjectType.OBJECT_TRIGGER, ObjectType.OBJECT_TABCONSTRAINT}:
        return (f"table {_dotted(node.object[:-1])}",)
    return _owners(node.object)


def _owners(item: Node) -> tuple[str, ...]:
    """Return the keys under which an object named in a comment or grant may be defined."""
    if isinstance(item, ast.ObjectWithArgs):
        name = _callable(item.objname, item.objargs or ())
        return (f"function {name}", f"procedure {name}")
    if isinstance(item, ast.RangeVar):
        name = _relation(item)
    elif isinstance(item, ast.String):
        return (f"schema {item.sval}",)
    elif isinstance(item, ast.TypeName):
        name = _dotted(item.names)
    else:
        name = _dotted(item)
    return tuple(f"{kind} {name}" for kind in _DROPPED_BY_NAME.values())


def _reverse_grant(node: Node, text: str) -> str:
    if node.is_grant:
        reverse = re.sub(r"^\s*grant\b", "revoke", text, flags=re.IGNORECASE)
        return re.sub(r"\bto\b(?=[^()]*$)", "from", reverse, flags=re.IGNORECASE)
    reverse = re.sub(r"^\s*revoke\b", "grant", text, flags=re.IGNORECASE)
    return re.sub(r"\bfrom\b(?=[^()]*$)", "to", reverse, flags=re.IGNORECASE)


def _defined_name(node: Node) -> str:
    if isinstance(node, ast.IndexStmt):
        if node.idxname is None:
            raise ToolError(f"an index on {_relation(node.relation)} has no name: give it one")
        return _relation(node.relation, node.idxname)
    for attribute in ("relation", "view", "sequence", "typevar"):
        relation = getattr(node, attribute, None)
        if relation is not None:
            return _relation(relation)
    return _dotted(node.domainname if isinstance(node, ast.CreateDomainStmt) else node.typeName)


def _relation(relation: Node, name: str | None = None) -> str:
    if not relation.schemaname:
        raise ToolError(f"{relation.relname} is not qualified by a schema")
    return f"{_identifier(relation.schemaname)}.{_identifier(name or relation.relname)}"


def _dotted(parts: Iterable[ast.String]) -> str:
    return ".".join(_identifier(part.sval) for part in parts)


def _identifier(name: str) -> str:
    return name if re.fullmatch(r"[a-z_][a-z0-9_$]*", name) else '"' + name.replace('"', '""') + '"'


class Repository:
    """A checkout: its sql/, its migrations/ and what of them is released."""

    def __init__(self, root: Path) -> None:
        self.sql = root / "sql"
        self.migrations = root / "migrations"
        self.checksums = self.migrations / "CHECKSUMS"

    def released(self) -> dict[str, str]:
        """Return the checksum of each released file, by its path under migrations/."""
        if not self.checksums.exists():
            return {}
        pairs = (line.split(maxsplit=1) for line in self.checksums.read_text().splitlines())
        return {name: digest for digest, name in pairs}

    def check_frozen(self) -> None:
        """Fail if a released file has changed."""
        for name, digest in self.released().items():
            path = self.migrations / name
            if not path.exists() or _sha256(path) != digest:
                raise ToolError(f"migrations/{name} is released and must stay as it was")

    def sources(self, group: str) -> list[Path]:
        """Return the group's files of sql/ in the order in which they run."""
        return sorted((self.sql / group).glob("*.sql"))

    def files(self, group: str) -> list[Path]:
        """Return the group's migrations in order, without the rollbacks."""
        return [
            path
            for path in sorted((self.migrations / group).glob("*.sql"))
            if _FILE_NAME.fullmatch(path.name) and not path.name.endswith(".rollback.sql")
        ]

    def release(self) -> list[str]:
        """Freeze every migration; the file is in sha256sum's format."""
        self.check_frozen()
        for group in GROUPS:
            if self.incremental(group) and self.change(group, self.files(group)):
                raise ToolError("the migrations lag behind sql/: run make migration first")
        names = sorted(
            f"{group}/{path.name}"
            for group in GROUPS
            for path in (self.migrations / group).glob("*.sql")
        )
        lines = [f"{_sha256(self.migrations / name)}  {name}" for name in names]
        self.checksums.write_text("".join(f"{line}\n" for line in lines))
        return names

    def incremental(self, group: str) -> bool:
        """Say whether something of the group is released."""
        return any(name.startswith(f"{group}/") for name in self.released())

    def plan(self, name: str | None) -> tuple[dict[Path, str], list[str]]:
        """Return the files to write, and what has to be written by hand."""
        self.check_frozen()
        written: dict[Path, str] = {}
        by_hand: list[str] = []
        for group in GROUPS:
            if not self.sources(group):
                continue
            if not self.incremental(group):
                written |= self._first(group)
                continue
            old, own = self._split(group, name)
            change = self.change(group, old)
            if not change and own is None:
                continue
            if name is None:
                raise ToolError(f"sql/{group} has changed: run make migration NAME=what_it_does")
            path = own or self._next(group, name)
            written |= self._incremental(group, path, change)
            by_hand += [*change.by_hand, *(mark.rsplit(maxsplit=1)[0] for mark in change.marks)]
        return written, by_hand

    def _split(self, group: str, name: str | None) -> tuple[list[Path], Path | None]:
        """Separate the migrations before the one being written from that one."""
        files = self.files(group)
        last = files[-1]
        match = _FILE_NAME.fullmatch(last.name)
        if match and match["name"] == name and f"{group}/{last.name}" not in self.released():
            return files[:-1], last
        return files, None

    def _next(self, group: str, name: str) -> Path:
        match = _FILE_NAME.fullmatch(self.files(group)[-1].name)
        number = int(match["number"]) + 1 if match else 1
        return self.migrations / group / f"pgaudit_wf.{group}.{number:04}_{name}.sql"

    def state(self, files: list[Path]) -> State:
        """Replay the migrations: what each key is defined as, by digest and by text if known."""
        state: State = {}
        for path in files:
            text = path.read_text()
            generated = _generated(text)
            for mark in _MARK.finditer(generated):
                state[mark["key"]] = (mark["digest"], None)
            for line in re.findall(rf"^{GONE}(.+)$", generated, re.MULTILINE):
                state.pop(line, None)
            for statement in statements(generated, path.name):
                if not statement.text.lower().startswith("drop "):
                    state[statement.key] = (statement.digest, statement)
        return state

    def change(self, group: str, files: list[Path]) -> Change:
        """Compare sql/ with what these migrations make."""
        state = self.state(files)
        wanted: dict[str, Statement] = {}
        for path in self.sources(group):
            for s in statements(path.read_text(), path.name):
                if s.key in wanted:
                    raise ToolError(f"{path.name}: {s.key} is there twice")
                wanted[s.key] = s
        change = Change()
        undo: list[str] = []
        gone = state.keys() - wanted.keys()
        for key in reversed(state):
            if key in gone:
                self._take_away(key, state[key][1], gone, state, change, undo)
        recreated: set[str] = set()
        for statement in wanted.values():
            digest, previous = state.get(statement.key, (None, None))
            lost = bool(recreated.intersection(statement.of))
            if digest == statement.digest and not lost:
                continue
            is_new = digest is None and statement.drop is not None
            if not is_new and not (statement.replaceable and previous):
                change.marks.append(f"{statement.key} {statement.digest}")
                continue
            if previous and previous.shape != statement.shape:
                recreated.add(statement.key)
                change.forward.append(f"{statement.drop};")
                undo.append(f"{previous.text};")
                undo.append(f"{statement.drop};")
            elif previous:
                undo.append(f"{previous.text};")
            elif not any(owner in wanted and owner not in state for owner in statement.of):
                undo.append(f"{statement.drop};")
            change.forward.append(f"{statement.text};")
        change.backward = self._comments_last(undo[::-1])
        return change

    @staticmethod
    def _take_away(
        key: str,
        previous: Statement | None,
        gone: set[str],
        state: State,
        change: Change,
        undo: list[str],
    ) -> None:
        change.forward.append(f"{GONE}{key}")
        if previous is None or not previous.replaceable:
            change.by_hand.append(f"undo {key}")
            return
        owners = [state[owner][1] for owner in previous.of if owner in gone]
        if not owners:
            change.forward.append(f"{previous.drop};")
        if all(owner and owner.replaceable for owner in owners):
            undo.append(f"{previous.text};")

    @staticmethod
    def _comments_last(backward: list[str]) -> list[str]:
        """Order the way back so that what belongs to an object comes after it is made again."""
        return sorted(backward, key=lambda text: text.startswith(("comment ", "grant ", "revoke ")))

    def _first(self, group: str) -> dict[Path, str]:
        parts = [BEGIN]
        drops: list[Statement] = []
        for path in self.sources(group):
            text = path.read_text()
            drops += statements(text, path.name)
            parts.append(f"-- {path.relative_to(self.sql.parent)}\n\n{text.strip()}")
        parts.append(END)
        body = "\n\n".join(parts) + "\n"
        path = self.migrations / group / f"pgaudit_wf.{group}.0001_first.sql"
        if group == "app":
            return {
                path: f"-- depends: pgaudit_wf.core.0001_first\n\n{body}",
                path.with_suffix(".rollback.sql"): f"{BEGIN}\n\n{_undo(drops, self._core())}",
            }
        return {path: body, path.with_suffix(".rollback.sql"): f"{BEGIN}\n\n{_DROP_CORE}"}

    def _core(self) -> dict[str, Statement]:
        """Return what sql/core defines and sql/app may redefine."""
        found = [
            s for path in self.sources("core") for s in statements(path.read_text(), path.name)
        ]
        return {s.key: s for s in found if s.replaceable}

    def _incremental(self, group: str, path: Path, change: Change) -> dict[Path, str]:
        marks = [f"{BY_HAND}{mark}" for mark in change.marks]
        before = self.files(group)
        earlier = [p for p in before if p.name < path.name]
        depends = f"-- depends: {earlier[-1].stem}"
        if group == "app" and self.files("core"):
            depends += f" {self.files('core')[-1].stem}"
        rollback = path.with_suffix(".rollback.sql")
        return {
            path: _spliced(path, depends, "\n\n".join([*marks, *change.forward]), last=True),
            rollback: _spliced(rollback, "", "\n\n".join(change.backward), last=False),
        }


def _generated(text: str) -> str:
    match = re.search(rf"^{re.escape(BEGIN)}$(.*?)^{re.escape(END)}$", text, re.M | re.S)
    return match[1] if match else ""


def _spliced(path: Path, head: str, generated: str, *, last: bool) -> str:
    """Put the generated part into the file, or into a new one; what is by hand stays.

    The hand-written part comes first on the way up, since functions may use a new column, and last
    on the way down.
    """
    part = f"{BEGIN}\n\n{generated}\n\n{END}"
    if path.exists():
        text = path.read_text()
        pattern = rf"^{re.escape(BEGIN)}$.*?^{re.escape(END)}$"
        if re.search(pattern, text, re.M | re.S):
            return re.sub(pattern, lambda _: part, text, count=1, flags=re.M | re.S)
        return f"{text}\n{part}\n" if last else f"{part}\n\n{text}"
    return "\n\n".join(filter(None, [head, part])) + "\n"


def _undo(defined: list[Statement], core: dict[str, Statement]) -> str:
    """Write the rollback of sql/app, last statement first.

    Its tables go in one statement, since they may refer to each other. What it took over from the
    core is given back.
    """
    tables = [s for s in defined if s.key.startswith("table ")]
    together = f"drop table\n  {(',' + chr(10) + '  ').join(_names_reversed(tables))};"
    parts: list[str] = []
    for statement in reversed(defined):
        if statement.key in core:
            parts.append(f"{core[statement.key].text};")
        elif statement.key.startswith("table "):
            if together not in parts:
                parts.append(together)
        elif statement.drop and not statement.key.startswith(_GOES_ALONG):
            parts.append(f"{statement.drop};")
    return "\n\n".join(parts) + "\n"


def _names_reversed(tables: list[Statement]) -> list[str]:
    return [table.key.removeprefix("table ") for table in reversed(tables)]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Run the tool; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", help="what the migration does, in snake_case")
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    parser.add_argument("--release", action="store_true", help="freeze every migration there is")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout (default: this one)")
    options = parser.parse_args(arguments)
    repository = Repository(options.root)
    try:
        if options.name and not re.fullmatch(r"[a-z][a-z0-9_]*", options.name):
            raise ToolError(f"{options.name}: a migration's name is snake_case")
        if options.release:
            print("\n".join(repository.release()))
            return 0
        written, by_hand = repository.plan(options.name)
        stale = [p for p, text in written.items() if not p.exists() or p.read_text() != text]
        if options.check:
            for path in stale:
                print(f"{path} lags behind sql/: run make migration", file=sys.stderr)
            return 1 if stale else 0
        for path in stale:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(written[path])
            print(path)
        for task in by_hand:
            print(f"write by hand, and its undoing in the rollback: {task}", file=sys.stderr)
    except ToolError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
