"""A page that stands alone: one HTML file without script and without any request, and the tables in it."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

STYLE = Path(__file__).with_name("html_report.css")


def page(title: str, body: Iterable[str]) -> str:
    """The whole file; `title` is text, `body` is HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def pairs_list(pairs: Mapping[str, Any]) -> str:
    """Names and values, both text."""
    return f"<dl>{''.join(f'<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>' for key, value in pairs.items())}</dl>"


def html_table(head: Sequence[str], rows: Iterable[tuple[list[str], str]]) -> str:
    """A table that scrolls in a box of its own; cells of rows are HTML already, the head is text.

    Args:
        head: names of the columns.
        rows: the cells of each, and its CSS class.
    """
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f'<tr class="{kind}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>' for cells, kind in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
