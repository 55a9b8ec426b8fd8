"""The look of all figures."""

from typing import Any

# Okabe and Ito's colours, which colour-blind readers can tell apart, without yellow.
COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000",
)  # fmt: skip


def style(ax: Any) -> None:
    """Sets the colours, a grid behind the curves, and two spines."""
    ax.set_prop_cycle(color=COLORS)
    ax.grid(visible=True, which="major", color="0.9", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
