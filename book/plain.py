"""Markdown that any notebook viewer understands, out of the book's MyST.

Colab, GitHub and VS Code show MyST's directives and roles as raw text. `Plain` rewrites a chapter's
Markdown: admonitions become block quotes, citations become names with links, labels and files of
the book become links to the printed site, numbered equations carry their number. What it does not
know is an error, for a reader would otherwise meet the raw text.
"""

from __future__ import annotations

import posixpath
import re
from functools import cached_property
from typing import Any

from book.source import Chapter, Source, SourceError, text_of

FENCE = re.compile(
    r"^(?P<indent>[ \t]*)(?P<marks>`{3,}|~{3,}|:{3,})[ \t]*"
    r"(?:\{(?P<name>[^}\s]+)\}[ \t]*(?P<argument>.*)|(?P<info>[^`]*))$"
)
LABEL = re.compile(r"^\((?P<label>[^()\s]+)\)=[ \t]*$")
HEADING = re.compile(r"^#{1,6}[ \t]+(?P<title>.+?)[ \t]*#*$")
MATH_LABEL = re.compile(r"^(?P<end>.*\$\$)[ \t]*\((?P<label>[^()\s]+)\)[ \t]*$")
AMSMATH = re.compile(
    r"^\\begin\{(?P<name>(?:align|gather|equation|multline|alignat|eqnarray)\*?)\}"
)
OPTION = re.compile(r"^:(?P<key>[\w-]+):[ \t]*(?P<value>.*)$")
LINK = re.compile(
    r"(?P<image>!?)\[(?P<text>(?:[^\[\]\\]|\\.|\[[^\[\]]*\])*)\]\((?P<target>[^()\s]*)\)"
)
RAW = re.compile(
    r"^[>\s]*(?:`{3,}|~{3,}|:{3,})[ \t]*\{[^}\s]+\}|\{[A-Za-z][\w:+-]*\}`|^\([\w-]+\)=$", re.M
)
INLINE = re.compile(
    r"""
    (?P<escape>\\.)
  | \{(?P<role>[A-Za-z][\w:+.-]*)\}(?P<ticks>`+)(?P<body>.+?)(?<!`)(?P=ticks)(?!`)
  | (?P<code>(?P<marks>`+)(?!`).+?(?<!`)(?P=marks)(?!`))
  | (?P<display>\$\$.+?\$\$)
  | (?P<math>\$(?!\s)(?:[^$\\]|\\.)+?\$)
  | (?P<comment><!--.*?-->)
  | (?P<link>!?\[(?:[^\[\]\\]|\\.|\[[^\[\]]*\])*\]\([^()\s]*\))(?P<linkattrs>\{[.#\w][^{}]*\})?
  | \[(?P<footnote>\^[\w-]+)\](?P<defines>:)?
  | \[(?P<span>[^\[\]]*)\]\{[.#][^{}]*\}
  | (?P<auto><(?:doc|project|path|inv):[^>]*>)
  | \{\{(?P<substitution>[^{}]+)\}\}
    """,
    re.X | re.S,
)

ADMONITIONS = (
    "attention caution danger error hint important note seealso tip warning admonition".split()
)
ASIDES = ("margin", "sidebar", "aside", "topic", "epigraph", "pull-quote", "highlights")
WRAPPERS = ("div", "grid", "tab-set", "card-carousel", "container", "centered")
TITLED = ("card", "grid-item-card", "tab-item", "grid-item")
SILENT = ("contents", "tableofcontents", "index", "bibliography-style")
CODE = ("code", "code-block", "sourcecode")


