"""Scripts of `launch/`, each in a process of its own that begins with its imports made: they take three seconds.

A line of standard input is one script: its words, and the file for what it prints. A line of standard output is its
status. That a new process can make the imports is for those tests to say that start one.
"""

import json
import os
import pathlib
import runpy
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "launch"))

import command  # noqa: F401, I001  first: it makes the rest importable
import assembly  # noqa: F401
import grid  # noqa: F401
import session  # noqa: F401

LIMIT = 300  # seconds


def main() -> None:
    for line in sys.stdin:
        words, output = json.loads(line)
        child = os.fork()
        if not child:
            signal.alarm(LIMIT)
            for file, flags, descriptor in ((os.devnull, os.O_RDONLY, 0), (output, os.O_WRONLY | os.O_CREAT, 1)):
                os.dup2(os.open(file, flags), descriptor)
            os.dup2(1, 2)
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
