"""Write migrations from sql/, the only place where the database is edited.

    python tools/make_migration.py NAME
        Write what changed in sql/ since the last migration into a new one called NAME. Run again
        with the same NAME, it rewrites the generated part and keeps the rest.
    python tools/make_migration.py --check
        Exit with 1 if the migrations lag behind sql/; write nothing.
    python tools/make_migration.py --release VERSION
        Freeze every migration there is under that version, in migrations/CHECKSUMS: a part of
        what make_release.py does. The first
        release makes the first migrations, from sql/ as it stands: until then, sql/ is what
        `pgaudit-wf migrate` installs, and there is nothing to write.

What can be replaced in place (functions, views, triggers, comments), what is new and has a name,
and new privileges are written for you. The rest (a column, a row, a changed index or constraint, a
privilege taken away) is written by hand above the generated part, which then notes it as done.
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

from pgaudit_wf.errors import MigrationError
from pgaudit_wf.schema.files import (
    GROUPS,
    first_id,
    first_text,
    migration_paths,
    read_sources,
)

ROOT = Path(__file__).parents[1]
BEGIN = "-- generated from sql/ by make migration: edit sql/, not this"
END = "-- end of what is generated"
BY_HAND = "-- by hand: "
GONE = "-- gone: "
AS_OWNER = """\
-- Like all that is there, what is new belongs to the owner of the schema.
select set_config('role', pg_get_userbyid(nspowner), true)
from pg_namespace where nspname = 'pgaudit_wf';"""
# pglast declares each field of a syntax tree as optional, also those that a valid one always has.
Node = Any

_INPUT = {"i", "b", "v", "d"}  # modes of parameters that are part of a function's identity
_MARK = re.compile(rf"{re.escape(BY_HAND)}(?P<key>.+) (?P<digest>[0-9a-f]{{16}})")
_FILE_NAME = re.compile(r"pgaudit_wf\.(?:core|app)\.(?P<number>\d{4})_(?P<name>\w+)\.sql")
_VERSION = r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?"
_DROPPED_BY_NAME = {
    ast.CreateStmt: "table",
    ast.ViewStmt: "view",
    ast.CreateSeqStmt: "sequence",
    ast.CreateEnumStmt: "type",
    ast.CompositeTypeStmt: "type",
    ast.CreateDomainStmt: "domain",
    ast.IndexStmt: "index",
}


class ToolError(Exception):
    """Something that whoever runs the tool has to settle."""


@dataclass(frozen=True)
class Statement:
    """One statement of sql/: what it defines, its text, and how to take it away if we may."""

    key: str
    text: str
    named: bool = True  # what it defines can be told from everything else, and made where missing
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
            replaceable=True,
            drop=f"drop {kind} {name}",
            shape="; ".join(shape),
        )
    if isinstance(node, ast.CreateTrigStmt):
        target = f"{_identifier(node.trigname)} on {_relation(node.relation)}"
        replaceable = not node.isconstraint
        return Statement(
            f"trigger {target}",
            _replacing(text) if replaceable else text,
            replaceable=replaceable,
            drop=f"drop trigger {target}",
            of=(f"table {_relation(node.relation)}", f"view {_relation(node.relation)}"),
        )
    if isinstance(node, ast.CreateSchemaStmt):
        return Statement(f"schema {node.schemaname}", text, named=False)
    if isinstance(node, ast.CommentStmt):
        head = text[: re.search(r"\bis\b", text, re.IGNORECASE).end()]
        key = " ".join(head.split())
        return Statement(key, text, replaceable=True, of=_commented(node))
    if isinstance(node, ast.GrantStmt):
        of = tuple(key for item in node.objects or () for key in _owners(item))
        return Statement(" ".join(text.split()), text, replaceable=True, of=of)
    for cls, kind in _DROPPED_BY_NAME.items():
        if isinstance(node, cls):
            key = f"{kind} {_defined_name(node)}"
            if isinstance(node, ast.ViewStmt):
                return Statement(key, _replacing(text), replaceable=True, drop=f"drop {key}")
            return Statement(key, text)
    # It defines nothing with a name, so a changed one is another one.
    key = f"{' '.join(text.split())[:60]}… {hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return Statement(key, text, named=False)


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
        self.root = root
        self.migrations = root / "migrations"
        self.checksums = self.migrations / "CHECKSUMS"

    def versions(self) -> dict[str, dict[str, str]]:
        """Return what each released version added: checksums by path under migrations/."""
        found: dict[str, dict[str, str]] = {}
        if self.checksums.exists():
            for line in self.checksums.read_text().splitlines():
                if heading := re.fullmatch(rf"# ({_VERSION})", line):
                    found[heading[1]] = files = {}
                elif line and not line.startswith("#"):
                    digest, name = line.split(maxsplit=1)
                    files[name] = digest
        return found

    def released(self) -> dict[str, str]:
        """Return the checksum of each released file, by its path under migrations/."""
        return {
            name: digest for files in self.versions().values() for name, digest in files.items()
        }

    def check_frozen(self) -> None:
        """Fail if a released file has changed."""
        for name, digest in self.released().items():
            path = self.migrations / name
            if not path.exists() or _sha256(path) != digest:
                raise ToolError(f"migrations/{name} is released and must stay as it was")

    def release(self, version: str) -> list[Path]:
        """Freeze every migration under this version; return the files that it adds."""
        self.check_frozen()
        if version in self.versions():
            raise ToolError(f"{version} is released already")
        depends = None
        for group in GROUPS:
            if not self.is_released(group):
                if sources := read_sources(self.root, group):
                    self.wanted(group)  # what later migrations could not start from is refused now
                    path = self.migrations / group / f"{first_id(group)}.sql"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(first_text(sources, depends))
            elif self.change(group, self.files(group)):
                raise ToolError(
                    f"the migrations lag behind sql/{group}: run make migration NAME=… first"
                )
            if files := self.files(group):
                depends = files[-1].stem
        known = self.released()
        added = [
            path
            for group in GROUPS
            for path in sorted((self.migrations / group).glob("*.sql"))
            if f"{group}/{path.name}" not in known
        ]
        lines = [f"# {version}"]
        lines += [f"{_sha256(path)}  {path.parent.name}/{path.name}" for path in added]
        with self.checksums.open("a") as file:
            file.write("".join(f"{line}\n" for line in lines))
        return added

    def is_released(self, group: str) -> bool:
        """Say whether something of the group is released."""
        return any(name.startswith(f"{group}/") for name in self.released())

    def files(self, group: str) -> list[Path]:
        """Return the group's migrations in order, without the rollbacks."""
        return migration_paths(self.root, group)

    def plan(self, name: str | None) -> tuple[dict[Path, str], list[str]]:
        """Return the files to write, and what has to be written by hand."""
        self.check_frozen()
        written: dict[Path, str] = {}
        by_hand: list[str] = []
        for group in GROUPS:
            if not self.is_released(group):
                continue
            old, own = self._split(group, name)
            change = self.change(group, old)
            if not change and own is None:
                continue
            if name is None:
                raise ToolError(f"sql/{group} has changed: run make migration NAME=what_it_does")
            path = own or self._next(group, name)
            written[path] = self._incremental(group, path, change)
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
            # The first one is sql/ as it was; of the others, what was generated says what it did.
            generated = text if path == files[0] else _generated(text)
            for mark in _MARK.finditer(generated):
                state[mark["key"]] = (mark["digest"], None)
            for statement in statements(generated, path.name):
                if not statement.text.lower().startswith("drop "):
                    state[statement.key] = (statement.digest, statement)
            for line in re.findall(rf"^{GONE}(.+)$", generated, re.MULTILINE):
                state.pop(line, None)
        return state

    def wanted(self, group: str) -> dict[str, Statement]:
        """Return what sql/ defines, by key."""
        wanted: dict[str, Statement] = {}
        for source in read_sources(self.root, group):
            for s in statements(source.text, source.name):
                if s.key in wanted:
                    raise ToolError(f"{source.name}: {s.key} is there twice")
                wanted[s.key] = s
        return wanted

    def change(self, group: str, files: list[Path]) -> Change:
        """Compare sql/ with what these migrations make."""
        state = self.state(files)
        wanted = self.wanted(group)
        change = Change()
        recreated: set[str] = set()
        for statement in wanted.values():
            digest, previous = state.get(statement.key, (None, None))
            lost = bool(recreated.intersection(statement.of))
            if digest == statement.digest and not lost:
                continue
            replacing = statement.replaceable and previous and previous.replaceable
            if not replacing and not (statement.named and digest is None):
                change.marks.append(f"{statement.key} {statement.digest}")
                continue
            if previous and previous.shape != statement.shape:
                recreated.add(statement.key)
                change.forward.append(f"{statement.drop};")
            change.forward.append(f"{statement.text};")
        # Last, when nothing uses it any more, and what was made last goes first.
        gone = state.keys() - wanted.keys()
        for key in reversed(state):
            if key in gone:
                self._take_away(key, state[key][1], gone, change)
        return change

    @staticmethod
    def _take_away(key: str, previous: Statement | None, gone: set[str], change: Change) -> None:
        change.forward.append(f"{GONE}{key}")
        if previous and gone.intersection(previous.of):
            return
        if previous and previous.drop:
            change.forward.append(f"{previous.drop};")
        else:
            change.by_hand.append(f"undo {key}")

    def _incremental(self, group: str, path: Path, change: Change) -> str:
        marks = [f"{BY_HAND}{mark}" for mark in change.marks]
        earlier = [p for p in self.files(group) if p.name < path.name]
        head, tail = [f"-- depends: {earlier[-1].stem}"], []
        if group == "core":
            head.append(AS_OWNER)
            tail.append("reset role;")
        elif core := self.files("core"):
            head[0] += f" {core[-1].stem}"
        return _spliced(path, head, "\n\n".join([*marks, *change.forward]), tail)


