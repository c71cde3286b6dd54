"""The one exception that stands for bad input, and how an entry point reports it."""
from __future__ import annotations

import functools
import sys
from typing import Callable


class InputError(Exception):
    """Bad input from the user.

    The message is one line that names the file, the field and the remedy. Entry points print it
    and exit with code 2; library code never catches it.
    """


def cli_main(main: Callable[..., int | None]) -> Callable[..., None]:
    """Wrap a command-line ``main`` so that :class:`InputError` becomes one line and exit code 2.

    A ``KeyboardInterrupt`` becomes exit code 130, the shell's convention, without a traceback.
    ``main`` returns its exit code (``None`` means 0).
    """

    @functools.wraps(main)
    def wrapper(*args, **kwargs) -> None:
        try:
            code = main(*args, **kwargs)
        except InputError as error:
            print('error: ' + ' '.join(str(error).split()), file=sys.stderr)
            code = 2
        except KeyboardInterrupt:
            print('interrupted', file=sys.stderr)
            code = 130
        sys.exit(code or 0)

    return wrapper
