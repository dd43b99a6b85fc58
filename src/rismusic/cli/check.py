"""``rismusic check``: what is in a recording file, and what looks wrong with it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from rismusic.cli.command import Command


class Check(Command):
    """Say what is in a recording file, what looks wrong with it, and how far the near field reaches."""

    file: Positional[Path]
    """The recording: .h5, .npz or .mat."""
    as_json: Annotated[bool, arg(name="json")] = False
    """Print JSON in place of a table."""

    def run(self) -> int:
        """Print facts and findings; findings are no reason to fail."""
        from rich.console import Console
        from rich.table import Table

        from rismusic.check import check

        result = check(self.file)
        if self.as_json:
            print(json.dumps(dataclasses.asdict(result), indent=1, allow_nan=False))
            return 0
        console = Console()
        facts = Table(show_header=False, box=None)
        for name, value in result.facts.items():
            facts.add_row(name, value)
        console.print(facts)
        for finding in result.findings:
            console.print(
                f"\n[bold yellow]suspicious:[/] {finding.name}: {finding.meaning}: {finding.value:.3g}"
                f" (at most {finding.threshold:g}).\n  To try: {finding.remedy}."
            )
        if not result.findings:
            console.print("\nNothing suspicious.")
        return 0
