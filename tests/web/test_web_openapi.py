"""The OpenAPI document: schemathesis sends what it allows and forbids, and finds nothing."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from psycopg_pool import ConnectionPool
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from starlette.testclient import TestClient

from pgaudit_wf.web import create_app
from support.web_world import FLOW, World, sync_app, whoever_asks


def test_every_route_is_documented_with_its_problems(world: World) -> None:
    with TestClient(sync_app(world), headers={"x-test-user": "ana"}) as client:
        document = client.get("/openapi.json").json()
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    assert len(operations) >= 14
    for path, _, operation in operations:
        assert operation["summary"], path
        assert "401" in operation["responses"], path
        for status, response in operation["responses"].items():
            if not status.startswith("2"):
                assert list(response["content"]) == ["application/problem+json"], (path, status)
    assert "HTTPValidationError" not in document["components"]["schemas"]
    with_examples = [
        name
        for name, schema in document["components"]["schemas"].items()
        if "example" in str(schema)
    ]
    assert {"Event", "Diff", "Problem", "RestoreRequest", "Workflow"} <= set(with_examples)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_schemathesis_finds_nothing(world: World, mode: GenerationMode) -> None:
    who = {"x-test-user": "ana"}
    with (
        ConnectionPool(world.reader_dsn, min_size=1, max_size=4) as pool,
        ConnectionPool(world.writer_dsn, min_size=1, max_size=2) as write_pool,
        ConnectionPool(world.owner_dsn, min_size=1, max_size=2) as owner_pool,
    ):
        app = create_app(pool, whoever_asks, write_pool=write_pool, integrity_pool=owner_pool)
        schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=who)
        tried = 0
        for result in schema.get_all_operations():
            operation: Any = result.ok()  # type: ignore[union-attr]

            @settings(
                max_examples=20,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: schemathesis.Case[Any]) -> None:
                # Half of the workflows and runs asked for are there.
                for name, known in (("workflow_id", FLOW), ("execution_id", world.run)):
                    if name in case.path_parameters and len(case.path_parameters[name]) % 2:
                        case.path_parameters[name] = known
                # No schema tells a cursor of ours from one that is made up.
                opaque = {"after", "cursor"} & {*case.path_parameters, *case.query}
                # In an address, what is no list reads as a list of one.
                several = {"action", "resource_type", "actor_id"} & {
                    name.removeprefix("not_") for name in case.query
                }
                case.call_and_validate(
                    headers=who,
                    excluded_checks=[positive_data_acceptance] * bool(opaque)
                    + [negative_data_rejection] * bool(several),
                )

            try:
                check()
            except Unsatisfiable:
                # Nothing that the operation takes can be wrong.
                continue
            tried += 1
        assert tried >= 8
