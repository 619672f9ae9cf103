# SPDX-License-Identifier: GPL-3.0-or-later
"""Which white space around a text is none of it. Pure."""


class Text:
    """One channel's text as it comes, without white space around it that is none of the answer's.

    White space at the end of a piece is held back until more text shows that it belongs inside.
    """

    def __init__(self, *, trim_start: bool = False) -> None:
        self.trim_start = trim_start
        self.began = False
        self._held = ""

    def feed(self, piece: str) -> str:
        """Take a piece; return what may go out."""
        text = self._held + piece
        if self.trim_start and not self.began:
            text = text.lstrip("\r\n")
        out = text.rstrip()
        self._held = text[len(out) :]
        self.began = self.began or bool(out)
        return out

    def flush(self) -> str:
        """What is held back, for good."""
        held, self._held = self._held, ""
        return held
