"""Draw a command's terminal output as an animated SVG.

`python docs/record.py docs/demo.svg promptmill demo` runs the command on a terminal of its own and writes the picture.
What it printed and when stays in `docs/demo.cast` (asciicast v2); without a command the picture is made from that file.
"""

import argparse
import codecs
import itertools
import json
import os
import pty
import re
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pyte
from pyte.screens import Char
from wcwidth import wcswidth

COLUMNS, ROWS = 100, 34
PROMPT = "\x1b[1;32m$\x1b[0m "
MAX_FRAMES = 25
# Output that comes closer together than this is one repaint.
REPAINT_SECONDS = 0.002
# How long a frame is shown: at least so long, a little longer for each new line, at most so long, and the last one.
SHORTEST, PER_LINE, LONGEST, LAST = 0.3, 0.1, 0.7, 6.0
CELL_WIDTH, CELL_HEIGHT, FONT_SIZE, BASELINE, PADDING, BAR = 8.4, 16, 14, 13, 16, 40
NO_BREAK = "\xa0"
FONTS = "ui-monospace,SFMono-Regular,'SF Mono',Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',monospace"
BACKGROUND, FOREGROUND, MUTED = "#0d1117", "#d0d7de", "#7d8590"
SPINNER = re.compile("[\u2800-\u28ff]")
NAMES = ("black", "red", "green", "brown", "blue", "magenta", "cyan", "white")
PLAIN = ("#484f58", "#ff7b72", "#3fb950", "#d29922", "#58a6ff", "#bc8cff", "#39c5cf", "#b1bac4")
BRIGHT = ("#6e7681", "#ffa198", "#56d364", "#e3b341", "#79c0ff", "#d2a8ff", "#56d4dd", "#f0f6fc")
PALETTE = dict(zip(NAMES, PLAIN, strict=True)) | {f"bright{n}": c for n, c in zip(NAMES, BRIGHT, strict=True)}

Event = tuple[float, str]


@dataclass(frozen=True)
class Frame:
    """What the screen showed at one moment."""

    at: float
    # Lines printed so far, those that have scrolled away included.
    depth: int
    rows: tuple[str, ...]

    def looks(self) -> str:
        return SPINNER.sub("", "\n".join(self.rows))


def record(command: Sequence[str], rows: int) -> Iterator[Event]:
    """Run `command` on a terminal and yield what it prints."""
    master, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (rows, COLUMNS))
    yield 0.0, f"{PROMPT}{' '.join(command)}\r\n"
    unset = {"COLUMNS", "LINES", "NO_COLOR"}
    env = {k: v for k, v in os.environ.items() if k not in unset} | {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=env)  # noqa: S603  ours
    os.close(terminal)
    started, decoder = time.monotonic(), codecs.getincrementaldecoder("utf-8")("replace")
    for chunk in _chunks(master):
        yield round(time.monotonic() - started, 3), decoder.decode(chunk)
    if status := process.wait():
        raise SystemExit(f"{command[0]} ended with status {status}")


def _chunks(master: int) -> Iterator[bytes]:
    while True:
        try:
            chunk = os.read(master, 65_536)
        except OSError:  # Linux says "input/output error" when the other side has closed.
            return
        if not chunk:
            return
        yield chunk


def save(events: Iterator[Event], cast: Path, rows: int) -> None:
    with cast.open("w") as file:
        file.write(json.dumps({"version": 2, "width": COLUMNS, "height": rows}) + "\n")
        file.writelines(json.dumps([at, "o", data]) + "\n" for at, data in events)


def load(cast: Path) -> list[Event]:
    return [(at, data) for at, _, data in map(json.loads, cast.read_text().splitlines()[1:])]


def frames(events: list[Event], rows: int) -> list[Frame]:
    """Play `events` and return the screens that are worth showing."""
    distinct = [next(same) for _, same in itertools.groupby(_play(events, rows), key=Frame.looks)]
    steps = [list(step) for _, step in itertools.groupby(distinct, key=lambda frame: frame.depth)]
    fitting = [n for n in range(1, MAX_FRAMES) if sum(min(n, len(step)) for step in steps) <= MAX_FRAMES]
    return [frame for step in steps for frame in _spread(step, max(fitting, default=1))]


def _play(events: list[Event], rows: int) -> Iterator[Frame]:
    screen = pyte.HistoryScreen(COLUMNS, rows, history=100_000)
    stream = pyte.Stream(screen)
    drawn = [""] * rows
    for (at, data), (following, _) in itertools.pairwise([*events, (float("inf"), "")]):
        stream.feed(data)
        if following - at > REPAINT_SECONDS:
            for y in screen.dirty:
                drawn[y] = _row([screen.buffer[y][x] for x in range(COLUMNS)])
            screen.dirty.clear()
            used = max((y + 1 for y in range(rows) if drawn[y]), default=0)
            yield Frame(at, len(screen.history.top) + used, tuple(drawn))


