"""Where the pages of the manual are, for help texts and errors that point to one."""

from pathlib import Path


def page(name: str) -> str:
    """Return the path of a page of docs/ (`how-to/alerts.md`), in the wheel or the checkout."""
    packaged = Path(__file__).with_name("_manual")
    root = packaged if packaged.is_dir() else Path(__file__).parents[2]
    return str(root / "docs" / name)
