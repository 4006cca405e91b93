"""Runs a command in a pseudo-terminal and answers its questions: python3 in_a_terminal.py ANSWERS COMMAND...

ANSWERS is a text such as "12=q": one character for each question, typed when the question's last words are on the screen; behind the last
one the terminal is closed by Ctrl-D. Prints what was on the screen; ends with the command's exit code.
"""

import os
import pty
import sys

QUESTION = b"q (leave): "


def main() -> int:
    answers, command = list(sys.argv[1]), sys.argv[2:]
    child, terminal = pty.fork()
    if child == 0:
        os.execvp(command[0], command)
    screen, seen = b"", 0
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # Linux says so when the other side has closed
            part = b""
        if not part:
            break
        screen += part
        while screen.count(QUESTION) > seen:
            seen += 1
            os.write(terminal, (answers.pop(0) + "\n").encode() if answers else b"\x04")
    _, status = os.waitpid(child, 0)
    sys.stdout.buffer.write(screen)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
