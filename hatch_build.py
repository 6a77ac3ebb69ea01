"""Put the database's sources and the manual into the wheel; not into an editable install."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class SharedFolders(BuildHookInterface[Any]):
    """Hatchling would copy force-included folders into editable installs too, to go stale there."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add sql/, migrations/ and the manual to a real wheel."""
        if version == "standard":
            for folder in ("sql", "migrations"):
                build_data["force_include"][folder] = f"pgaudit_wf/_database/{folder}"
            # Pages link to files beside docs/: they have to be there, too.
            pages = sorted(page.name for page in Path(self.root).glob("*.md"))
            for name in ("docs", "benchmarks/README.md", "LICENSE", *pages):
                build_data["force_include"][name] = f"pgaudit_wf/_manual/{name}"
