"""What the audience sees: acts, sentences, and a line of progress that is drawn anew. It knows nothing of the play."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap

_BAR = 24
_INDENT = "     "


class Teller:
    """Tells on stdout. Without a terminal there is no progress line and no colour."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._colour = self._live and "NO_COLOR" not in os.environ
        self._drawn = False

    def act(self, number: int, title: str, sentence: str) -> None:
        """Open an act."""
        self.say()
        self.say(self._bold(f"{number}    {title}"))
        self.tell(sentence)

    def tell(self, sentence: str) -> None:
        """Tell a sentence, wrapped."""
        width = min(shutil.get_terminal_size((100, 24)).columns, 110)
        self.say(textwrap.fill(sentence, width, initial_indent=_INDENT, subsequent_indent=_INDENT))

    def fact(self, name: str, words: str) -> None:
        """Tell one figure."""
        self.say(f"{_INDENT}{name:<14}{words}")

    def good(self, words: str) -> None:
        """Tell what came out well."""
        self.say(f"{_INDENT}{self._coloured('✓', 32)} {words}")

    def bad(self, words: str) -> None:
        """Tell what did not."""
        self.say(f"{_INDENT}{self._coloured('✗', 31)} {words}")

    def task(self, what: str, command: str) -> None:
        """Tell what to do, so that it can be copied."""
        self.say(f"{_INDENT}{what:<6}{self._bold(command)}")

    def progress(self, words: str, done: int = 0, of: int = 0) -> None:
        """Draw the line of progress anew; on no terminal nothing is drawn."""
        if not self._live:
            return
        filled = _BAR * min(done, of) // of if of else 0
        bar = f"{'█' * filled}{'░' * (_BAR - filled)}  " if of else ""
        columns = shutil.get_terminal_size((100, 24)).columns
        sys.stdout.write(f"\r\033[K{(_INDENT + bar + words)[: columns - 1]}")
        sys.stdout.flush()
        self._drawn = True

    def say(self, text: str = "") -> None:
        """Tell a line as it is."""
        if self._drawn:
            sys.stdout.write("\r\033[K")
            self._drawn = False
        print(text, flush=True)

    def _bold(self, text: str) -> str:
        return f"\033[1m{text}\033[0m" if self._colour else text

    def _coloured(self, text: str, colour: int) -> str:
        return f"\033[{colour}m{text}\033[0m" if self._colour else text
