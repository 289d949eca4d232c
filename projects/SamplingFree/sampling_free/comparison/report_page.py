"""The HTML of a report: one file without scripts, for a screen, a phone and paper.

Every text that comes in is escaped here, and nowhere else.
"""

import base64
import io
from html import escape

from PIL import Image
from tabulate import tabulate

PICTURE_WIDTH = 1400  # pixels; the overview of four pictures has 1300

CSS = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 0 16px 48px; max-width: 1240px; background: #fff; color: #1a1a1a;
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 28px 0 8px; }
h2 { font-size: 1.25rem; margin: 24px 0 4px; padding-top: 12px; border-top: 1px solid #ddd; }
h3 { font-size: 1rem; margin: 20px 0 4px; }
p { margin: 4px 0 10px; max-width: 75ch; }
.missing, .caution { background: #fff6df; border-left: 4px solid #e69f00; padding: 6px 12px; }
.legend { list-style: none; margin: 8px 0; padding: 0; display: flex; flex-wrap: wrap;
  gap: 4px 20px; font-size: .92rem; }
.legend svg { vertical-align: middle; margin-right: 6px; }
.scroll { overflow-x: auto; margin: 10px 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 9px; border-bottom: 1px solid #ddd; vertical-align: top;
  overflow-wrap: normal; white-space: pre-line; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; text-align: left;
  min-width: 11em; overflow-wrap: anywhere; }
.facts td { overflow-wrap: anywhere; }
.facts td:first-child { color: #555; min-width: 6em; }
.grid { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); }
figure { margin: 0; break-inside: avoid; }
figcaption { font-weight: 600; font-size: .95rem; }
.grid img { width: 100%; max-width: 460px; height: auto; display: block; }
.wide img { width: 100%; min-width: 1200px; height: auto; display: block; }
@media (max-width: 700px) { .scroll th:first-child, .scroll td:first-child { min-width: 7.5em; } }
@media print { body { max-width: none; font-size: 11pt; } .scroll { overflow: visible; }
  table { font-size: 8pt; } th, td { padding: 2px 5px; } .wide img { min-width: 0; } }
"""


def page(title, parts):
    """str: the whole page; ``title`` is text, ``parts`` is HTML from the functions below."""
    body = "\n".join([f"<h1>{escape(title)}</h1>", *parts])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def heading(text):
    return f"<h2>{escape(text)}</h2>"


def small_heading(text):
    return f"<h3>{escape(text)}</h3>"


def paragraph(text):
    return f"<p>{escape(text)}</p>"


def caution(text):
    return f'<p class="caution">{escape(text)}</p>'


def missing(text):
    return f'<p class="missing">Missing: {escape(text)}.</p>'


def table(rows, head):
    """str: a table of texts that scrolls by itself where it is wider than the page.

    Beside the head and the first column only what is in brackets has a line of its own.
    """
    align = ["left"] + ["right"] * (len(head) - 1)
    rows = [[row[0], *map(_unbroken, row[1:])] for row in rows]
    html = tabulate(rows, head, tablefmt="html", disable_numparse=True, colalign=align)
    return f'<div class="scroll">{html}</div>'


def facts(rows):
    """str: a table of two columns, name and text, without a head."""
    html = tabulate(rows, tablefmt="html", disable_numparse=True)
    return f'<div class="facts">{html}</div>'


def legend(entries):
    """str: what the lines of the figures mean; ``entries`` are (text, color, dash pattern)."""
    items = []
    for text, color, dash in entries:
        line = (
            '<svg width="30" height="10" aria-hidden="true"><line x1="1" y1="5" x2="29" y2="5" '
            f'stroke="{escape(color)}" stroke-width="3" stroke-dasharray="{escape(dash)}"/></svg>'
        )
        items.append(f"<li>{line}{escape(text)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def grid(figures):
    """str: small figures side by side, as many as fit; ``figures`` are (caption, SVG)."""
    return (
        f'<div class="grid">{"".join(_figure(c, "svg+xml", s.encode()) for c, s in figures)}</div>'
    )


def picture(caption: str, path: str):
    """str: a picture as wide as the page, which scrolls by itself on a phone.

    Args:
        caption:
        path: of an image file.

    Raises:
        OSError: it is absent or torn.
    """
    out = io.BytesIO()
    with Image.open(path) as image:
        image = image.convert("RGB")
    image.thumbnail((PICTURE_WIDTH, 4 * PICTURE_WIDTH))
    image.save(out, format="JPEG", quality=75, optimize=True)
    return f'<div class="scroll wide">{_figure(caption, "jpeg", out.getvalue())}</div>'


def _unbroken(text):
    return text.replace(" (", "\n(").replace(" ", "\N{NO-BREAK SPACE}")


def _figure(caption, kind, data):
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    text = escape(caption)
    return f'<figure><figcaption>{text}</figcaption><img alt="{text}" src="{source}"></figure>'