def _spread(step: list[Frame], most: int) -> list[Frame]:
    """Return at most `most` frames, evenly spaced, the last one among them."""
    count = min(most, len(step))
    return [step[(i + 1) * len(step) // count - 1] for i in range(count)]


def _row(cells: list[Char]) -> str:
    parts, column = [], 0
    for style, run in itertools.groupby(cells, key=lambda cell: cell._replace(data="")):
        text = [cell.data for cell in run]
        parts.append(_background(style, column, len(text)) + _text(style, "".join(text), column))
        column += len(text)
    return "".join(parts)


def _background(style: Char, column: int, width: int) -> str:
    colour = _colour(style.fg, FOREGROUND) if style.reverse else _colour(style.bg, BACKGROUND)
    size = f'width="{width * CELL_WIDTH:.1f}" height="{CELL_HEIGHT}"'
    return "" if colour == BACKGROUND else f'<rect x="{_left(column)}" {size} fill="{colour}"/>'


def _text(style: Char, text: str, column: int) -> str:
    if not (shown := text.strip()):
        return ""
    colour = _colour(style.bg, BACKGROUND) if style.reverse else _colour(style.fg, FOREGROUND)
    marks = (
        ' font-weight="bold"' * style.bold,
        ' font-style="italic"' * style.italics,
        ' text-decoration="underline"' * style.underscore,
        f' fill="{colour}"' * (colour != FOREGROUND),
    )
    # The stated length keeps columns straight in every font, no-break spaces keep their width in every browser.
    place = f'x="{_left(column + text.index(shown[0]))}" y="{BASELINE}" textLength="{wcswidth(shown) * CELL_WIDTH:.1f}"'
    return f"<text {place}{''.join(marks)}>{escape(shown, quote=False).replace(' ', NO_BREAK)}</text>"


def _left(column: int) -> str:
    return f"{PADDING + column * CELL_WIDTH:.1f}"


def _colour(name: str, default: str) -> str:
    return default if name == "default" else PALETTE.get(name, f"#{name}")


def draw(shown: list[Frame], rows: int, command: str) -> str:
    """Return the SVG: a strip of frames that moves up a frame at a time; where nothing moves, it rests at the last."""
    width, height = round(COLUMNS * CELL_WIDTH + 2 * PADDING), BAR + rows * CELL_HEIGHT + PADDING
    holds = _holds(shown)
    names = {row: f"r{n}" for n, row in enumerate(dict.fromkeys(row for frame in shown for row in frame.rows if row))}
    title = f"{escape(command)} ({shown[-1].at:.0f} s, shown in {sum(holds):.0f} s)"
    parts = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"',
        f' font-family="{FONTS}" font-size="{FONT_SIZE}" fill="{FOREGROUND}" role="img">',
        f"\n<title>{title}</title>\n<style>{_animation(holds, height)}</style>\n<defs>\n",
        *(f'<g id="{name}">{row}</g>\n' for row, name in names.items()),
        f"</defs>\n{_window(width, height, title)}\n",
        f'<g class="film" transform="translate(0,{-(len(shown) - 1) * height})">\n',
        *(_picture(frame, n * height, width, names) for n, frame in enumerate(shown)),
        "</g>\n</svg>\n",
    )
    return "".join(parts)


def _holds(shown: list[Frame]) -> list[float]:
    holds, depth = [], 0
    for frame, following in itertools.pairwise(shown):
        least = SHORTEST + PER_LINE * max(0, frame.depth - depth)
        holds.append(max(least, min(following.at - frame.at, LONGEST)))
        depth = frame.depth
    return [*holds, LAST]


def _animation(holds: list[float], height: int) -> str:
    total, starts = sum(holds), itertools.accumulate(holds, initial=0.0)
    stops = [f"{100 * at / total:.2f}%{{transform:translateY({-n * height}px)}}" for n, at in enumerate(starts)][:-1]
    end = f"100%{{transform:translateY({-(len(holds) - 1) * height}px)}}"
    return (
        f"@keyframes film{{{''.join(stops)}{end}}}.film{{animation:film {total:.1f}s step-end infinite}}"
        "@media(prefers-reduced-motion:reduce){.film{animation:none}}"
    )


def _window(width: int, height: int, title: str) -> str:
    colours = ("#ff5f57", "#febc2e", "#28c840")
    lights = "".join(f'<circle cx="{20 + 20 * n}" cy="20" r="6" fill="{c}"/>' for n, c in enumerate(colours))
    frame = (
        f'<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8" fill="{BACKGROUND}" stroke="#30363d"/>'
    )
    return f'{frame}{lights}<text x="50%" y="25" text-anchor="middle" fill="{MUTED}">{title}</text>'


def _picture(frame: Frame, top: int, width: int, names: dict[str, str]) -> str:
    clock = f'<text x="{width - PADDING}" y="{top + 25}" text-anchor="end" fill="{MUTED}">{frame.at:.0f} s</text>'
    uses = "".join(
        f'<use href="#{names[row]}" y="{top + BAR + y * CELL_HEIGHT}"/>' for y, row in enumerate(frame.rows) if row
    )
    return f"{clock}{uses}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS, help="the terminal's height")
    parser.add_argument("svg", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    cast = options.svg.with_suffix(".cast")
    if options.command:
        save(record(options.command, options.rows), cast, options.rows)
    events = load(cast)
    command = events[0][1].removeprefix(PROMPT).strip()
    options.svg.write_text(draw(frames(events, options.rows), options.rows, command))


if __name__ == "__main__":
    main()
