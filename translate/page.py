"""What our HTML pages share: one calm style for light and dark, and writing them whole or not at all. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

from translate.errors import UserError
from translate.writing import write_text

# Transparent parts of a picture show a chequered ground, drawn by two gradients.
PAGE_STYLE = """
:root { color-scheme: light dark; --ground: #f6f6f4; --card: #fff; --text: #1c1c1a; --soft: #6b6b66;
  --line: #dededa; --check: #e9e9e6; --alarm: #a3290f; }
@media (prefers-color-scheme: dark) { :root { --ground: #161617; --card: #202022; --text: #ececea;
  --soft: #a0a09a; --line: #353538; --check: #2b2b2e; --alarm: #ff9b82; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1500px; padding: 2rem 1.25rem 4rem; background: var(--ground);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 1rem; } h2 { font-size: 1.1rem; margin: 0 0 .5rem; }
h3 { font-size: .9rem; margin: 0; overflow-wrap: anywhere; }
dl { display: flex; flex-wrap: wrap; gap: .75rem 2rem; margin: 0 0 1.5rem; }
dt { color: var(--soft); font-size: .78rem; } dd { margin: 0; overflow-wrap: anywhere; }
section, article { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
section { padding: 1rem 1.25rem; margin-bottom: 1.5rem; } article { padding: .9rem; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th { text-align: left; color: var(--soft); font-weight: 500; }
td { border-top: 1px solid var(--line); padding: .35rem 1rem .35rem 0; overflow-wrap: anywhere; }
article header { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem;
  margin-bottom: .6rem; }
article header p { margin: 0; color: var(--soft); font-size: .8rem; font-variant-numeric: tabular-nums; }
.pictures { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; gap: .6rem; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .78rem; margin-top: .2rem; }
img { display: block; width: 100%; height: auto; border-radius: 5px;
  background: repeating-conic-gradient(var(--check) 0 25%, transparent 0 50%) 0 0 / 16px 16px; }
.remark { margin: .5rem 0 0; font-size: .85rem; color: var(--alarm); }
"""


def fact_list(facts: Mapping[str, str]) -> str:
    """What the head of a page says: name above value, side by side; both are escaped."""
    pairs = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f"<dl>{pairs}</dl>"


def html_page(title: str, body: str, *, style: str = "", head: str = "") -> str:
    """A whole page around `body`, which is HTML, as `style` (laid over PAGE_STYLE) and `head`; `title` is escaped."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{head}<title>{escape(title)}</title>\n<style>{PAGE_STYLE}{style}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def write_page(page: Path, text: str) -> Path:
    """Write the page whole or not at all; UserError where that cannot be done."""
    try:
        write_text(page, text)
    except OSError as error:
        raise UserError(f"{page}: the report cannot be written ({error.strerror or error})") from None
    return page
