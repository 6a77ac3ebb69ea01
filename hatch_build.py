"""Put the database's sources into the wheel; an editable install reads the repository's own."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class DatabaseSources(BuildHookInterface[Any]):
    """Hatchling would copy force-included folders into editable installs too, to go stale there."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add sql/ and migrations/ to a real wheel."""
        if version == "standard":
            for folder in ("sql", "migrations"):
                build_data["force_include"][folder] = f"pgaudit_wf/_database/{folder}"