class Plain:
    """Rewrites the Markdown of one chapter."""

    def __init__(
        self, source: Source, chapter: Chapter, labels: dict[str, tuple[str, str]] | None = None
    ):
        self.source, self.chapter = source, chapter
        self.labels = labels_of(source) if labels is None else labels
        self.folder = posixpath.dirname(chapter.docname)
        self.page = f"{source.site}{chapter.docname}.html"
        self.printed = {other.docname: other for other in source.chapters}
        self.cited: dict[str, None] = {}
        self.equations: dict[str, int] = {}
        self.wanted: set[str] = set()
        """Anchors within this chapter that something in it points to."""
        self.here: set[str] = set()
        self.notes: dict[str, int] = {}
        cells = chapter.notebook.get("cells", [])
        texts = [text_of(c) for c in cells if c.get("cell_type") == "markdown"]
        self._scan("\n\n".join(texts))

    def _scan(self, text: str) -> None:
        """Number the equations and find the anchors before anything is written."""
        lines = _without_code(text).split("\n")
        for line in lines:
            for found in (MATH_LABEL.match(line), re.match(r"^:label:\s*(?P<label>\S+)$", line)):
                if found:
                    self.equations.setdefault(found["label"], len(self.equations) + 1)
            if found := LABEL.match(line):
                self.here.add(found["label"])
            if found := HEADING.match(line):
                self.here.add(slug(found["title"]))
        self.wanted = {
            found["target"][1:] for found in LINK.finditer(text) if found["target"][:1] == "#"
        }

    # ---------------------------------------------------------------- blocks

    def text(self, text: str) -> str:
        """The same in plain Markdown.

        Raises
        ------
        SourceError
            something that has no translation; the message quotes it.
        """
        made = self.blocks(text.split("\n"))
        left = RAW.search(_without_code(made))
        if left:
            raise SourceError(f"cannot translate {left[0].strip()!r} for Colab")
        return re.sub(r"\n{3,}", "\n\n", made).strip("\n")

    def blocks(self, lines: list[str]) -> str:
        made: list[str] = []
        prose: list[str] = []

        def flush() -> None:
            if prose:
                made.append(self.inline("\n".join(prose)))
                prose.clear()

        at = 0
        while at < len(lines):
            line = lines[at]
            fence = FENCE.match(line)
            if fence and (fence["marks"][0] != ":" or fence["name"]):
                flush()
                end = _close(lines, at, fence)
                body = [_dedent(row, fence["indent"]) for row in lines[at + 1 : end]]
                if fence["name"]:
                    text = self.directive(fence["name"], fence["argument"].strip(), body)
                    made += [fence["indent"] + row if row else row for row in text.split("\n")]
                else:
                    made += lines[at : end + 1]
                at = end + 1
            elif fence and line.strip(": \t"):
                raise SourceError(f"cannot translate {line.strip()!r} for Colab")
            elif line.lstrip().startswith("$$"):
                flush()
                end = at
                if line.strip() == "$$" or "$$" not in line.strip()[2:]:
                    end = next(
                        (i for i in range(at + 1, len(lines)) if "$$" in lines[i]), len(lines) - 1
                    )
                block = lines[at : end + 1]
                if found := MATH_LABEL.match(block[-1]):
                    block[-1] = found["end"].removesuffix("$$") + self.tag(found["label"]) + "$$"
                made += block
                at = end + 1
            elif found := AMSMATH.match(line):
                flush()
                close = f"\\end{{{found['name']}}}"
                end = next((i for i in range(at, len(lines)) if close in lines[i]), None)
                if end is None:
                    raise SourceError(f"{line.strip()} is never closed")
                made += ["$$", _ams("\n".join(lines[at : end + 1]), found["name"]), "$$"]
                at = end + 1
            elif found := LABEL.match(line):
                flush()
                made.append(f'<a name="{found["label"]}"></a>\n')
                at += 1
            elif re.match(r"^%(?!%)", line) or re.match(r"^\+\+\+(\s|$)", line):
                flush()
                at += 1
            elif re.match(r"^[ \t]*\{[.#][^{}]*\}[ \t]*$", line):
                at += 1
            elif re.match(r"^:[ \t]+\S", line) and prose and prose[-1].strip():
                term = prose.pop()
                flush()
                made.append(self.inline(f"**{term.strip()}**  "))
                body = [line[1:].lstrip()]
                while at + 1 < len(lines) and re.match(r"^(\s{2,}\S|:[ \t]+\S)", lines[at + 1]):
                    at += 1
                    body.append(lines[at].lstrip(": \t"))
                made.append(self.inline("\n".join(body)) + "\n")
                at += 1
            else:
                if (found := HEADING.match(line)) and slug(found["title"]) in self.wanted:
                    prose.append(f'<a name="{slug(found["title"])}"></a>\n')
                prose.append(line)
                at += 1
        flush()
        return "\n".join(made)

    def directive(self, name: str, argument: str, body: list[str]) -> str:
        options, body = _options(body)
        if name in ADMONITIONS:
            title = name.capitalize() if name != "seealso" else "See also"
            if name == "admonition":
                title = self.inline(argument)
            elif argument:
                body = [argument, *body]
            return self.quote(f"**{title}**", body)
        if name in ASIDES:
            return self.quote(f"**{self.inline(argument)}**" if argument else "", body)
        if name in ("dropdown", "details"):
            inner = self.blocks(body).strip("\n")
            return f"<details><summary>{self.inline(argument)}</summary>\n\n{inner}\n\n</details>"
        if name in WRAPPERS:
            return self.blocks(body)
        if name in TITLED:
            title = [f"**{argument}**", ""] if argument else []
            return self.blocks([*title, *body])
        if name in ("image", "figure"):
            picture = f"![{options.get('alt', '')}]({self.file(argument)})"
            caption = self.blocks(body).strip("\n")
            return f"{picture}\n\n{caption}" if caption else picture
        if name == "math":
            lines = [argument, *body] if argument else body
            text = "\n".join(lines).strip("\n")
            if len(re.findall(r"\\\\", text)) and "\\begin{" not in text:
                text = f"\\begin{{aligned}}\n{text}\n\\end{{aligned}}"
            tag = self.tag(options["label"]) if options.get("label") else ""
            return f"$$\n{text}{tag}\n$$"
        if name in CODE:
            marks = "`" * max([3, *(1 + len(run) for run in re.findall(r"`+", "\n".join(body)))])
            return "\n".join([f"{marks}{argument}", *body, marks])
        if name == "table":
            title = [f"**{argument}**", ""] if argument else []
            return self.blocks([*title, *body])
        if name == "list-table":
            return self.list_table(argument, options, body)
        if name == "bibliography":
            return "\n".join(f"- {self.reference(key)}" for key in self.cited)
        if name in SILENT:
            return ""
        raise SourceError(f"cannot translate the directive {{{name}}} for Colab")

    def tag(self, label: str) -> str:
        return f" \\tag{{{self.equations[label]}}}"

    def quote(self, title: str, body: list[str]) -> str:
        inner = self.blocks(body).strip("\n")
        lines = "\n\n".join(filter(None, [title, inner])).split("\n")
        return "\n".join(f"> {line}".rstrip() for line in lines)

    def list_table(self, title: str, options: dict[str, str], body: list[str]) -> str:
        rows: list[list[str]] = []
        for line in body:
            if found := re.match(r"^\*\s+-\s?(.*)$", line):
                rows.append([found[1]])
            elif (found := re.match(r"^\s+-\s?(.*)$", line)) and rows:
                rows[-1].append(found[1])
            elif line.strip() and rows:
                rows[-1][-1] += " " + line.strip()
            elif line.strip():
                raise SourceError("cannot translate a list-table that does not begin with '* -'")
        if not rows:
            return ""
        width = max(map(len, rows))
        cells = [[self.inline(c.strip()) for c in row + [""] * (width - len(row))] for row in rows]
        if not int(options.get("header-rows") or 0):
            cells.insert(0, [""] * width)
        cells.insert(1, ["---"] * width)
        head = [f"**{self.inline(title)}**", ""] if title else []
        return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in cells)])

    # ---------------------------------------------------------------- within a line

    def inline(self, text: str) -> str:
        return INLINE.sub(self._inline, text)

    def _inline(self, found: re.Match[str]) -> str:
        if found["role"]:
            return self.role(found["role"], found["body"].strip())
        if found["link"]:
            return self.link(LINK.fullmatch(found["link"]))
        if found["footnote"]:
            number = self.notes.setdefault(found["footnote"], len(self.notes) + 1)
            return f"<sup>{number}</sup>" + (" " if found["defines"] else "")
        if found["span"] is not None:
            return self.inline(found["span"])
        if found["auto"]:
            raise SourceError(f"cannot translate {found['auto']} for Colab; write [text](target)")
        if found["substitution"]:
            name = found["substitution"].strip()
            known = self.source.config.get("parse", {}).get("myst_substitutions") or {}
            if name not in known:
                raise SourceError(f"cannot translate {found[0]} for Colab; no such substitution")
            return self.inline(str(known[name]))
        return found[0]

    def role(self, name: str, body: str) -> str:
        text, target = body, body
        if titled := re.fullmatch(r"(?P<text>.*?)\s*<(?P<target>[^<>]+)>", body, re.S):
            text, target = titled["text"], titled["target"]
        explicit = text is not target and text != target
        if name.startswith("cite"):
            return self.cite(name.partition(":")[2], body)
        if name == "math":
            return f"${body}$"
        if name == "eq":
            if target not in self.equations:
                raise SourceError(f"cannot translate {{eq}}`{target}`: no equation has that label")
            return f"({self.equations[target]})"
        if name == "doc":
            return self.to_document(target, text if explicit else "")
        if name in ("ref", "numref"):
            return self.to_label(target, text if explicit else "")
        if name in ("sub", "subscript"):
            return f"<sub>{body}</sub>"
        if name in ("sup", "superscript"):
            return f"<sup>{body}</sup>"
        if name == "abbr":
            found = re.fullmatch(r"(.*?)\s*\((.*)\)", body, re.S)
            return f'<abbr title="{found[2]}">{found[1]}</abbr>' if found else body
        if name == "kbd":
            return f"<kbd>{body}</kbd>"
        if name in ("code", "file", "samp", "literal", "command", "program", "envvar", "option"):
            return f"`{body}`"
        if name == "term":
            return f"*{text}*"
        if name in ("download",):
            return f"[{text if explicit else posixpath.basename(target)}]({self.file(target)})"
        if name in "func class meth mod attr data obj exc".split() or name.startswith("py:"):
            shown = text if explicit else target.removeprefix("~").removeprefix("!")
            return f"`{shown.rpartition('.')[2] if target.startswith('~') else shown}`"
        raise SourceError(f"cannot translate the role {{{name}}}`{body}` for Colab")

    def link(self, found: re.Match[str]) -> str:
        text, target = found["text"], found["target"]
        if found["image"]:
            return f"![{text}]({target if _is_address(target) else self.file(target)})"
        text = self.inline(text)
        if not target:
            raise SourceError(f"cannot translate {found[0]} for Colab: it has no target")
        if _is_address(target):
            return f"[{text}]({target})"
        path, _, anchor = target.partition("#")
        if not path:
            if anchor in self.here:
                return f"[{text}](#{anchor})" if text else self.to_label(anchor, "")
            return self.to_label(anchor, text)
        if path in self.labels and "/" not in path:
            return self.to_label(path, text)
        return self.to_document(target, text)

    def to_label(self, label: str, text: str) -> str:
        """A label of any page of the book."""
        docname, title = self.labels.get(label, (None, ""))
        if label in self.equations:
            return text or f"({self.equations[label]})"
        if label in self.here and docname in (None, self.chapter.docname):
            self.wanted.add(label)
            return f"[{text or title or label}](#{label})"
        if docname is None:
            raise SourceError(
                f"cannot translate the reference to {label!r}: no page has that label"
            )
        return f"[{text or title}]({self.source.site}{docname}.html#{label})"

    def to_document(self, target: str, text: str) -> str:
        """A file of the repository: a page of the site, or a file shown by the repository."""
        path, _, anchor = target.partition("#")
        anchor = f"#{anchor}" if anchor else ""
        name = self._from_root(path)
        stem, suffix = posixpath.splitext(name)
        if (
            name.startswith(("lib/", "tests/", "book/"))
            and suffix
            and not name.startswith("book/pages/")
        ):
            return f"[{text or name}]({self.source.link(name + anchor)})"
        docname = stem if suffix in (".md", ".ipynb") else name
        docname = docname.removeprefix("book/pages/")
        if docname in self.printed:
            title = text or self.printed[docname].book.get("title", docname)
            return f"[{title}]({self.source.site}{docname}.html{anchor})"
        if docname.startswith("chapters/") and (self.source.root / f"{docname}.ipynb").is_file():
            return text or docname.rpartition("/")[2].replace("_", " ")  # not printed yet
        for file in (f"{docname}.md", f"book/pages/{docname}.md"):
            if (self.source.root / file).is_file():
                page = f"{self.source.site}{docname}.html{anchor}"
                return f"[{text or _title(self.source.root / file) or docname}]({page})"
        bare = posixpath.normpath(path).rpartition("../")[2]
        bare = posixpath.splitext(bare)[0]
        if (self.source.root / "book" / "pages" / f"{bare}.md").is_file():
            return f"[{text or bare}]({self.source.site}{bare}.html{anchor})"
        planned = {f"chapters/{paper.part}/{paper.slug}" for paper in self.source.papers}
        if docname in planned and text:
            return text
        raise SourceError(f"cannot translate the link to {target!r}: no such file in the book")

    def file(self, path: str) -> str:
        """The address of a file's content, e.g. of a picture."""
        if _is_address(path):
            return path
        name = self._from_root(path)
        if not (self.source.root / name).is_file():
            raise SourceError(f"cannot translate the link to {path!r}: no such file in the book")
        base = "https://raw.githubusercontent.com"
        return f"{base}/{self.source.github_name}/{self.source.branch}/{name}"

    def _from_root(self, path: str) -> str:
        if path.startswith(("lib/", "chapters/", "tests/", "book/", "/")):
            return path.lstrip("/")
        return posixpath.normpath(posixpath.join(self.folder, path))

    # ---------------------------------------------------------------- citations

    def cite(self, kind: str, body: str) -> str:
        """`{cite}` as [Jacot et al., 2018], `{cite:t}` as Jacot et al. [2018], each a link."""
        made = []
        for key in (piece.strip() for piece in body.split(",")):
            if key not in self.bibliography:
                raise SourceError(f"cites {key!r}, which is not in book/references.bib")
            self.cited[key] = None
            names, year, address = self.bibliography[key][:3]
            textual = kind in ("t", "ct", "alt")
            text = f"{names} ({year})" if textual else f"{names}, {year}"
            made.append(f"[{text}]({address})" if address else text)
        return ", ".join(made) if kind in ("t", "ct", "alt") else f"({'; '.join(made)})"

    def reference(self, key: str) -> str:
        names, year, address, title = self.bibliography[key]
        text = f"{names} ({year}). *{title}*"
        return f"{text}. [{address.removeprefix('https://')}]({address})" if address else f"{text}."

    @cached_property
    def bibliography(self) -> dict[str, tuple[str, str, str, str]]:
        from pybtex.database import parse_file

        path = self.source.root / "book" / "references.bib"
        if not path.is_file():
            return {}
        made = {}
        for key, entry in parse_file(str(path), "bibtex").entries.items():
            people = entry.persons.get("author") or entry.persons.get("editor") or []
            made[key] = (
                _names([_plain(" ".join([*p.prelast_names, *p.last_names])) for p in people])
                or key,
                entry.fields.get("year", "n.d."),
                _address(entry.fields),
                _plain(entry.fields.get("title", key)),
            )
        return made


