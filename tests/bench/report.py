"""What a benchmark prints: a reST table, the machine it ran on, a JSON file, and plots as SVG."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

from tests.bench.measure import FIGURES, Round, median, paired_ratio
from tests.bench.peers import version


def machine() -> dict[str, str]:
    """The processor with the flags that matter to ciphers, and the versions of what runs."""
    import cryptography
    import twisted
    from cryptography.hazmat.backends.openssl import backend

    info = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        info.setdefault(key.strip(), value.strip())
    wanted = ("aes", "vaes", "pclmulqdq", "vpclmulqdq", "sha_ni", "avx2", "avx512f")
    flags = set(info.get("flags", "").split())
    return {
        "processor": f"{info.get('model name', platform.machine())}, {info.get('cpu MHz', '?')} MHz",
        "flags": " ".join(flag for flag in wanted if flag in flags),
        "kernel": platform.release(),
        "software": f"Python {platform.python_version()}, Twisted {twisted.__version__}, "
        f"cryptography {cryptography.__version__}, {backend.openssl_version_text()}",
    }


def table(results: dict[str, list[Round]]) -> str:
    """Medians of every peer as a reST list table."""
    lines = [".. list-table::", "   :header-rows: 1", "", "   * - figure"]
    lines += [f"     - {name}" for name in results]
    medians = {name: median(rounds) for name, rounds in results.items()}
    for figure, (text, unit, _) in FIGURES.items():
        lines.append(f"   * - {text} [{unit}]")
        lines += [f"     - {_number(medians[name][figure])}" for name in results]
    return "\n".join(lines)


def ratios(results: dict[str, list[Round]], ours: str) -> str:
    """Our figures divided by each peer's, as medians of the pairs of each round."""
    others = [name for name in results if name != ours]
    lines = [".. list-table::", "   :header-rows: 1", "", f"   * - {ours} divided by"]
    lines += [f"     - {name}" for name in others]
    found = {name: paired_ratio(results[ours], results[name]) for name in others}
    for figure, (text, _, less) in FIGURES.items():
        lines.append(f"   * - {text} ({'less' if less else 'more'} is better)")
        lines += [f"     - {found[name].get(figure, float('nan')):.2f}" for name in others]
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def describe(results: dict[str, list[Round]], command: str) -> str:
    """How the table was made."""
    about = machine()
    rounds = len(next(iter(results.values())))
    lines = [f"{key}: {value}" for key, value in about.items()]
    lines += ["peers: " + "; ".join(f"{name} = {version(name)}" for name in results)]
    lines += [f"rounds: {rounds}, medians shown; command: ``{command}``"]
    return "\n".join(f"| {line}" for line in lines)


def write_json(path: Path, results: dict[str, list[Round]], sweeps: dict[str, Any], command: str) -> None:
    """Every single figure, for other programs."""
    content = {
        "machine": machine(),
        "command": command,
        "versions": {name: version(name) for name in results},
        "units": {figure: unit for figure, (_, unit, _) in FIGURES.items()},
        "rounds": results,
        "sweeps": sweeps,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


_COLOURS = ("#1b6ca8", "#c8553d", "#588b8b", "#7d4e9e", "#8a8d0f", "#333333")
_WIDTH, _HEIGHT, _LEFT, _TOP = 420, 260, 60, 30


def write_plots(path: Path, sweeps: dict[str, dict[str, list[list[float]]]]) -> None:
    """Goodput and CPU per GB against chunk size and number of connections, one picture."""
    kinds = list(next(iter(sweeps.values())))
    panels = []
    for row, kind in enumerate(kinds):
        for column, (index, unit) in enumerate(((2, "MB/s"), (1, "CPU s/GB"))):
            series = {name: [(each[0], each[index]) for each in found[kind]] for name, found in sweeps.items()}
            x, y = column * (_WIDTH + 90) + _LEFT, row * (_HEIGHT + 90) + _TOP
            panels.append(f'<g transform="translate({x},{y})">{_panel(f"{kind}, {unit}", series)}</g>')
    width, height = 2 * (_WIDTH + 90) + 60, len(kinds) * (_HEIGHT + 90) + 60
    legend = "".join(
        f'<text x="{_LEFT + 150 * index}" y="{height - 15}" fill="{colour}" font-weight="bold">{name}</text>'
        for index, (name, colour) in enumerate(zip(sweeps, _COLOURS, strict=False))
    )
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>{"".join(panels)}{legend}</svg>\n'
    )


def _panel(title: str, series: dict[str, list[tuple[float, float]]]) -> str:
    xs = [x for x, _ in next(iter(series.values()))]
    top = max(y for points in series.values() for _, y in points) * 1.1 or 1

    def place(index: int, y: float) -> str:
        return f"{index * _WIDTH / max(1, len(xs) - 1):.1f},{_HEIGHT - y / top * _HEIGHT:.1f}"

    parts = [f'<text x="0" y="-10">{title}</text>', f'<path d="M0,0V{_HEIGHT}H{_WIDTH}" fill="none" stroke="#888"/>']
    for index, x in enumerate(xs):
        label = f"{x / 1024:g}K" if x >= 1024 else f"{x:g}"
        at = index * _WIDTH / max(1, len(xs) - 1)
        parts.append(f'<text x="{at:.1f}" y="{_HEIGHT + 18}" text-anchor="middle">{label}</text>')
    for share in (0, 0.5, 1):
        parts.append(f'<text x="-6" y="{_HEIGHT * (1 - share) + 4:.1f}" text-anchor="end">{top * share:.3g}</text>')
    for points, colour in zip(series.values(), _COLOURS, strict=False):
        line = " ".join(place(index, y) for index, (_, y) in enumerate(points))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return "".join(parts)
