"""Builds the site: pages from outside docs/, links to files, docstrings.

MkDocs calls the functions `on_…` (its setting `hooks`); Griffe, which reads the
docstrings for the reference, loads `Docstrings` (`extensions`).

The pages are written for a reader of the repository: they link to
`../README.md` or `../lstm_jax/cells/lstm.py`. On the site, the Markdown files
outside docs/ are pages too, and the other files that a page links are copied
into `files/`. A link to a directory becomes its text if that is code, or else
the path of the directory.
"""

import posixpath
import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {
  "README.md": "index.md",
  "CHANGELOG.md": "changelog.md",
  "CONTRIBUTING.md": "contributing.md",
  "data/README.md": "data.md",
  "experiments/README.md": "notebook.md",
}
LINK = re.compile(r"(\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^)\s#]+)(#[^)\s]*)?\)")
SECTIONS = "Args:", "Returns:", "Raises:", "Yields:", "Attributes:"


def on_files(files, config):
  """Add the pages from outside docs/ to the site."""
  for path, page in PAGES.items():
    text = (ROOT / path).read_text("utf-8")
    files.append(File.generated(config, page, content=text))
  return files


def on_page_markdown(markdown, page, config, files):
  """Rewrite the links of a page from the repository's paths to the site's."""
  sources = {page: path for path, page in PAGES.items()}
  here = page.file.src_uri
  source = sources.get(here, f"docs/{here}")

  def rewrite(match):
    text, path, anchor = match[1], match[2], match[3] or ""
    if re.match(r"[a-z]+:", path):
      return match[0]
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if (ROOT / target).is_dir():
      return text[1:-1] if "`" in text else f"`{target}`"
    on_site = PAGES.get(target) or (
      target.removeprefix("docs/")
      if target.startswith("docs/")
      else _copied(target, config, files)
    )
    relative = posixpath.relpath(on_site, posixpath.dirname(here) or ".")
    return f"{text}({relative}{anchor})"

  blocks = re.split(r"(^```.*?^```)", markdown, flags=re.M | re.S)
  blocks[::2] = [LINK.sub(rewrite, prose) for prose in blocks[::2]]
  return "".join(blocks)


def _copied(target, config, files):
  """Copy a file of the repository to the site; return its place there."""
  place = f"files/{target}"
  if not re.search(r"\.(png|svg|json|html)$", target):
    place += ".txt"  # which a browser shows, and does not download
  if place not in files.src_uris:
    content = (ROOT / target).read_bytes()
    files.append(File.generated(config, place, content=content))
  return place


class Docstrings(griffe.Extension):
  """Prepares the docstrings of the library for Markdown."""

  def on_object(self, *, obj, **kwargs):
    """Keep the lines of equations and examples apart, as they are written."""
    if obj.docstring:
      obj.docstring.value = fenced(obj.docstring.value)

  def on_class(self, *, cls, **kwargs):
    """List a NamedTuple's fields, with the comments that end their lines.

    A docstring that lists them itself is given their types.
    """
    if not any(str(base).endswith("NamedTuple") for base in cls.bases):
      return
    listed = cls.docstring and "\nAttributes:\n" in cls.docstring.value
    fields = []
    for name, member in [*cls.members.items()]:
      if not member.is_attribute or "property" in member.labels:
        continue
      field = f"  {name} ({member.annotation}):"
      comment = member.source.partition("#")[2].strip().replace("\n", " ")
      fields.append(f"{field} {comment}")
      if listed:
        text = cls.docstring.value
        cls.docstring.value = text.replace(f"\n  {name}:", f"\n{field}", 1)
      del cls.members[name]
    if cls.docstring and fields and not listed:
      cls.docstring.value += "\n\nAttributes:\n" + "\n".join(fields)


def fenced(docstring):
  """Return a docstring whose indented paragraphs are blocks of code.

  A paragraph with an indented line is an equation, an example or a table,
  unless it is a Google section, a list or a list of references.
  """
  result, in_section = [], False
  for paragraph in re.split(r"\n{2,}", docstring):
    lines = paragraph.split("\n")
    in_section = lines[0] in SECTIONS or (in_section and lines[0][:1] == " ")
    is_text = (
      in_section
      or lines[0].lstrip().startswith(("-", "1.", "Reference"))
      or not any(line.startswith("  ") for line in lines)
    )
    if not is_text:
      if lines[0].startswith("  "):
        paragraph = "\n".join(line.removeprefix("  ") for line in lines)
      language = "pycon" if ">>>" in paragraph else "text"
      paragraph = f"```{language}\n{paragraph}\n```"
    result.append(paragraph)
  return "\n\n".join(result)
