"""Curves as inline SVG."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT, MARGIN = 300, 160, 26  # px


def curve(tag: str, points: Sequence[tuple[int, float]]) -> str:
    """A figure of `(step, value)` points; values that are not finite are left out."""
    points = [(step, value) for step, value in points if math.isfinite(value)]
    if not points:
        return ""
    steps, values = [step for step, _ in points], [value for _, value in points]
    left, right, low, high = min(steps), max(steps), min(values), max(values)

    def place(step: int, value: float) -> str:
        x = MARGIN + (WIDTH - 2 * MARGIN) * ((step - left) / (right - left) if right > left else 0.5)
        y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * ((value - low) / (high - low) if high > low else 0.5)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(place(step, value) for step, value in points)
    drawn = (
        f'<polyline points="{line}" fill="none" stroke="#2563a8" stroke-width="1.3"/>'
        if len(points) > 1
        else f'<circle cx="{line.split(",")[0]}" cy="{line.split(",")[1]}" r="3" fill="#2563a8"/>'
    )
    return (
        f'<figure class="curve"><figcaption>{html.escape(tag)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">'
        f'<rect x="{MARGIN}" y="{MARGIN}" width="{WIDTH - 2 * MARGIN}" height="{HEIGHT - 2 * MARGIN}" '
        f'fill="none" stroke="#ccc"/>{drawn}'
        f'<text x="{MARGIN}" y="{MARGIN - 6}">{high:.5g}</text>'
        f'<text x="{MARGIN}" y="{HEIGHT - MARGIN + 14}">{low:.5g}</text>'
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - MARGIN + 14}" text-anchor="end">'
        f"step {left} to {right}, last {values[-1]:.5g}</text></svg></figure>"
    )
