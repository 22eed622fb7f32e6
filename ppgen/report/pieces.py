"""Pieces that all pages are made of: the document, its sections, embedded figures, numbers kept whole."""

from __future__ import annotations

import base64
import datetime
from html import escape
from importlib import resources
from pathlib import Path


def document(title: str, body: str) -> str:
    """A whole HTML document that needs nothing beside it."""
    css = resources.files("ppgen.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def section(name: str, title: str, content: str) -> str:
    """A part of the page under a heading that links lead to."""
    return f'<section aria-labelledby="{name}">\n<h2 id="{name}">{escape(title)}</h2>\n{content}\n</section>'


def figure(stem: Path, caption: str, alt: str, css: str = "", place: str = "") -> str:
    """A figure with its picture embedded, and the dark one where there is one; nothing without a file."""
    light, dark = stem.with_suffix(".png"), stem.with_name(f"{stem.name}-dark.png")
    if not light.is_file():
        return ""
    image = f'<img class="{css}" alt="{escape(alt)}" src="{_data_uri(light)}">'
    if dark.is_file():
        media = "screen and (prefers-color-scheme: dark)"
        image = f'<picture><source media="{media}" srcset="{_data_uri(dark)}">{image}</picture>'
    return f'<figure class="{place}">{image}<figcaption>{escape(caption)}</figcaption></figure>'


def facts(items: list[tuple[str, object]]) -> str:
    """Short figures in a line, each after its name."""
    inner = "".join(f"<li>{escape(k)} <b>{escape(str(v))}</b></li>" for k, v in items)
    return f'<ul class="facts">{inner}</ul>'


def unbroken(text: str) -> str:
    """The text with no line break between a sign, a number and its error."""
    return text.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}").replace("≤ ", "≤\N{NO-BREAK SPACE}")


def day(moment: str) -> str:
    """A moment in ISO form as a date to read."""
    return datetime.datetime.fromisoformat(moment).strftime("%-d %B %Y")


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
