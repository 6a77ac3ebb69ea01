"""The fixtures are in tests/support, by what they provide."""

import signal

import pytest

pytest_plugins = ["support.server", "support.pgbouncer"]

# A shell's background job ignores SIGINT, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-golden",
        action="store_true",
        help="rewrite tests/capture/golden/ and what `make docs` prints from the database",
    )
