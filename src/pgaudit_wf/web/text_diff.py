"""A changed text as people read it: word by word for prose, line by line for code and JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise

from pgaudit_wf.errors import DefinitionError
from pgaudit_wf.exact_json import dumps, loads

# Up to this, both texts fit a line.
_SHORT = 60
_LONGEST = 20_000
# Comparing takes the square of this in the worst case.
_PIECES = 600
_NEAR = 40
_LINES_AROUND = 2
_JSON = 200_000
_PIECE = re.compile(r"\w+\s*|[^\w\s]\s*|\s+")
_CODE = re.compile(r"[{};,(:\[]\s*$|^\s{2,}\S|^\s*[}\])]", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the comparison; `tone` is "add", "remove", "gap" for what is left out, or ""."""

    tone: str
    text: str


@dataclass(frozen=True, slots=True)
class Delta:
    """A changed value under its name.

    Short values are only `before` and `after`; of long ones those are the first difference, and
    `parts` is the comparison, `by_line` or by word. `is_cut` says that something is missing.
    """

    name: str
    before: str
    after: str
    parts: tuple[Part, ...] = ()
    by_line: bool = False
    is_cut: bool = False

    @property
    def size(self) -> int:
        """How many characters it takes on a page."""
        texts = (self.name, self.before, self.after, *(part.text for part in self.parts))
        return sum(map(len, texts))

    @property
    def changes(self) -> int:
        """How many places differ, as far as they are shown."""
        tones = ["", *(part.tone for part in self.parts)]
        changed = [tone in ("add", "remove") for tone in tones]
        return sum(now and not before for before, now in pairwise(changed))


def compare(name: str, before: str, after: str, *, thorough: bool = True) -> Delta:
    """Compare two texts.

    Args:
        name: What the value is called.
        before: The earlier text.
        after: The later one.
        thorough: Look for what is the same between the first and the last difference.
    """
    if max(len(before), len(after)) <= _SHORT and "\n" not in before + after:
        return Delta(name, before, after)
    if thorough:
        before, after = _laid_out(before, after)
    by_line = "\n" in before + after and _is_code(before, after)
    start, end = _same_ends(before, after, "\n" if by_line else None)
    old, new = before[start : len(before) - end], after[start : len(after) - end]
    longest = _LONGEST if thorough else 4 * _SHORT
    is_cut = max(len(old), len(new)) > longest
    old, new = old[:longest], new[:longest]
    middle = _changes(old, new, by_line) if thorough else _replaced(old, new)
    around = (Part("", before[:start]), *middle, Part("", before[len(before) - end :]))
    parts = tuple(part for part in _shortened(around, by_line) if part.text)
    first = {part.tone: part.text.strip() for part in reversed(parts)}
    return Delta(
        name,
        _begin(first.get("remove", "")),
        _begin(first.get("add", "")),
        parts,
        by_line,
        is_cut,
    )


def _begin(text: str) -> str:
    line = " ".join(text[: 2 * _SHORT].split())
    return line if len(line) <= _SHORT and len(text) <= 2 * _SHORT else f"{line[:_SHORT]}…"


def _laid_out(before: str, after: str) -> tuple[str, str]:
    """JSON in one line cannot be compared by line."""
    if not all(text[:1] in ("{", "[") and len(text) <= _JSON for text in (before, after)):
        return before, after
    try:
        return dumps(loads(before), 2), dumps(loads(after), 2)
    except (ValueError, DefinitionError, RecursionError):
        return before, after


def _is_code(*texts: str) -> bool:
    lines = [line for text in texts for line in text[:_LONGEST].splitlines() if line.strip()]
    return 3 * sum(bool(_CODE.search(line)) for line in lines) >= len(lines)


def _same_ends(before: str, after: str, edge: str | None) -> tuple[int, int]:
    """How long the same beginning and the same end are, up to an edge of a word or line."""
    start = _same(before, after)
    if start < max(len(before), len(after)):
        start = _last_edge(before[:start], edge)
    if max(len(before), len(after)) - start > _JSON:
        return start, 0
    rest, other = before[start:][::-1], after[start:][::-1]
    return start, _last_edge(rest[: _same(rest, other)], edge)


def _same(one: str, other: str) -> int:
    low, high = 0, min(len(one), len(other))
    # Slices are compared faster than characters one by one.
    while low < high:
        half = (low + high + 1) // 2
        if one[low:half] == other[low:half]:
            low = half
        else:
            high = half - 1
    return low


def _last_edge(text: str, edge: str | None) -> int:
    if edge is not None:
        return text.rfind(edge) + 1
    while text and (text[-1].isalnum() or text[-1] == "_"):
        text = text[:-1]
        if len(text) % 1000 == 0:
            break
    return len(text)


def _changes(old: str, new: str, by_line: bool) -> Iterator[Part]:
    before, after = (
        text.splitlines(keepends=True) if by_line else _PIECE.findall(text) for text in (old, new)
    )
    if max(len(before), len(after)) > _PIECES:
        yield from _replaced(old, new)
        return
    opcodes = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    for tone, first, last, begin, end in opcodes:
        if tone == "equal":
            yield Part("", "".join(before[first:last]))
        else:
            yield from _replaced("".join(before[first:last]), "".join(after[begin:end]))


def _replaced(old: str, new: str) -> Iterator[Part]:
    if old:
        yield Part("remove", old)
    if new:
        yield Part("add", new)


def _shortened(parts: Sequence[Part], by_line: bool) -> Iterator[Part]:
    """The same text between changes shrinks to what is next to them."""
    for place, part in enumerate(parts):
        if part.tone:
            yield part
            continue
        head, tail = (place > 0, place < len(parts) - 1)
        if by_line:
            lines = part.text.splitlines(keepends=True)
            kept = lines[: _LINES_AROUND * head], lines[max(len(lines) - _LINES_AROUND * tail, 0) :]
            missing = len(lines) - len(kept[0]) - len(kept[1])
            if missing <= 1:
                yield part
                continue
            yield Part("", "".join(kept[0]))
            yield Part("gap", f"{missing:,} lines")
            yield Part("", "".join(kept[1]))
        elif len(part.text) <= _NEAR * (head + tail) + 20:
            yield part
        else:
            yield Part("", part.text[: _NEAR * head])
            yield Part("gap", "…")
            yield Part("", part.text[len(part.text) - _NEAR * tail :])
