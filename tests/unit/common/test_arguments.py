"""Both spellings of a flag, and what must not be respelled."""
from __future__ import annotations

import pytest

from sa2va_dpo.common.arguments import ArgumentParser


@pytest.fixture()
def parser() -> ArgumentParser:
    parser = ArgumentParser(prog='x')
    parser.add_argument('--val_fraction', type=float, default=0.0)
    parser.add_argument('--work-dir')
    parser.add_argument('--cfg-options', nargs='+', default=[])
    parser.add_argument('--pairs_per_image', type=int)
    either = parser.add_mutually_exclusive_group()
    either.add_argument('--dry_run', action='store_true')
    either.add_argument('--no-gt-candidate', action='store_true')
    parser.add_argument('rest', nargs='*')
    return parser


@pytest.mark.parametrize('flag', ['--val_fraction', '--val-fraction'])
@pytest.mark.parametrize('form', ['{} 0.5', '{}=0.5'])
def test_both_spellings(parser, flag, form):
    assert parser.parse_args(form.format(flag).split()).val_fraction == 0.5


@pytest.mark.parametrize('flag', ['--no-gt-candidate', '--no_gt_candidate', '--no_gt-candidate'])
def test_flags_of_a_group(parser, flag):
    assert parser.parse_args([flag]).no_gt_candidate


def test_the_group_still_excludes(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(['--dry-run', '--no_gt_candidate'])
    assert 'not allowed with' in capsys.readouterr().err


def test_values_and_what_follows_two_dashes_stay_as_they_are(parser):
    args = parser.parse_args(
        ['--work_dir', 'my_work-dir', '--cfg_options', 'a_b=c-d_e', 'x-y=z_1', '--', '--val_fraction']
    )
    assert (args.work_dir, args.cfg_options, args.rest) == ('my_work-dir', ['a_b=c-d_e', 'x-y=z_1'], ['--val_fraction'])
    assert parser.parse_args(['--work_dir=a_b-c']).work_dir == 'a_b-c'


def test_shortened_flags(parser):
    assert parser.parse_args(['--pairs-per', '3']).pairs_per_image == 3
    assert parser.parse_args(['--val-f=0.25']).val_fraction == 0.25


def test_a_short_form_that_two_spellings_share_is_ambiguous(capsys):
    parser = ArgumentParser(prog='x')
    parser.add_argument('--max_pairs')
    parser.add_argument('--max-images')
    with pytest.raises(SystemExit):
        parser.parse_args(['--max_', '3'])
    assert 'ambiguous option: --max_ could match --max_pairs, --max-images' in capsys.readouterr().err


def test_unknown_flags_are_refused_as_they_were_written(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(['--no_such_flag'])
    assert '--no_such_flag' in capsys.readouterr().err


def test_help_shows_one_spelling(parser):
    text = parser.format_help()
    assert '--val_fraction' in text and '--val-fraction' not in text
    assert '--work-dir' in text and '--work_dir' not in text
