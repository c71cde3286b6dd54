#!/usr/bin/env python
"""Compare our model with reference numbers of the original one:  check_parity.py FIXTURE_DIR [--json FILE]

Prints name, max absolute difference, tolerance and verdict of every reference tensor; exit code 1 if any fails,
2 for unusable input.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'projects' / 'checkout'))

from sa2va_dpo.common.errors import cli_main  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('fixture_dir', help='folder in the format of the parity fixtures')
    parser.add_argument('--json', metavar='FILE', help='also write the rows there')
    args = parser.parse_args()
    from sa2va_dpo.common.files import write_text
    from sa2va_dpo.parity import compare as parity

    rows = parity.check_fixture(args.fixture_dir)
    print(parity.report(rows))
    if args.json:
        write_text(args.json, parity.as_json(rows))
    return int(any(row.passed is False for row in rows))


if __name__ == '__main__':
    cli_main(main)()
