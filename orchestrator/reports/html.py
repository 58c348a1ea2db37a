"""Builds HTML pages that load nothing from elsewhere: a document, and its sections."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

STYLE = Path(__file__).with_name("report.css")


def document(title: str, sections: Sequence[str]) -> str:
    """The HTML of a page of its own."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)} - fewstep</title>\n<style>\n{STYLE.read_text()}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(filter(None, sections)) + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, body: str, note: str) -> str:
    """A part of the page; nothing where there is nothing to show."""
    if not body:
        return ""
    paragraph = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return f"<section><h2>{html.escape(title)}</h2>{paragraph}{body}</section>"
