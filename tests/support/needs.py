"""What a test needs of the machine: skipped without it, except where it has to be there."""

import os
from typing import NoReturn

import pytest


def missing(what: str, required: bool = True) -> NoReturn:
    """Skip the test for want of something; fail it in CI, where a skipped test looks green.

    `required=False` is for what CI's machine may lack too, such as an extension that no package
    has for the server at hand.
    """
    if required and os.environ.get("CI", "").lower() not in ("", "0", "false"):
        pytest.fail(f"{what}, and CI has to have it")
    pytest.skip(what)
