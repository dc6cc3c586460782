"""`cnnfeat doctor`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cnnfeat.cli import console, flags, manual
from cnnfeat.errors import NetworkError


@manual.command(
    "What to examine",
    "cnnfeat doctor",
    "cnnfeat doctor --json",
)
@flags.common
@flags.data_dir
@flags.as_json
def doctor(*, data_dir: Path | None, as_json: bool) -> None:
    """Say what is there for cnnfeat to work with, and what to do about each gap.

    Versions, extras, the processor and GPUs, folders and data sets. Nothing is written. Exits 4
    where something is missing that cnnfeat can't do without.
    """
    from cnnfeat.doctor import examine

    findings = examine(data_dir=data_dir)
    if as_json:
        console.show_json([dataclasses.asdict(finding) for finding in findings])
    else:
        for group in dict.fromkeys(finding.group for finding in findings):
            console.show(group)
            console.show_facts(
                [
                    (f"  {one.name}", one.found + (f"  → {one.advice}" if one.advice else ""))
                    for one in findings
                    if one.group == group
                ]
            )
    broken = [finding.name for finding in findings if finding.broken]
    if broken:
        raise NetworkError(
            f"cnnfeat can't work without {', '.join(broken)}", hint="each line above says how"
        )
