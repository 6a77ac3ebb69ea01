"""Words to choose from, which help texts list: apart from what uses them, so that it loads fast."""

from typing import Literal, TypeAlias

Outcome: TypeAlias = Literal["succeeded", "failed", "denied"]
Format: TypeAlias = Literal["csv", "ndjson", "ocsf"]