def _generated(text: str) -> str:
    match = re.search(rf"^{re.escape(BEGIN)}$(.*?)^{re.escape(END)}$", text, re.M | re.S)
    return match[1] if match else ""


def _spliced(path: Path, head: list[str], generated: str, tail: list[str]) -> str:
    """Put the generated part into the file, or into a new one; what is by hand stays."""
    part = f"{BEGIN}\n\n{generated}\n\n{END}"
    if not path.exists():
        return "\n\n".join([*head, part, *tail]) + "\n"
    text = path.read_text()
    pattern = rf"^{re.escape(BEGIN)}$.*?^{re.escape(END)}$"
    if re.search(pattern, text, re.M | re.S):
        return re.sub(pattern, lambda _: part, text, count=1, flags=re.M | re.S)
    return f"{text}\n{part}\n"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _release(repository: Repository, version: str) -> None:
    if not re.fullmatch(_VERSION, version):
        raise ToolError(f'"{version}" is no version: make release VERSION=1.2.3 (or 1.2.3rc1)')
    for path in repository.release(version):
        print(path)
    print(f"{version} is frozen in migrations/CHECKSUMS.")


def _write(repository: Repository, name: str | None, *, check: bool) -> int:
    if not repository.released() and not check:
        raise ToolError(
            "nothing is released, so sql/ as it stands is the first migration: none to write"
        )
    written, by_hand = repository.plan(name)
    stale = [p for p, text in written.items() if not p.exists() or p.read_text() != text]
    if check:
        for path in stale:
            print(f"{path} lags behind sql/: run make migration", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(written[path])
        print(path)
    for task in by_hand:
        print(f"write by hand: {task}", file=sys.stderr)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the tool; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", help="what the migration does, in snake_case")
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    parser.add_argument("--release", metavar="VERSION", help="freeze every migration there is")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout (default: this one)")
    options = parser.parse_args(arguments)
    repository = Repository(options.root)
    try:
        if options.name and not re.fullmatch(r"[a-z][a-z0-9_]*", options.name):
            raise ToolError(f"{options.name}: a migration's name is snake_case")
        if options.release is None:
            return _write(repository, options.name, check=options.check)
        _release(repository, options.release)
    except (ToolError, MigrationError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
