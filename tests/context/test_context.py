"""The context itself, without a database: validation, merging, binding."""

import asyncio
import dataclasses
import ipaddress
import threading

import pytest

from pgaudit_wf import RequestContext, bind, current_context
from pgaudit_wf.context.values import FIELDS, SETTINGS, set_local, set_local_changes
from pgaudit_wf.errors import ContextError, InvalidContextError


def test_every_field_is_optional_and_none() -> None:
    assert set(dataclasses.asdict(RequestContext()).values()) == {None}


def test_a_context_is_frozen_and_takes_no_other_attributes() -> None:
    context = RequestContext(actor_id="u_1")
    with pytest.raises(dataclasses.FrozenInstanceError):
        context.actor_id = "u_2"  # type: ignore[misc]
    assert not hasattr(context, "__dict__")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("203.0.113.9", "203.0.113.9"),
        (ipaddress.ip_address("203.0.113.9"), "203.0.113.9"),
        (ipaddress.ip_address("2001:db8::1"), "2001:db8::1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        (ipaddress.ip_address("::ffff:203.0.113.9"), "203.0.113.9"),
        ("", None),
        (None, None),
    ],
)
def test_an_ip_is_kept_in_canonical_form(
    given: str | ipaddress.IPv4Address | ipaddress.IPv6Address | None, kept: str | None
) -> None:
    assert RequestContext(ip=given).ip == kept


@pytest.mark.parametrize(
    "ip",
    [
        "localhost",
        "203.0.113.9:443",
        "203.0.113.0/24",
        "[::1]",
        " 203.0.113.9",
        "1.2.3",
        "\u0661.\u0661.\u0661.\u0661",
    ],
)
def test_an_ip_that_is_no_address_is_refused(ip: str) -> None:
    with pytest.raises(InvalidContextError, match="is not an IPv4 or IPv6 address"):
        RequestContext(ip=ip)


def test_the_refusal_is_both_ours_and_a_value_error() -> None:
    assert issubclass(InvalidContextError, ContextError)
    assert issubclass(InvalidContextError, ValueError)


@pytest.mark.parametrize("name", FIELDS)
def test_text_that_postgresql_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(InvalidContextError, match=f"{name} contains a NUL"):
        RequestContext().merge(**{name: "a\0b"})  # type: ignore[arg-type]
    with pytest.raises(
        InvalidContextError, match=f"{name} contains a lone surrogate at position 1"
    ):
        RequestContext().merge(**{name: "a\ud800"})  # type: ignore[arg-type]
    with pytest.raises(InvalidContextError, match=f"{name} must be a str or None, not int"):
        RequestContext().merge(**{name: 7})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["actor_id", "org_id", "api_key_id", "correlation_id"])
def test_identifiers_have_at_most_255_characters(name: str) -> None:
    assert RequestContext().merge(**{name: "é" * 255}).as_dict() == {name: "é" * 255}  # type: ignore[arg-type]
    with pytest.raises(InvalidContextError, match=f"{name} has 256 characters; at most 255"):
        RequestContext().merge(**{name: "x" * 256})  # type: ignore[arg-type]


def test_a_user_agent_is_cut_off_as_clients_choose_its_length() -> None:
    assert RequestContext(user_agent="x" * 5000).user_agent == "x" * 1024


def test_an_empty_value_is_no_value() -> None:
    assert RequestContext(actor_id="", reason="") == RequestContext()


def test_an_unknown_field_is_refused_with_the_names_that_exist() -> None:
    with pytest.raises(
        TypeError, match=r"unknown context field: actor; valid fields are actor_id, actor_"
    ):
        RequestContext().merge(actor="u_1")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="valid fields are actor_id"), bind(user="u_1"):  # type: ignore[call-arg]
        pass


def test_a_mapping_is_no_context() -> None:
    who = {"actor_id": "u_1"}
    with pytest.raises(TypeError, match="must be a RequestContext, not dict; pass single fields"):
        RequestContext().merge(who)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not dict"), bind(who):  # type: ignore[arg-type]
        pass
    with bind(lambda: who), pytest.raises(TypeError, match="not dict"):  # type: ignore[arg-type]
        current_context()


def test_merge_lays_what_is_set_over_what_was() -> None:
    outer = RequestContext(actor_id="u_1", reason="outer")
    assert outer.merge(RequestContext(reason="inner")) == RequestContext(
        actor_id="u_1", reason="inner"
    )
    assert outer.merge(RequestContext(actor_id="u_2"), actor_id="u_3").actor_id == "u_3"
    assert outer.merge(reason=None) == RequestContext(actor_id="u_1")


def test_set_local_sets_every_field_and_changes_only_what_differs() -> None:
    before, after = (
        RequestContext(actor_id="u_1", ip="::1"),
        RequestContext(actor_id="u_2", ip="::1"),
    )
    statements = set_local(before, lambda text: f"<{text}>")
    assert len(statements) == len(SETTINGS)
    assert statements[0] == "set local app.actor_id = <u_1>"
    assert "set local app.reason = ''" in statements
    assert set_local_changes(before, after, repr) == ["set local app.actor_id = 'u_2'"]


def test_bind_nests_and_ends() -> None:
    assert current_context() == RequestContext()
    with bind(actor_id="u_1", reason="outer"):
        with bind(RequestContext(org_id="o_1"), reason=None):
            assert current_context() == RequestContext(actor_id="u_1", org_id="o_1")
        assert current_context() == RequestContext(actor_id="u_1", reason="outer")
    assert current_context() == RequestContext()


def test_bind_ends_when_an_exception_leaves_it() -> None:
    with pytest.raises(ZeroDivisionError), bind(actor_id="u_1"):
        raise ZeroDivisionError
    assert current_context() == RequestContext()


def test_a_function_is_asked_each_time_and_what_is_bound_inside_goes_over_it() -> None:
    actor = ["u_1"]
    with (
        bind(org_id="o_1"),
        bind(lambda: RequestContext(actor_id=actor[0]), auth_method="session"),
        bind(reason="because"),
    ):
        actor[0] = "u_2"
        assert current_context() == RequestContext(
            actor_id="u_2", org_id="o_1", auth_method="session", reason="because"
        )


def test_a_wrong_value_is_refused_by_bind_itself_behind_a_function_too() -> None:
    with bind(RequestContext), pytest.raises(InvalidContextError), bind(ip="nowhere"):
        pass


def test_tasks_inherit_and_do_not_share() -> None:
    async def worker(name: str, barrier: asyncio.Barrier) -> str | None:
        with bind(actor_id=name):
            await barrier.wait()
            seen = current_context()
            await barrier.wait()
            assert seen.org_id == "o_1"
            return seen.actor_id

    async def main() -> None:
        barrier = asyncio.Barrier(5)
        names = [f"u_{number}" for number in range(5)]
        with bind(org_id="o_1"):
            assert await asyncio.gather(*(worker(name, barrier) for name in names)) == names
            assert current_context() == RequestContext(org_id="o_1")

    asyncio.run(main())


def test_threads_see_nothing_of_each_other() -> None:
    barrier = threading.Barrier(4)
    seen: dict[str, tuple[str | None, str | None]] = {}

    def worker(name: str) -> None:
        before = current_context().actor_id
        with bind(actor_id=name):
            barrier.wait(10)
            seen[name] = (before, current_context().actor_id)
            barrier.wait(10)

    with bind(actor_id="u_main"):
        threads = [threading.Thread(target=worker, args=(f"u_{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == {f"u_{n}": (None, f"u_{n}") for n in range(4)}
