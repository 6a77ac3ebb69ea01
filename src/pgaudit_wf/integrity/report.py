"""The result of a verification."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from pgaudit_wf.integrity.configuration import Untold

Kind = Literal["altered", "removed", "inserted", "reordered", "tree", "checkpoint", "chain"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that differs from what was sealed.

    `kind` is altered, removed, inserted or reordered for events and versions, tree for tiles and
    leaves, checkpoint for signatures and roots, chain for the numbers that an organization's leaves
    have. `leaf_index`, `event_id`, `workflow_id` and `version` identify it, if applicable;
    `intact_at` is when it was sealed, so it changed later.
    """

    kind: Kind
    message: str
    leaf_index: int | None = None
    event_id: int | None = None
    workflow_id: str | None = None
    version: int | None = None
    intact_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Voucher:
    """An outside party vouches for the log.

    Attributes:
        by: The witness or time-stamp authority.
        at: The time that it signed.
        size: The number of leaves that it vouches for.
    """

    by: str
    at: datetime
    size: int


@dataclass
class Report:
    """The result of a verification.

    Attributes:
        leaves: Leaves in the tree.
        events: Events that match what was sealed.
        versions: Versions of workflows that match what was sealed.
        erased: Leaves with parts removed by a recorded erasure; their other parts match.
        pruned: Events that retention pruned; the tree still proves their leaves.
        pruned_leaves: Ranges of these leaves: the first, and the one after the last.
        archived: How many of these were checked in archives.
        unsealed: Events that no leaf covers yet.
        unsealed_versions: Versions that no leaf covers yet.
        checkpoints: Checkpoints with a valid signature and root, including those given by file.
        unsigned: Checkpoints that are not signed yet.
        untold: What sealers found changed of the configuration, of which nothing had told.
        vouched: The newest word of each outside party, the newest first; filled in by
            `verify_vouchers`.
        problems: The problems, in the order of the tree; only the first ones are kept.
        found: The total number of problems.
    """

    leaves: int = 0
    events: int = 0
    versions: int = 0
    erased: int = 0
    pruned: int = 0
    pruned_leaves: list[tuple[int, int]] = field(default_factory=list)
    archived: int = 0
    unsealed: int = 0
    unsealed_versions: int = 0
    checkpoints: int = 0
    unsigned: int = 0
    untold: list[Untold] = field(default_factory=list)
    vouched: list[Voucher] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    found: int = 0

    @property
    def holds(self) -> bool:
        """Whether there are no problems."""
        return self.found == 0

    @property
    def vouched_until(self) -> datetime | None:
        """The newest time to which an outside party vouches."""
        return self.vouched[0].at if self.vouched else None
