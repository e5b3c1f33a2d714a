"""What the three command lines share: exit codes, and one line for what the user can mend."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from tokenizer.errors import UserError


def run_command(name: str, command: Callable[[], int | None]) -> int:
    """Runs a command and turns its outcome into an exit code.

    With ``LATOK_DEBUG=1`` in the environment every error keeps its traceback.

    Args:
        name: Of the program; begins each message.
        command: Parses the arguments and does the work; may return an exit code.

    Returns:
        0 or the command's own code; 2 after a `UserError` or an error of the operating system,
        which are printed as one line; 130 when interrupted.

    Raises:
        Exception: Any other error, which is a bug.
    """
    try:
        code = command()
        sys.stdout.flush()  # A closed pipe is reported here rather than at exit.
    except BrokenPipeError:
        # As in `latok info FILE | head -1`. Python would flush, and fail, once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"{name}: broken pipe: nobody reads the output", file=sys.stderr)
        return 2
    except (UserError, OSError) as error:
        if os.environ.get("LATOK_DEBUG", "") not in ("", "0"):
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"{name}: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    return code or 0
