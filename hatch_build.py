"""Put the database's sources and the manual into the wheel; not into an editable install."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class SharedFolders(BuildHookInterface[Any]):
    """Hatchling would copy force-included folders into editable installs too, to go stale there."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add sql/, migrations/ and docs/ to a real wheel."""
        if version == "standard":
            for folder in ("sql", "migrations"):
                build_data["force_include"][folder] = f"pgaudit_wf/_database/{folder}"
            build_data["force_include"]["docs"] = "pgaudit_wf/_docs"
