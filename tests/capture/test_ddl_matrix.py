"""Every kind of DDL goes on, on attached tables and on others, as if we were not there.

Each case is run on the same tables in two databases, one of which never heard of us. It has to end
in the same way and to lock nothing more, and what the application then writes has to be taken and
recorded, once and with its secrets hidden.
"""

import os

import psycopg
from psycopg.conninfo import make_conninfo

from support.ddl_matrix import Case, Matrix, generate, set_up, tear_down

# Without event triggers nobody follows who owns a partitioned table, and a new owner has to be let
# make partitions of it: doctor() says how.
NOT_FOLLOWED = (
    "reassign owned by ddl_owner to ddl_other; set",
    "alter table p owner to ddl_other; set",
)


def share(major: int, form: str) -> list[tuple[Case, str]]:
    """Return the cases to run here: all of them take minutes.

    CI's two servers, of an odd and an even version, share them for the compiled form; for the
    generic one, each takes a quarter. PGAUDIT_WF_ENDURANCE has all of them run.
    """
    cases = [(case, role) for case in generate() for role in case.roles]
    if "PGAUDIT_WF_ENDURANCE" in os.environ:
        return cases
    chosen = cases[major % 2 :: 2] if form == "compiled" else cases[major % 2 * 2 :: 4]
    # What cannot run in a transaction block builds on what came before.
    return [one for one in chosen if not one[0].alone] + [one for one in cases if one[0].alone]


def test_ddl_does_what_it_does_on_bare_tables(empty_dsn: str, db_dsn: str, form: str) -> None:
    superuser = make_conninfo(db_dsn, user="postgres")
    with (
        psycopg.connect(empty_dsn, autocommit=True) as bare,
        psycopg.connect(superuser, autocommit=True) as seen,
    ):
        set_up(bare, attach=False)
        set_up(seen, attach=True)
        matrix = Matrix(bare, seen)
        found = {
            f"{role}: {case.ddl}": differences
            for case, role in share(seen.info.server_version // 10000, form)
            if form == "compiled" or not case.ddl.startswith(NOT_FOLLOWED)
            if (differences := matrix.differences(case, role))
        }
        tear_down(bare, seen)
    assert found == {}
