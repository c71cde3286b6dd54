"""``tools/check_parity.py``: our model against reference numbers of the original one."""
from __future__ import annotations

import argparse

from sa2va_dpo.common.arguments import ArgumentParser
from sa2va_dpo.common.files import write_text


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        description='Compare our model with reference numbers of the original one: name, largest absolute difference, '
                    'tolerance and verdict of every reference tensor. Exit code 1 if any fails, 2 for unusable input.'
    )
    parser.add_argument('fixture_dir', help='folder in the format of the parity fixtures')
    parser.add_argument('--json', metavar='FILE', help='also write the rows there')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print the table; returns 1 if a tensor is beyond its tolerance.

    Raises:
        InputError: the folder is no parity fixture.
    """
    args = parse_args(argv)
    from sa2va_dpo.parity.compare import as_json, check_fixture, report

    rows = check_fixture(args.fixture_dir)
    print(report(rows))
    if args.json:
        write_text(args.json, as_json(rows))
    return int(any(row.passed is False for row in rows))