def labels_of(source: Source) -> dict[str, tuple[str, str]]:
    """Every label of the book: the page it stands on, and the heading below it."""
    found: dict[str, tuple[str, str]] = {}

    def read(docname: str, text: str) -> None:
        lines = text.split("\n")
        for number, line in enumerate(lines):
            if label := LABEL.match(line):
                below = next((row for row in lines[number + 1 :] if row.strip()), "")
                heading = HEADING.match(below)
                found.setdefault(label["label"], (docname, heading["title"] if heading else ""))

    for chapter in source.chapters:
        for cell in chapter.notebook.get("cells", []):
            if cell.get("cell_type") == "markdown":
                read(chapter.docname, text_of(cell))
    for folder, prefix in (("book/pages", ""), ("chapters", "chapters/")):
        for path in sorted((source.root / folder).rglob("*.md")):
            name = path.relative_to(source.root / folder).with_suffix("").as_posix()
            read(prefix + name, path.read_text("utf-8"))
    return found


def slug(title: str) -> str:
    """The anchor that a heading has on the page."""
    words = re.sub(r"[^\w\s-]", "", title.strip().lower())
    return re.sub(r"\s", "-", words)


# -------------------------------------------------------------------- helpers


def _close(lines: list[str], at: int, fence: re.Match[str]) -> int:
    """The line that closes a fence."""
    mark, count = fence["marks"][0], len(fence["marks"])
    pattern = re.compile(rf"^[ \t]*{re.escape(mark)}{{{count},}}[ \t]*$")
    depth = 0
    for number in range(at + 1, len(lines)):
        inner = FENCE.match(lines[number])
        if pattern.match(lines[number]):
            if depth == 0:
                return number
            depth -= 1
        elif mark == ":" and inner and inner["name"] and len(inner["marks"]) == count:
            if inner["marks"][0] == ":":
                depth += 1
    raise SourceError(f"{lines[at].strip()!r} is never closed")


