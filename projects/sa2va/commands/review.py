"""``scripts/review_pairs.py``."""
from __future__ import annotations

import argparse
from pathlib import Path

from sa2va_dpo.common import signals
from sa2va_dpo.common.arguments import ArgumentParser
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import write_json
from sa2va_dpo.datasets.annotations import PAIRS_FILE

_LISTED = 20


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        description='Look at preference pairs in the browser and decide: accept, swap, drop, skip. With --pick: '
                    'choose the best of several masks. Then --merge.'
    )
    add = parser.add_argument
    add('--data_root', required=True, help='folder that scripts/generate_dpo_dataset.py wrote')
    add('--ann_file', default=PAIRS_FILE, help='pairs in that folder (default %(default)s)')
    add('--reviewer', required=True, nargs='+', metavar='NAME',
        help='who decides, in any script; several names with --merge, two with --export')
    what = parser.add_mutually_exclusive_group()
    what.add_argument('--merge', action='store_true',
                      help="join the reviewers' decisions, and those merged before, into the annotations")
    what.add_argument(
        '--export', metavar='FILE', help="compare two reviewers (Cohen's kappa, confusion, disagreements): JSON"
    )
    add(
        '--pick',
        action='store_true',
        help='pick the best of the candidates of every image (the default where the folder holds candidates.json and '
             'no pairs)',
    )
    add('--clicks', type=int, metavar='N', help='with --pick: the session ends after N decided images')
    add('--exit-when-done', action='store_true', help='with --pick: end once everything is decided')
    add('--lang', choices=('en', 'zh'), help="language of the page (default: the browser's)")
    add('--host', default='127.0.0.1', help='address to listen on (default: this machine only)')
    add('--port', type=int, default=7860, help='default %(default)s; 0 takes a free one')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    from sa2va_dpo.review.candidates import has_candidates
    from sa2va_dpo.review.reviewers import reviewer_name

    names = [reviewer_name(name) for name in args.reviewer]
    if len(set(names)) != len(names):
        raise InputError(f'--reviewer {" ".join(names)}: a name stands twice')
    if args.export and len(names) != 2:
        raise InputError(f'--reviewer {" ".join(names)}: --export needs two different names')
    if not args.export and not args.merge and len(names) != 1:
        raise InputError(f'--reviewer {" ".join(names)}: one name is needed here')
    root = Path(args.data_root)
    pick = args.pick or has_candidates(root) and not (root / args.ann_file).exists()
    if not pick and (args.clicks is not None or args.exit_when_done):
        raise InputError(f'{"--clicks" if args.clicks is not None else "--exit-when-done"}: is for --pick: add it')
    if not args.merge and not args.export:
        signals.go_on('every decision is kept, the same command goes on')
    (_pick if pick else _pairs)(args, names)
    return 0


def _pairs(args: argparse.Namespace, names: list[str]) -> None:
    from sa2va_dpo.review.pairs import open_set

    review = open_set(args.data_root, args.ann_file)
    if args.export:
        _export(review, names, Path(args.export))
    elif args.merge:
        _merge(review, names)
    else:
        from sa2va_dpo.review.server import serve_pairs

        serve_pairs(review, names[0], args.host, args.port, lang=args.lang)


def _pick(args: argparse.Namespace, names: list[str]) -> None:
    from sa2va_dpo.review.picks import pick_statistics, read_picks

    if args.export:
        raise InputError('--export: compares reviewers of pairs: leave --pick out')
    if args.merge:
        from sa2va_dpo.review.pick_merge import merge_picks

        path, counts = merge_picks(args.data_root, args.ann_file, names)
        print(f'{path}: {counts["pairs"]} pairs from {counts["agreed"]} images, {counts["conflicts"]} in conflict')
        return
    from sa2va_dpo.review.server import serve_picks

    serve_picks(args.data_root, names[0], args.host, args.port, clicks=args.clicks, exit_when_done=args.exit_when_done,
                lang=args.lang)
    facts = pick_statistics(read_picks(args.data_root, names[0]))
    median = '' if facts['seconds_median'] is None else f', {facts["seconds_median"]:g} s each (median)'
    print(
        f'{facts["decided"]} images decided by {names[0]}: {facts["candidate"]} picked, {facts["composite"]} put '
        f'together, {facts["equal"]} about equal, {facts["none"]} without a good one{median}'
    )


def _merge(review, names: list[str]) -> None:
    from sa2va_dpo.review.merge import merge, record_path

    merged = merge(review, names)
    print(f'{review.annotations}: ' + ', '.join(f'{count} {name}' for name, count in sorted(merged.counts.items()))
          + f'; by {", ".join(merged.reviewers)}; as mined: {review.original}')
    for (first, second), report in merged.agreement.items():
        print(f'{first} and {second}: ' + _agreement(report))
    for number, (pair, said) in enumerate(merged.conflicts.items()):
        if number == _LISTED:
            print(f'  and {len(merged.conflicts) - _LISTED} more conflicts: {record_path(review)}')
            break
        print(f'  conflict, left as mined: {review.records[pair].image} ({pair}): '
              + ', '.join(f'{name}: {decision}' for name, decision in said.items()))


def _agreement(report: dict) -> str:
    kappa = 'not defined' if report['kappa'] is None else f'{report["kappa"]:.4f}'
    return (
        f"{report['pairs']} pairs decided by both, Cohen's kappa {kappa}, {len(report['disagreements'])} disagreements"
    )


def _export(review, names: list[str], path: Path) -> None:
    from sa2va_dpo.review.agreement import compare
    from sa2va_dpo.review.journal import read_decisions, read_notes

    first, second = (read_decisions(review, name) for name in names)
    notes = {name: read_notes(review, name) for name in names}
    report = dict(reviewers=names, **compare(first, second))
    for entry in report['disagreements']:
        record = review.records[entry['pair']]
        entry.update(image=record.image, chosen_mask=record.chosen_mask, rejected_mask=record.rejected_mask,
                     notes={name: own[entry['pair']] for name, own in notes.items() if entry['pair'] in own})
    write_json(path, report)
    print(_agreement(report))
    print(f'rows {names[0]}, columns {names[1]}: ' + ', '.join(report['categories']))
    for category, row in zip(report['categories'], report['confusion']):
        print(f'{category:>8} ' + ' '.join(f'{count:5d}' for count in row))
