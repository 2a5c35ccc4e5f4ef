"""A pseudo-terminal in the place of stdout and stderr, and what stands on it."""

import fcntl
import os
import re
import struct
import termios
import threading


class Terminal:
    def __init__(self, columns):
        self._main, self._other = os.openpty()
        self.resize(columns)
        self.stream = os.fdopen(os.dup(self._other), "w", buffering=1)
        self.written = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def resize(self, columns):
        self.columns = columns
        fcntl.ioctl(self._other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def _read(self):
        while b"\0" not in self.written:
            self.written += os.read(self._main, 1 << 16)

    def screen(self):
        """Ends it; the lines as a terminal shows them, wrapped at its width."""
        self.stream.write("\0")
        self.stream.flush()
        self._reader.join()
        os.close(self._main)
        os.close(self._other)
        lines, column = [""], 0
        for token in re.findall(r"\033\[K|.", self.written.decode().rstrip("\0"), re.DOTALL):
            if token == "\r":
                column = 0
            elif token == "\n":
                lines.append("")
            elif token == "\033[K":
                lines[-1] = lines[-1][:column]
            else:
                if column == self.columns:
                    lines.append("")
                    column = 0
                lines[-1] = lines[-1][:column] + token + lines[-1][column + 1 :]
                column += 1
        return lines
