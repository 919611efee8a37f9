"""Small pictures of chapters: thumbnails for the cards, images for links on other sites.

Both are made from the figure of the cell tagged `thumbnail`: once in the colors of the light page,
once in those of the dark one. They are kept in `_build/cache` under a digest of what went in.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

WIDTH, HEIGHT = 480, 300
"""The room for a thumbnail, in pixels; cards show it at about two thirds of that."""
SHARE_WIDTH, SHARE_HEIGHT = 1200, 630
GROUND = {"light": "#ffffff", "dark": "#14181e"}
INK, MUTED, ACCENT = "#1f2328", "#59636e", "#1f5fbf"
FONT = "Arial, 'Liberation Sans', Helvetica, sans-serif"
FORMAT = 3
"""Part of every digest. Raise it when the pictures are drawn differently."""


@dataclass(frozen=True)
class Figure:
    """What a cell tagged `thumbnail` shows: SVG with the book's color properties, or an image."""

    title: str
    content: str | bytes


@dataclass(frozen=True)
class Thumbnail:
    """A chapter's picture on cards; `light` and `dark` are file names below `_static`."""

    light: str
    dark: str
    width: int
    height: int
    title: str


class Pictures:
    """Draws pictures and keeps them; `finish` forgets those that no chapter has any more."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.used: set[Path] = set()

    def thumbnail(self, figure: Figure, mode: str) -> tuple[bytes, int, int]:
        """The figure without its title, as WebP of at most `WIDTH` by `HEIGHT`, and its size."""
        data = self._kept(
            ("thumbnail", mode, figure.content), "webp", lambda: _thumbnail(figure.content, mode)
        )
        return data, *_webp_size(data)

    def share(self, figure: Figure | None, title: str, lines: list[str]) -> bytes:
        """A card of 1200 by 630 pixels, as PNG: title, a few lines, and the figure."""
        content = figure.content if figure else ""
        key = ("share", title, *lines, content)
        return self._kept(key, "png", lambda: _share(content, title, lines))

    def _kept(self, key: tuple[str | bytes, ...], suffix: str, draw: Callable[[], bytes]) -> bytes:
        digest = hashlib.sha256(str(FORMAT).encode())
        for part in key:
            digest.update(part.encode() if isinstance(part, str) else part)
            digest.update(b"\0")
        path = self.cache / f"{digest.hexdigest()[:32]}.{suffix}"
        self.used.add(path)
        if path.is_file():
            return path.read_bytes()
        data = draw()
        self.cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(data)
        part.replace(path)
        return data

    def finish(self) -> None:
        for path in self.cache.glob("*"):
            if path not in self.used:
                path.unlink()


# ------------------------------------------------------------------------------ the figure

ROOT = re.compile(r"<svg\b[^>]*>")
TITLE = re.compile(
    r'(?P<head>(?:<title>.*?</title>)?(?:<desc>.*?</desc>)?)<g font-family="[^"]*">'
    r'(?:<text [^>]*>[^<]*</text>)*</g><g transform="translate\(0,(?P<top>[\d.]+)\)">',
    re.S,
)
"""Where `lib.core.plots` puts a figure's title above the picture."""


def untitled(svg: str) -> tuple[str, float, float]:
    """What stands inside the root element without the title, and its width and height."""
    root = ROOT.search(svg)
    if not root:
        raise ValueError("not an SVG picture")
    size = dict(re.findall(r'\b(width|height)="([\d.]+)', root[0]))
    width, height = float(size.get("width", 480)), float(size.get("height", 300))
    inner = svg[root.end() : svg.rindex("</svg>")]
    title = TITLE.match(inner)
    if title:
        top = float(title["top"])
        inner = '<g transform="translate(0,0)">' + inner[title.end() :]
        height -= top
    return inner, width, height


def painted(svg: str, mode: str) -> str:
    from lib.core.plots.theme import paint

    return paint(svg, mode)


