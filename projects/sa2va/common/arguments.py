"""The command line's one habit: every flag exists with ``-`` and with ``_`` between its words."""
from __future__ import annotations

import argparse
import sys
from typing import Sequence


class ArgumentParser(argparse.ArgumentParser):
    """``argparse.ArgumentParser`` that takes ``--val-fraction`` where ``--val_fraction`` was declared, and the other
    way round.

    The guide writes some flags one way and some the other, and nobody remembers which. Help shows the declared
    spelling.
    """

    def parse_known_args(self, args=None, namespace=None):  # noqa: D102  (argparse's own contract)
        return super().parse_known_args(self._as_declared(sys.argv[1:] if args is None else args), namespace)

    def _as_declared(self, args: Sequence[str]) -> list[str]:
        """The arguments with every flag, also a shortened one, spelled as it was declared."""
        declared = [name for name in self._option_string_actions if name.startswith('--')]
        result: list[str] = []
        for index, argument in enumerate(args):
            if argument == '--':
                return [*result, *args[index:]]
            result.append(self._respelled(argument, declared) if argument.startswith('--') else argument)
        return result

    def _respelled(self, argument: str, declared: Sequence[str]) -> str:
        name, equals, value = argument.partition('=')
        meant = _plain(name)
        whole = [option for option in declared if _plain(option) == meant]
        if name in whole:
            return argument
        matching = whole or [option for option in declared if _plain(option).startswith(meant)]
        # A shortened flag stays as short, so that argparse itself says what it could mean.
        spellings = {option[:len(name)] for option in matching}
        if len(spellings) > 1 and not whole:
            self.error(f'ambiguous option: {name} could match {", ".join(matching)}')
        return sorted(spellings)[0] + equals + value if spellings else argument


def _plain(name: str) -> str:
    return name.replace('_', '-')