def _options(body: list[str]) -> tuple[dict[str, str], list[str]]:
    """A directive's options and what comes after them."""
    options: dict[str, str] = {}
    if body and body[0].strip() == "---":
        end = next((i for i, row in enumerate(body[1:], 1) if row.strip() == "---"), 0)
        for row in body[1:end]:
            key, _, value = row.partition(":")
            options[key.strip()] = value.strip()
        return options, body[end + 1 :]
    at = 0
    while at < len(body) and (found := OPTION.match(body[at].strip())):
        options[found["key"]] = found["value"]
        at += 1
    return options, body[at:]


def _ams(text: str, name: str) -> str:
    """An environment of its own as one within a display."""
    bare = name.rstrip("*")
    text = re.sub(r"\\label\{[^}]*\}", "", text)
    if bare in ("equation", "multline"):
        return re.sub(rf"\\(begin|end)\{{{re.escape(name)}\}}", "", text).strip()
    inner = {
        "align": "aligned",
        "gather": "gathered",
        "alignat": "alignedat",
        "eqnarray": "aligned",
    }
    return re.sub(rf"\\(begin|end)\{{{re.escape(name)}\}}", rf"\\\1{{{inner[bare]}}}", text).strip()


def _dedent(line: str, indent: str) -> str:
    return line.removeprefix(indent) if line.startswith(indent) else line.lstrip()


