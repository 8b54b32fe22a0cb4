"""Findings about the old AQR, on screen."""

from collections.abc import Sequence

from rich.table import Table

from benchmarks.old_aqr.findings import Finding, Row


def finding_table(finding: Finding, rows: Sequence[Row]) -> Table:
    """A finding's numbers: the old code's beside ours."""
    table = Table(
        title=finding.title, caption=finding.note, title_justify="left", caption_justify="left", width=88
    )
    table.add_column("", ratio=1)
    table.add_column("old", justify="right")
    table.add_column("ours", justify="right")
    for row in rows:
        table.add_row(row.quantity, format(row.old, row.form), format(row.ours, row.form))
    return table
