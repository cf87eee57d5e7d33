"""Tables as HTML for notebooks: what `_repr_html_` of the public objects returns."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def html_table(rows: Sequence[Sequence[object]], header: Sequence[str] = (), caption: str = "") -> str:
    """A plain table; every text is escaped, so names from files stay text."""
    parts = ["<table>"]
    if caption:
        parts.append(f'<caption style="text-align: left">{escape(caption)}</caption>')
    if header:
        parts.append(f"<thead><tr>{''.join(f'<th>{escape(one)}</th>' for one in header)}</tr></thead>")
    parts.append("<tbody>")
    parts += [f"<tr>{''.join(f'<td>{escape(str(one))}</td>' for one in row)}</tr>" for row in rows]
    return "".join([*parts, "</tbody></table>"])