def _without_code(text: str) -> str:
    """The text without code: blocks in fences, and spans that no role introduces."""
    text = re.sub(
        r"^([ \t]*)(`{3,}|~{3,})(?![ \t]*\{)[^\n]*\n.*?^[ \t]*\2[`~]*[ \t]*$",
        "",
        text,
        flags=re.M | re.S,
    )
    return re.sub(r"(?<![}`])(`+)(?!`)[^\n]*?(?<!`)\1(?!`)", "", text)


def _is_address(target: str) -> bool:
    return bool(re.match(r"[A-Za-z][A-Za-z+.-]*:", target))


def _title(path: Any) -> str:
    found = re.search(r"^# (.+)$", path.read_text("utf-8"), re.M)
    return found[1].strip() if found else ""


def _names(people: list[str]) -> str:
    if len(people) > 2:
        return f"{people[0]} et al."
    return " and ".join(people)


def _plain(text: str) -> str:
    """BibTeX's accents and braces as letters."""
    from pybtex.richtext import Text

    try:
        return str(Text.from_latex(text))
    except Exception:
        return text.replace("{", "").replace("}", "")


def _address(fields: Any) -> str:
    if fields.get("eprint") and fields.get("archiveprefix", "arXiv").lower() == "arxiv":
        return f"https://arxiv.org/abs/{fields['eprint']}"
    if fields.get("doi"):
        return f"https://doi.org/{fields['doi']}"
    return fields.get("url", "")
