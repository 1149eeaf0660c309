"""The chart of a run's losses."""
from collections.abc import Collection, Mapping, Sequence
from math import ceil, floor, log10

from PIL import Image, ImageDraw, ImageFont

from .fonts import Color

WIDTH, HEIGHT = 960, 540
LEFT, RIGHT, TOP, BOTTOM = 84, 84, 52, 484
"""Margins of the plot on the left and right, and where it begins and ends, in pixels."""
SCALE = 2
"""Drawn so many times larger and then reduced: smooth lines."""
INK, GRID = (40, 40, 40), (225, 225, 225)
TRAINING, FAINT, VALIDATION, NORM = (31, 98, 189), (183, 205, 234), (222, 92, 16), (120, 160, 120)

Curve = Mapping[int, float]
"""Step → value."""


def loss_chart(training: Curve, validation: Curve, gradient_norm: Curve) -> Image.Image:
    """Training loss, as it is and smoothed, and validation loss on the left axis, smoothed gradient norm on the right."""
    chart = _Chart(max([*training, *validation]))
    smooth, norm = smoothed(training), smoothed(gradient_norm)
    loss = ticks([*smooth.values(), *validation.values(), *_without_outliers(training.values())])
    chart.frame(loss, ticks([0.0, 2 * max(norm.values(), default=1.0)]))  # it stays in the lower half
    chart.line(training, chart.left, FAINT, 1)
    chart.line(norm, chart.right, NORM, 1)
    chart.line(smooth, chart.left, TRAINING, 3)
    chart.line(validation, chart.left, VALIDATION, 2)
    chart.points(validation, chart.left, VALIDATION)
    names = {"training loss": TRAINING, "validation loss": VALIDATION, "gradient norm": NORM}
    return chart.finish({name: color for name, color in names.items() if validation or color != VALIDATION})


def smoothed(curve: Curve) -> Curve:
    """Mean over the values around each step: a tenth of the run to each side, at least 2 and at most 50 values."""
    steps, values = sorted(curve), [curve[step] for step in sorted(curve)]
    reach = min(50, max(2, len(values) // 10))
    windows = [values[max(0, place - reach):place + reach + 1] for place in range(len(values))]
    return {step: sum(window) / len(window) for step, window in zip(steps, windows)}


def ticks(values: Sequence[float], wanted: int = 6) -> list[float]:
    """Round numbers, evenly spaced, from below the lowest value to above the highest: 1, 2 or 5 times a power of ten."""
    lowest, highest = min(values), max(values)
    distance = max((highest - lowest) / (wanted - 1), abs(highest) * 1e-3, 1e-9)
    power = 10.0 ** floor(log10(distance))
    distance = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= distance * 0.999)
    first, last = floor(lowest / distance), ceil(highest / distance)
    return [number * distance for number in range(first, max(last, first + 1) + 1)]


def _without_outliers(values: Collection[float]) -> list[float]:
    """The lower 98 % of the values: one wild step shall not flatten the chart."""
    return sorted(values)[:max(1, ceil(0.98 * len(values)))]


class _Chart:
    def __init__(self, steps: int):
        self.steps = max(1, steps)
        self.image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "white")
        self.draw = ImageDraw.Draw(self.image)
        self.font = ImageFont.load_default(15 * SCALE)

    def frame(self, left: list[float], right: list[float]):
        """Axes with their numbers. Steps run from 0 to the last."""
        self.left, self.right = (left[0], left[-1]), (right[0], right[-1])
        for value in left:
            height = self._y(value, self.left)
            self.draw.line([LEFT * SCALE, height, (WIDTH - RIGHT) * SCALE, height], GRID, SCALE)
            self._text(LEFT - 8, height / SCALE, f"{value:.4g}", INK, "rm")
        for value in right:
            self._text(WIDTH - RIGHT + 8, self._y(value, self.right) / SCALE, f"{value:.3g}", NORM, "lm")
        for step in (each for each in ticks([0, self.steps]) if each <= self.steps and each == int(each)):
            x = self._x(step)
            self.draw.line([x, BOTTOM * SCALE, x, (BOTTOM + 6) * SCALE], INK, SCALE)
            self._text(x / SCALE, BOTTOM + 18, f"{step:.0f}", INK, "mm")
        self.draw.line([LEFT * SCALE, TOP * SCALE, LEFT * SCALE, BOTTOM * SCALE, (WIDTH - RIGHT) * SCALE, BOTTOM * SCALE],
                       INK, SCALE)
        self._text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 16, "step", INK, "mm")

    def line(self, curve: Curve, axis: tuple[float, float], color: Color, width: int):
        points = [(self._x(step), self._y(curve[step], axis)) for step in sorted(curve)]
        if len(points) > 1:
            self.draw.line(points, color, width * SCALE, joint="curve")

    def points(self, curve: Curve, axis: tuple[float, float], color: Color):
        for step, value in curve.items():
            x, y, radius = self._x(step), self._y(value, axis), 4 * SCALE
            self.draw.ellipse([x - radius, y - radius, x + radius, y + radius], color)

    def finish(self, names: Mapping[str, Color]) -> Image.Image:
        """The image, with the names of the curves above it in their colors."""
        x = LEFT
        for name, color in names.items():
            self.draw.line([x * SCALE, 26 * SCALE, (x + 24) * SCALE, 26 * SCALE], color, 3 * SCALE)
            self._text(x + 30, 26, name, INK, "lm")
            x += 64 + self.draw.textlength(name, self.font) / SCALE
        return self.image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)

    def _x(self, step: float) -> float:
        return (LEFT + (WIDTH - RIGHT - LEFT) * step / self.steps) * SCALE

    def _y(self, value: float, axis: tuple[float, float]) -> float:
        """Values beyond the axis lie on its end."""
        fraction = min(1.0, max(0.0, (value - axis[0]) / (axis[1] - axis[0])))
        return (BOTTOM - (BOTTOM - TOP) * fraction) * SCALE

    def _text(self, x: float, y: float, text: str, color: Color, anchor: str):
        self.draw.text((x * SCALE, y * SCALE), text, color, self.font, anchor=anchor)