def _thumbnail(content: str | bytes, mode: str) -> bytes:
    from PIL import Image

    if isinstance(content, bytes):
        image = Image.open(io.BytesIO(content)).convert("RGBA")
        image.thumbnail((WIDTH, HEIGHT))
    else:
        import vl_convert

        inner, width, height = untitled(painted(content, mode))
        scale = min(WIDTH / width, HEIGHT / height)
        # The ground stands in the picture: half-transparent bands would come out too dark else.
        svg = _svg(
            width, height, f'<rect width="100%" height="100%" fill="{GROUND[mode]}"/>{inner}'
        )
        image = Image.open(io.BytesIO(vl_convert.svg_to_png(svg, scale=scale))).convert("RGBA")
    ground = Image.new("RGBA", image.size, GROUND[mode])
    ground.alpha_composite(image)
    file = io.BytesIO()
    ground.convert("RGB").save(file, "WEBP", quality=70, method=4)
    return file.getvalue()


def _webp_size(data: bytes) -> tuple[int, int]:
    from PIL import Image

    return Image.open(io.BytesIO(data)).size


def _svg(width: float, height: float, inner: str) -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}">{inner}</svg>'
    )


# ------------------------------------------------------------------------------ the shared card


def _share(content: str | bytes, title: str, lines: list[str]) -> bytes:
    """Text on the left, the figure on the right; text alone where there is no figure."""
    import vl_convert
    from PIL import Image

    # Without a figure the text has the width of the card.
    room = (1070, 26) if not content else (470, 15)
    rows = wrap(title, room[1])
    size = 54 if len(rows) <= 4 else 44 if len(rows) <= 6 else 38
    if size < 54:
        rows = wrap(title, round(room[1] * 54 / size))
    parts = [
        f'<rect width="{SHARE_WIDTH}" height="{SHARE_HEIGHT}" fill="{GROUND["light"]}"/>',
        f'<rect width="{SHARE_WIDTH}" height="14" fill="{ACCENT}"/>',
    ]
    y = 70.0
    for row in rows[:8]:
        y += size * 1.18
        parts.append(_text(60, y, size, INK, row, bold=True))
    y += 24
    for line in lines:
        for row in wrap(line, round(room[0] / 12.2))[:3]:
            y += 34
            parts.append(_text(60, y, 25, MUTED, row))
    parts.append(_text(60, SHARE_HEIGHT - 40, 25, ACCENT, "Ideas That Run", bold=True))
    box = (570.0, 70.0, 590.0, 500.0)
    if isinstance(content, bytes):
        data = base64.b64encode(content).decode()
        kind = "jpeg" if content.startswith(b"\xff\xd8") else "png"
        parts.append(
            f'<image x="{box[0]}" y="{box[1]}" width="{box[2]}" height="{box[3]}" '
            f'xlink:href="data:image/{kind};base64,{data}"/>'
        )
    elif content:
        inner, width, height = untitled(painted(content, "light"))
        scale = min(box[2] / width, box[3] / height)
        x = box[0] + (box[2] - width * scale) / 2
        top = box[1] + (box[3] - height * scale) / 2
        parts.append(f'<g transform="translate({x:.1f},{top:.1f}) scale({scale:.4f})">{inner}</g>')
    png = vl_convert.svg_to_png(_svg(SHARE_WIDTH, SHARE_HEIGHT, "".join(parts)), scale=1)
    image = (
        Image.open(io.BytesIO(png))
        .convert("RGB")
        .quantize(128, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    )
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _text(x: float, y: float, size: float, color: str, text: str, bold: bool = False) -> str:
    weight = ' font-weight="700"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:.1f}" font-family="{html.escape(FONT)}" font-size="{size:g}"'
        f'{weight} fill="{color}">{html.escape(text)}</text>'
    )


def wrap(text: str, length: int) -> list[str]:
    """Lines of at most `length` characters, whole words; a longer word stands alone."""
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= length:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines
