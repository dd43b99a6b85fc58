"""What a journal asks of a figure: its width, legible text, no text outside or on other text."""

from __future__ import annotations

import itertools

from matplotlib.figure import Figure
from matplotlib.text import Text


def check_print(figure: Figure, width_mm: float) -> None:
    assert abs(figure.get_figwidth() * 25.4 - width_mm) < 1e-6
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    # Not drawn: labels of ticks outside the limits, and all of axes that are off.
    hidden = {
        tick_label
        for ax in figure.axes
        for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim()))
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        for tick_label in (tick.label1, tick.label2)
        if not ax.axison or not min(limits) <= tick.get_loc() <= max(limits)
    }
    boxes = {text: text.get_window_extent(renderer) for text in texts if text not in hidden}
    assert all(text.get_fontsize() >= 7 for text in boxes)
    whole = figure.bbox.padded(1)
    for text, box in boxes.items():
        assert whole.x0 <= box.x0, text.get_text()
        assert box.x1 <= whole.x1, text.get_text()
        assert whole.y0 <= box.y0, text.get_text()
        assert box.y1 <= whole.y1, text.get_text()
    # Only upright text: the boxes of rotated labels overlap where their letters do not.
    upright = [(text, box) for text, box in boxes.items() if text.get_rotation() in (0, 90)]
    for (one, box), (other, beside) in itertools.combinations(upright, 2):
        overlap = max(0, min(box.x1, beside.x1) - max(box.x0, beside.x0)) * max(
            0, min(box.y1, beside.y1) - max(box.y0, beside.y0)
        )
        assert overlap < 0.2 * min(box.width * box.height, beside.width * beside.height), (
            one.get_text(),
            other.get_text(),
        )
