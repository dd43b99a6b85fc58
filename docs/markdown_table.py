"""Markdown that the pages include."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; numbers stay on the line of their percent sign."""

    def text(cell: str) -> str:
        return cell.replace("|", "\\|").replace(" %", "\N{NO-BREAK SPACE}%")

    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(text, line)) + " |\n" for line in lines)
