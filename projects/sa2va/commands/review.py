"""``scripts/review_pairs.py``."""
from __future__ import annotations

import argparse
from pathlib import Path

from sa2va_dpo.common.arguments import ArgumentParser
from sa2va_dpo.common.errors import InputError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        description='Look at preference pairs in the browser and decide: accept, swap, drop, skip. Then --merge.')
    add = parser.add_argument
    add('--data_root', required=True, help='folder that scripts/generate_dpo_dataset.py wrote')
    add('--ann_file', default='dpo_annotations.json', help='pairs in that folder (default %(default)s)')
    add('--reviewer', required=True, nargs='+', metavar='NAME', help='who decides; two names with --export')
    what = parser.add_mutually_exclusive_group()
    what.add_argument('--merge', action='store_true', help="write the reviewer's decisions into the annotations")
    what.add_argument('--export', metavar='FILE', help="compare two reviewers (Cohen's kappa, confusion, disagreements): JSON")
    add('--host', default='127.0.0.1', help='address to listen on (default: this machine only)')
    add('--port', type=int, default=7860, help='default %(default)s')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    from sa2va_dpo.review.journal import Journal, check_reviewer, read_decisions
    from sa2va_dpo.review.pairs import open_set

    for name in args.reviewer:
        check_reviewer(name)
    wanted = 2 if args.export else 1
    if len(set(args.reviewer)) != wanted or len(args.reviewer) != wanted:
        raise InputError(f'--reviewer {" ".join(args.reviewer)}: '
                         + ('--export needs two different names' if args.export else 'one name is needed here'))
    review = open_set(args.data_root, args.ann_file)
    if args.export:
        _export(review, args.reviewer, Path(args.export))
    elif args.merge:
        from sa2va_dpo.review.merge import merge

        counts = merge(review, read_decisions(review, args.reviewer[0]), args.reviewer[0])
        print(f'{review.annotations}: ' + ', '.join(f'{count} {name}' for name, count in sorted(counts.items()))
              + f'; as mined: {review.original}')
    else:
        from sa2va_dpo.review.server import check_address, serve

        check_address(args.host, args.port)
        with Journal(review, args.reviewer[0]) as journal:
            serve(review, journal, args.host, args.port)
    return 0


def _export(review, names: list[str], path: Path) -> None:
    from sa2va_dpo.datasets.annotations import write_json
    from sa2va_dpo.review.agreement import compare
    from sa2va_dpo.review.journal import read_decisions

    first, second = (read_decisions(review, name) for name in names)
    report = dict(reviewers=names, **compare(first, second))
    for entry in report['disagreements']:
        record = review.records[entry['pair']]
        entry.update(image=record.image, chosen_mask=record.chosen_mask, rejected_mask=record.rejected_mask)
    try:
        write_json(path, report)
    except OSError as error:
        raise InputError(f'--export {path}: cannot be written ({error.strerror}): choose another file') from None
    kappa = 'not defined' if report['kappa'] is None else f'{report["kappa"]:.4f}'
    print(f"{report['pairs']} pairs decided by both, Cohen's kappa {kappa}, {len(report['disagreements'])} disagreements")
    print(f'rows {names[0]}, columns {names[1]}: ' + ', '.join(report['categories']))
    for category, row in zip(report['categories'], report['confusion']):
        print(f'{category:>8} ' + ' '.join(f'{count:5d}' for count in row))
