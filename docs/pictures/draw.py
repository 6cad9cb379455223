"""Draws the pictures of these pages: ``python docs/pictures/draw.py``. They are 640 wide, the least that pages are made for."""

from __future__ import annotations

from html import escape
from pathlib import Path

WIDTH = 640
INK, SOFT, BLUE, GREEN, RED = "#222", "#666", "#1b6ca8", "#2f7d6b", "#b8432c"


class Picture:
    """An SVG on white, so that it reads on dark pages too."""

    def __init__(self, height: int, title: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            'font-family="sans-serif" font-size="13" role="img">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#fff"/>',
        ]

    def box(
        self, x: int, y: int, width: int, height: int, lines: list[str], colour: str = INK, fill: str = "#fff"
    ) -> None:
        """A box with lines of text in its middle; the first is bold."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{colour}" stroke-width="1.5"/>'
        )
        top = y + height / 2 - 8.5 * (len(lines) - 1) + 4.5
        for number, line in enumerate(lines):
            self.text(x + width / 2, top + 17 * number, line, "middle", colour if number == 0 else INK, number == 0)

    def text(
        self, x: float, y: float, words: str, anchor: str = "start", colour: str = INK, bold: bool = False
    ) -> None:
        """One line of text."""
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}"{weight}>{escape(words)}</text>'
        )

    def line(
        self, x1: int, y1: int, x2: int, y2: int, colour: str = INK, dashed: bool = False, arrow: bool = True
    ) -> None:
        """A line, with an arrow at its end."""
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        self.parts.append(f'<path d="M{x1} {y1} L{x2} {y2}" stroke="{colour}" stroke-width="2" fill="none"{dash}/>')
        if arrow:
            length = ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5
            dx, dy = (x2 - x1) / length, (y2 - y1) / length
            left = (x2 - 9 * dx - 4 * dy, y2 - 9 * dy + 4 * dx)
            right = (x2 - 9 * dx + 4 * dy, y2 - 9 * dy - 4 * dx)
            points = f"{x2},{y2} {left[0]:.1f},{left[1]:.1f} {right[0]:.1f},{right[1]:.1f}"
            self.parts.append(f'<polygon points="{points}" fill="{colour}"/>')

    def save(self, name: str) -> None:
        """Write the file beside this one."""
        Path(__file__).with_name(name).write_text("\n".join([*self.parts, "</svg>", ""]), encoding="utf-8")


def setup() -> None:
    """What stands where."""
    picture = Picture(236, "A client on your machine, a server of yours, the Internet")
    picture.text(16, 24, "your machine", colour=SOFT, bold=True)
    picture.text(344, 24, "a server of yours", colour=SOFT, bold=True)
    picture.text(530, 24, "the Internet", colour=SOFT, bold=True)
    picture.box(12, 36, 236, 180, [], SOFT, "#f6f8fa")
    picture.box(340, 76, 132, 64, ["mikanet server", "egress rules"], BLUE)
    for y, name in ((48, "browser"), (96, "curl, git, ssh"), (144, "mail, DNS")):
        picture.box(18, y, 104, 36, [name])
        picture.line(122, y + 18, 144, 108, arrow=False)
    picture.box(146, 66, 94, 84, ["mikanet", "client", "", ""], BLUE)
    picture.text(193, 122, "SOCKS 1080", "middle", SOFT)
    picture.text(193, 139, "HTTP 3128", "middle", SOFT)
    picture.text(130, 204, "on 127.0.0.1 only", "middle", SOFT)
    picture.line(240, 108, 338, 108, GREEN)
    picture.text(294, 98, "tunnel", "middle", GREEN, True)
    picture.text(294, 128, "encrypted", "middle", GREEN)
    picture.line(472, 108, 526, 108)
    picture.box(528, 76, 100, 64, ["web sites", "and others"])
    picture.text(440, 176, "They see the server's address,", "middle", SOFT)
    picture.text(440, 194, "and the network around you sees only the tunnel.", "middle", SOFT)
    picture.save("setup.svg")


def choosing() -> None:
    """Which tunnel."""
    picture = Picture(396, "Which tunnel to choose")
    rows = [
        ("Is it requests and answers that you carry,", "not connections?", "Megaki", "answers by PHP or Python"),
        (
            "Does your network change, or do only proxies,",
            "the web, DNS or ping pass?",
            "Pickaxe",
            "for https, ssh: not encrypted",
        ),
        ("May somebody read inside your TLS,", "or is TLS all that passes?", "NitroSocks", "one TLS connection"),
        ("Are connections cut or slowed,", "while packets pass?", "paqet", "as root; or Mika over KCP"),
    ]
    for number, (first, second, answer, note) in enumerate(rows):
        y = 16 + 82 * number
        picture.box(16, y, 330, 54, [], INK, "#f6f8fa")
        picture.text(181, y + 23, first, "middle")
        picture.text(181, y + 41, second, "middle")
        picture.line(346, y + 27, 420, y + 27, GREEN)
        picture.text(380, y + 19, "yes", "middle", GREEN, True)
        picture.box(422, y, 202, 54, [answer, note], GREEN)
        picture.line(181, y + 54, 181, y + 81, RED)
        picture.text(192, y + 73, "no", "start", RED, True)
    picture.box(16, 344, 330, 40, ["Mika: fast, quiet, TCP and UDP; begin here"], GREEN)
    picture.save("choosing.svg")


def roaming() -> None:
    """A download that goes on while its carrier changes."""
    picture = Picture(566, "A Pickaxe session that changes its carrier twice")
    left, right = 74, 566
    picture.text(left, 24, "client", "middle", INK, True)
    picture.text(right, 24, "server", "middle", INK, True)
    picture.text(left, 42, "download goes on", "middle", SOFT)
    picture.text(right, 42, "target goes on", "middle", SOFT)
    for x in (left, right):
        picture.line(x, 52, x, 552, INK, arrow=False)
    y = 84

    def event(
        words: str, colour: str, to_server: bool, note: str = "", dashed: bool = False, lost: bool = False
    ) -> None:
        nonlocal y
        begin, end = (left, right) if to_server else (right, left)
        picture.text(320, y - 7, words, "middle", colour)
        if lost:
            middle = left + 150
            picture.line(begin, y, middle, y, colour, dashed, arrow=False)
            picture.line(middle - 8, y - 8, middle + 8, y + 8, RED, arrow=False)
            picture.line(middle - 8, y + 8, middle + 8, y - 8, RED, arrow=False)
        else:
            picture.line(begin, y, end + (-2 if to_server else 2), y, colour, dashed)
        if note:
            picture.text(left - 8, y + 4, note, "end", INK)
        y += 31

    event("TCP carrier: data 41", BLUE, False, "41")
    event("TCP carrier: data 42", BLUE, False, "42")
    event("TCP carrier: data 43", BLUE, False, lost=True)
    picture.text(left + 10, y - 8, "the carrier is lost", "start", RED, True)
    y += 22
    event("WebSocket carrier: echo request with a new number, “I have 42”", GREEN, True)
    event("WebSocket carrier: data 43, the same bytes again", GREEN, False, "43")
    event("WebSocket carrier: echo reply", GREEN, False)
    event("WebSocket carrier: data 44", GREEN, False, "44")
    y += 14
    event("TCP carrier: probe, an answered echo request repeated", BLUE, True, dashed=True)
    event("TCP carrier: the answer again", BLUE, False, dashed=True)
    picture.text(left + 10, y - 8, "TCP works again, and is the better one", "start", BLUE, True)
    y += 22
    event("TCP carrier: echo request with a new number", BLUE, True)
    event("TCP carrier: echo reply", BLUE, False)
    event("TCP carrier: data 45", BLUE, False, "45")
    event("TCP carrier: data 46", BLUE, False, "46")
    picture.save("roaming.svg")


if __name__ == "__main__":
    setup()
    choosing()
    roaming()
