"""The report's page: plain, self-contained HTML without scripts."""

import base64
from collections.abc import Mapping, Sequence
import dataclasses
import html
import pathlib

NOT_MEASURED = '<p class="note">Not measured.</p>'


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of a table: its name, its cells and what it is ("main", "floor" or "")."""

  name: str
  cells: Sequence[str]
  kind: str = ""
  won: frozenset[int] = frozenset()  # cells that beat their floor


def escape(text: object) -> str:
  """Returns text that is safe between tags and in attributes."""
  return html.escape(str(text), quote=True)


def table(head: Sequence[str], rows: Sequence[Row], caption: str = "") -> str:
  """Returns a table that scrolls sideways on a small screen."""
  columns = "".join(f'<th scope="col">{escape(h)}</th>' for h in head)
  body = "".join(_row(r) for r in rows)
  title = f"<caption>{escape(caption)}</caption>" if caption else ""
  return (
    f'<div class="scroll"><table>{title}<thead><tr>{columns}</tr></thead>'
    f"<tbody>{body}</tbody></table></div>"
  )


def _row(row: Row) -> str:
  cells = "".join(
    f'<td class="won">{escape(c)}</td>' if i in row.won else f"<td>{escape(c)}</td>"
    for i, c in enumerate(row.cells)
  )
  kind = f' class="{row.kind}"' if row.kind else ""
  return f'<tr{kind}><th scope="row">{escape(row.name)}</th>{cells}</tr>'


def picture(path: pathlib.Path, alt: str, caption: str = "") -> str:
  """Returns a figure with the PNG inside the page."""
  data = base64.b64encode(path.read_bytes()).decode()
  below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
  image = f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}">'
  return f"<figure>{image}{below}</figure>"


def cards(items: Sequence[tuple[str, str, bool]]) -> str:
  """Returns the headline numbers: (value, what it is, whether it beats its floor)."""
  inside = "".join(
    f'<div class="card{" good" if good else ""}"><b>{escape(value)}</b>'
    f"<span>{escape(name)}</span></div>"
    for value, name, good in items
  )
  return f'<div class="cards">{inside}</div>' if items else ""


def facts(items: Mapping[str, object]) -> str:
  """Returns a list of names and values."""
  inside = "".join(
    f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in items.items()
  )
  return f"<dl>{inside}</dl>"


def details(summary: str, text: str) -> str:
  """Returns long text that opens on demand."""
  return (
    f"<details><summary>{escape(summary)}</summary>"
    f'<pre tabindex="0">{escape(text)}</pre></details>'
  )


def section(anchor: str, title: str, parts: Sequence[str]) -> str:
  """Returns a section; without parts it says that nothing was measured."""
  body = "".join(p for p in parts if p) or NOT_MEASURED
  return f'<section id="{anchor}"><h2>{escape(title)}</h2>{body}</section>'


def page(
  title: str, lead: str, top: str, sections: Sequence[tuple[str, str, Sequence[str]]]
) -> str:
  """Returns the whole page.

  Args:
    title: of the page.
    lead: one sentence below the title.
    top: HTML between the lead and the sections.
    sections: (anchor, title, parts of HTML).
  """
  style = (pathlib.Path(__file__).parent / "report.css").read_text()
  links = "".join(f'<a href="#{a}">{escape(t)}</a>' for a, t, _ in sections)
  body = "".join(section(*s) for s in sections)
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>
<nav aria-label="Sections">{links}</nav></header>
{top}
{body}
<footer>Made by tools/report.py.</footer>
</main>
</body>
</html>
"""
