"""How much room a text takes in a picture, and texts made to fit; SVG breaks no lines.

Which font a browser has is not known, so widths are those of a wide one (DejaVu Sans, at the 12.5
units of the style sheet), rounded up.
"""

from __future__ import annotations

_NARROW, _COMMON, _CAPITAL, _BROAD, _FULL = 5.9, 8.0, 9.2, 10.9, 12.5
_WIDTHS = {
    **dict.fromkeys(" .,:;'|!-/()[]\"iljIfrt·", _NARROW),
    **dict.fromkeys("MwGOQDNHUCK&+=<>~^#×", _BROAD),
    **dict.fromkeys("mW@%…", _FULL),
}
"""Letter -> its width; others are common ones, capitals, or as wide as high."""


def width(text: str) -> float:
    """Of a text, in units of a picture: rather too much than too little."""
    return sum(map(_width, text))


def shortened(text: str, room: float) -> str:
    """The text if it fits, else with dots for its middle: both ends tell names apart.

    Args:
        text: on one line.
        room: in units of a picture.

    Returns:
        A text that fits; at the least the dots, whatever the room.
    """
    if width(text) <= room:
        return text
    for left_out in range(1, len(text)):
        kept = len(text) - left_out
        end = kept // 3
        short = f"{text[: kept - end]}…{text[len(text) - end :]}"
        if width(short) <= room:
            return short
    return "…"


def _width(letter: str) -> float:
    known = _WIDTHS.get(letter)
    if known is not None:
        return known
    if ord(letter) > 0x2000:
        return _FULL
    return _CAPITAL if letter.isupper() else _COMMON
