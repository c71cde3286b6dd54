"""``sa2va-dpo report``: the page of a job or a test, made anew from what lies in its folder."""
from __future__ import annotations

import argparse
from pathlib import Path

from sa2va_dpo.common.arguments import ArgumentParser
from sa2va_dpo.common.errors import InputError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description='Write report.html of a finished job or test anew, for example in another '
                                        'language.')
    parser.add_argument('folder', help='work directory of the job or of the test')
    parser.add_argument('--lang', choices=('en', 'zh'), default='en', help='language of the page (default %(default)s)')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    folder = Path(args.folder)
    if (folder / 'job.json').is_file():
        from sa2va_dpo.commands.job.page import write_page
    elif (folder / 'test.json').is_file():
        from sa2va_dpo.reporting.tested import write_page
    else:
        raise InputError(f'{folder}: holds neither a job (job.json) nor a test (test.json): give the --work-dir of one')
    print(f'report: {write_page(folder, args.lang)}')
    return 0
