"""The program: it parses the arguments, runs a command, and turns the errors a user can mend into one message each."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import tyro

from icl_kernel_lens.cli.commands import COMMANDS
from icl_kernel_lens.errors import LensError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; an error the user can mend is one message on standard error, and exit code 1."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            {name: command.run for name, command in COMMANDS.items()},
            args=list(sys.argv[1:] if argv is None else argv),
            prog="icl-kernel-lens",
            description="Which attention heads answer a few-shot prompt like a kernel regression?",
        )
    except LensError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "interrupted; what was finished, if anything, is in the folder 'unfinished' of the output, and the same "
            "command goes on from there.",
            file=sys.stderr,
        )
        return 130
    return 0


def run() -> None:
    """Run `main`, and end the process."""
    code = main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Without the interpreter's own end, which gloo's threads do not always live through (pytorch#179291).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
