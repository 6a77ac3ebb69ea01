"""The SQLAlchemy hook on engines and sessions, with several drivers."""

import asyncio
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL, Connection, Engine, create_engine, event, func, insert, select, text
from sqlalchemy.exc import DataError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from pgaudit_wf import bind
from pgaudit_wf.errors import AutocommitError
from pgaudit_wf.integrations.sqlalchemy import install

ACTOR = "select nullif(current_setting('app.actor_id', true), '')"
LOG = (
    "select actor_id, resource_id, metadata ->> 'reason' from pgaudit_wf.security_audit_log "
    "where action !~ '^audit[.]' order by id"
)


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


def url(dsn: str, driver: str) -> URL:
    parts = conninfo_to_dict(dsn)
    return URL.create(
        f"postgresql+{driver}",
        username=str(parts["user"]),
        database=str(parts["dbname"]),
        query={"host": str(parts["host"]), "port": str(parts.get("port", 5432))},
    )


@pytest.fixture
def engine(dsn: str) -> Iterator[Engine]:
    """An engine with the hook and one connection, and an attached table `note`."""
    engine = create_engine(url(dsn, "psycopg"), pool_size=1, max_overflow=0)
    Base.metadata.create_all(engine)
    with engine.begin() as conn:
        conn.execute(text("select pgaudit_wf.attach('note')"))
    install(engine)
    yield engine
    engine.dispose()


def actor(conn: Connection | Session) -> str | None:
    value: str | None = conn.execute(text(ACTOR)).scalar_one()
    return value


def log(engine: Engine) -> list[tuple[Any, ...]]:
    with engine.connect() as conn:
        return [tuple(row) for row in conn.execute(text(LOG))]


def test_each_transaction_carries_what_is_bound(engine: Engine) -> None:
    with engine.connect() as conn:
        with bind(actor_id="100% O'Hara \\"):
            assert actor(conn) == "100% O'Hara \\"
            conn.commit()
        with bind(actor_id="u_2"):
            assert actor(conn) == "u_2"
            conn.rollback()
        assert actor(conn) is None


def test_without_a_context_nothing_is_sent(engine: Engine) -> None:
    sent: list[str] = []
    event.listen(engine, "after_cursor_execute", lambda *args: sent.append(args[2]))
    with engine.connect() as conn:
        conn.execute(text("select 1"))
    with bind(actor_id="u_1"), engine.connect() as conn:
        conn.execute(text("select 2"))
        conn.execute(text("select 3"))
    assert sent[0] == "select 1"
    assert sent[1].startswith("set local app.actor_id = 'u_1'; ")
    assert sent[2:] == ["select 2", "select 3"]


def test_changes_of_a_session_are_recorded_with_their_actor(engine: Engine) -> None:
    factory = sessionmaker(engine)
    with bind(actor_id="u_1"), factory.begin() as session:
        session.add(Note(id=1, text="a"))
    with factory() as session:
        assert session.scalar(select(func.count()).select_from(Note)) == 1
        with bind(actor_id="u_2", reason="signed in after the transaction began"):
            session.add(Note(id=2, text="b"))
            session.flush()
        session.add(Note(id=3, text="c"))
        session.commit()
    assert log(engine) == [
        ("u_1", "1", None),
        ("u_2", "2", "signed in after the transaction began"),
        (None, "3", None),
    ]


def test_savepoints_bring_back_nothing_old(engine: Engine) -> None:
    with engine.begin() as conn, bind(actor_id="u_1"):
        savepoint = conn.begin_nested()
        with bind(actor_id="u_2"):
            assert actor(conn) == "u_2"
            savepoint.rollback()
            # The database is back at u_1 here, but u_2 is still bound.
            assert actor(conn) == "u_2"
        assert actor(conn) == "u_1"
        with conn.begin_nested():
            assert actor(conn) == "u_1"
        assert actor(conn) == "u_1"


def test_a_failed_statement_under_another_context_rolls_back_to_its_savepoint(
    engine: Engine,
) -> None:
    with engine.begin() as conn, bind(actor_id="u_1"):
        conn.execute(insert(Note), {"id": 1, "text": "a"})
        with (
            pytest.raises(DataError, match="division by zero"),
            conn.begin_nested(),
            bind(actor_id="u_2"),
        ):
            conn.execute(text("select 1/0"))
        conn.execute(insert(Note), {"id": 2, "text": "b"})
    assert [row[0] for row in log(engine)] == ["u_1", "u_1"]


def test_autocommit_is_refused_when_a_context_is_bound(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        assert actor(conn) is None
        with bind(actor_id="u_1"), pytest.raises(AutocommitError, match="AUTOCOMMIT mode"):
            conn.execute(text("select 1"))
    with bind(actor_id="u_1"), engine.connect() as conn:
        assert actor(conn) == "u_1"


def test_two_phase_transactions_carry_it_too(engine: Engine) -> None:
    with (
        bind(actor_id="u_1"),
        engine.connect() as conn,
        conn.begin_twophase() as transaction,
    ):
        conn.execute(insert(Note), {"id": 1, "text": "a"})
        transaction.prepare()
        transaction.commit()
    assert log(engine) == [("u_1", "1", None)]


def test_installing_twice_changes_nothing(engine: Engine) -> None:
    install(sessionmaker(engine))
    sent: list[str] = []
    event.listen(engine, "after_cursor_execute", lambda *args: sent.append(args[2]))
    with bind(actor_id="u_1"), engine.connect() as conn:
        conn.execute(text("select 1"))
    assert len(sent) == 2


def test_what_is_no_postgresql_engine_is_refused() -> None:
    with pytest.raises(TypeError, match="bound to one"):
        install(sessionmaker())
    with pytest.raises(TypeError, match="takes an Engine"):
        install("postgresql://")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="for PostgreSQL, not sqlite"):
        install(create_engine("sqlite://"))


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_async_sessions_of_concurrent_tasks(
    conn: psycopg.Connection[Any], dsn: str, driver: str
) -> None:
    conn.execute("create table note (id int primary key, text text not null)")
    conn.execute("select pgaudit_wf.attach('note')")

    async def write(factory: async_sessionmaker[AsyncSession], number: int) -> None:
        with bind(actor_id=f"u_{number}", reason="it's % \\"):
            async with factory.begin() as session:
                session.add(Note(id=number, text="a"))
                await session.flush()
                await asyncio.sleep(0)
                assert (await session.execute(text(ACTOR))).scalar_one() == f"u_{number}"

    async def main() -> None:
        engine: AsyncEngine = create_async_engine(url(dsn, driver), pool_size=2, max_overflow=0)
        install(engine)
        factory = async_sessionmaker(engine)
        install(factory)
        await asyncio.gather(*(write(factory, number) for number in range(8)))
        async with engine.connect() as own:
            assert (await own.execute(text(ACTOR))).scalar_one() is None
        async with engine.connect() as own:
            await own.execution_options(isolation_level="AUTOCOMMIT")
            with bind(actor_id="u_1"), pytest.raises(AutocommitError):
                await own.execute(text("select 1"))
        await engine.dispose()

    asyncio.run(main())
    rows = conn.execute(LOG).fetchall()
    assert sorted(rows) == [(f"u_{n}", f"{n}", "it's % \\") for n in range(8)]
