"""How long what is left will take."""

from __future__ import annotations


class TimeLeft:
    """Counts on the rest taking as long as what was done.

    Args:
        total: how many there are to do.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.seconds: list[float] = []

    def took(self, seconds: float) -> None:
        """One more is done."""
        self.seconds.append(seconds)

    def __str__(self) -> str:
        """Such as ``, about 12 min left``; nothing before the first is done."""
        if not self.seconds:
            return ""
        left = (self.total - len(self.seconds)) * sum(self.seconds) / len(self.seconds)
        if left < 90:
            return f", about {left:.0f} s left"
        return f", about {left / 60:.0f} min left" if left < 5400 else f", about {left / 3600:.1f} h left"
