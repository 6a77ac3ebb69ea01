"""What a verification found."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

Kind = Literal["altered", "removed", "inserted", "reordered", "tree", "checkpoint"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it was sealed.

    `kind` is altered, removed, inserted or reordered for events and versions, tree for tiles and
    leaves, checkpoint for signatures and roots. `leaf_index`, `event_id`, `workflow_id` and
    `version` say which, where it is one; `intact_at` is when it was sealed, so it happened later.
    """

    kind: Kind
    message: str
    leaf_index: int | None = None
    event_id: int | None = None
    workflow_id: str | None = None
    version: int | None = None
    intact_at: datetime | None = None


@dataclass
class Report:
    """What a verification found.

    Attributes:
        leaves: Leaves in the tree.
        events: Events that are as they were sealed.
        versions: Versions of workflows that are as they were sealed.
        erased: Leaves of which something was erased by a recorded erasure; the rest of each holds.
        pruned: Events that retention let go of; their leaves are still proved by the tree.
        archived: Of these, how many were checked in archives.
        unsealed: Events that no leaf covers yet.
        unsealed_versions: Versions that no leaf covers yet.
        checkpoints: Checkpoints whose signature and root hold, those given by file included.
        unsigned: Checkpoints that wait for their signature.
        problems: What is wrong, in the order of the tree; only the first are kept.
        found: How many problems there are.
    """

    leaves: int = 0
    events: int = 0
    versions: int = 0
    erased: int = 0
    pruned: int = 0
    archived: int = 0
    unsealed: int = 0
    unsealed_versions: int = 0
    checkpoints: int = 0
    unsigned: int = 0
    problems: list[Problem] = field(default_factory=list)
    found: int = 0

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return self.found == 0
