"""Command line: arguments become one library call.

Exit codes: 0 done, 2 wrong usage or input, 1 failure or Ctrl-C, 143 or 129 ended by SIGTERM or
SIGHUP.
"""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:  # nothing is imported before, so that a Ctrl-C during the imports ends here too
        from llm2nifti.cli import stopping

        return stopping.run(argv)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        return 1
