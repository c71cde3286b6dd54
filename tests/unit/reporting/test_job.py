"""The report of a job: whatever is missing, the page says so and shows the rest."""
import json
import re
import shutil

import pytest

from sa2va_dpo.commands.job.page import write_page
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.reporting.curves import Training


def page_of(job, language='en'):
    return write_page(job.write(), language).read_text(encoding='utf-8')


def sections(page):
    return re.findall(r'<section id="(\w+)"', page)


def verdict(page):
    return re.search(r'<h1 class="verdict (\w*)">(.*?)</h1>', page).groups()


def test_a_whole_job(job_folder):
    page = page_of(job_folder())
    assert sections(page) == ['figures', 'images', 'training', 'pairs', 'repeat']
    tone, words = verdict(page)
    assert words.startswith('No clear change') and tone == 'plain', 'four images prove nothing: p is at least 1/8'
    assert page.count('<article class="case"') == 4 + 2 and 'data-open="case-' in page
    for words in ('Kendall', '0.42', 'few pairs', 'best_dice_iter_20.pth', '7' * 32, '0.5000 / 0.6000', '1 min 1 s',
                  '--seed 3', 'threshold:0.7'):
        assert words in page, words
    assert page.count('<svg') == 1 + 4 + 2, 'scatter, four curves, gaps and sources'


def test_enough_images_make_a_verdict(job_folder):
    names = [f'case_{i:02d}' for i in range(12)]
    tone, words = verdict(page_of(job_folder(names=names)))
    assert tone == 'good' and words.startswith('Better on images it never saw') and '12 of 12' in words


def test_worse_is_said(job_folder, results):
    job = job_folder(names=[f'case_{i:02d}' for i in range(12)])
    results.write(job.path / 'test_after', job.names, lambda i: 0.2 + 0.01 * i)
    tone, words = verdict(page_of(job))
    assert tone == 'bad' and words.startswith('Worse on images it never saw') and 'Do not replace' in words


@pytest.mark.parametrize('size, words', [(640, 'handed back unchanged'), (1024, 'only its SAM2 input is 1024 px')])
def test_not_better_keeps_the_start(job_folder, size, words):
    job = job_folder()
    job.summary.update(best_checkpoint=None, exported_sam_size=size)
    page = page_of(job)
    assert verdict(page)[0] == 'bad' and verdict(page)[1].startswith('Not better') and words in page
    assert 'none, the start itself' in page and 'checkpoint taken' not in page


def test_no_validation(job_folder):
    job = job_folder()
    job.summary.update(validation_dice=None, best_checkpoint=str(job.path / 'training/iter_20.pth'))
    (job.path / 'training/val_history.json').unlink()
    page = page_of(job)
    assert 'no validation: the last checkpoint was taken' in verdict(page)[1] and 'iter_20.pth (the last)' in page
    assert page.count('<svg') == 1 + 3 + 2, 'no curve of validation'


def test_neither_validation_nor_test(job_folder):
    job = job_folder()
    job.summary.update(validation_dice=None, before=None, after=None)
    job.state.update(test=[])
    for name in ('test_before', 'test_after'):
        shutil.rmtree(job.path / name)
    page = page_of(job)
    assert verdict(page) == ('bad', 'Nobody knows whether it became better: there was neither validation nor test. '
                                    'Look at its masks before you use it.')
    assert 'There were no test images' in page and sections(page) == ['training', 'pairs', 'repeat']


def test_validated_but_not_tested(job_folder):
    job = job_folder()
    job.summary.update(before=None, after=None)
    job.state.update(test=[])
    assert 'there was no test' in verdict(page_of(job))[1]


def test_a_resized_start_has_a_column(job_folder, results):
    job = job_folder()
    job.state.update(resized=job.state['before'])
    job.summary.update(exported_sam_size=1024)
    results.write(job.path / 'test_resized', job.names, lambda i: 0.6)
    page = page_of(job)
    assert 'Start, resized' in page and '640 px, after training 1024 px' in page


def test_rounds_and_clicks(job_folder):
    job = job_folder()
    data = job.path / 'training/rounds/round_1/unlabelled'
    shutil.copytree(job.path / 'pairs', data)
    rounds = [
        dict(round=0, iteration=0, judge='expert', labelled=dict(pairs=7, images=3), metric=0.5, metric_after=0.52,
             decision='kept', unlabelled=dict(pairs=11, images=4, picks=dict(decided=4, clicks=6, seconds=90.0))),
        dict(round=1, iteration=10, judge='consensus', metric=0.52, metric_after=0.5, decision='taken back',
             judge_agreement=dict(Consensus=dict(tau=0.31)), data=dict(unlabelled='rounds/round_1/unlabelled')),
        dict(round=2, iteration=20, metric=None, metric_after=None, decision=None)]
    # The last round that mined anything is shown.
    (job.path / 'training/rounds.json').write_text(json.dumps(dict(rounds=rounds[:2], ended='two rounds in a row')))
    page = page_of(job)
    assert sections(page)[3] == 'rounds'
    for words in ('6 clicks, 4 images, 1.5 min', '11 of 4 images', '0.5200 → 0.5000', 'taken back', '0.31',
                  'two rounds in a row', 'Round 1, images without masks'):
        assert words in page, words
    (job.path / 'training/rounds.json').write_text(json.dumps(dict(rounds=rounds[2:], ended=None)))
    assert '<td>–</td>' in page_of(job)


def test_alarms(job_folder):
    job = job_folder()
    (job.path / 'training/alarms.json').write_text(json.dumps([dict(iter=10, accuracy=0.9, dice=0.3)]))
    page = page_of(job)
    assert '1 alarm(s), the first at iteration 10' in page and '>alarm</text>' in page


def test_masks_that_were_not_kept(job_folder):
    job = job_folder()
    shutil.rmtree(job.path / 'test_before/predictions')
    page = page_of(job)
    assert 'masks of this test are not on the disk' in page and 'data-open=' not in page


def test_one_mask_that_is_gone_costs_one_picture(job_folder):
    job = job_folder()
    (job.path / 'test_after/predictions/b.png').unlink()
    page = page_of(job)
    assert page.count('data-open="case-') == 3 and 'predictions/b.png' in page


def test_pairs_that_are_damaged_or_gone(job_folder):
    job = job_folder()
    (job.path / 'pairs/dpo_annotations.json').write_text('{')
    page = page_of(job)
    assert 'The pairs cannot be shown' in page and 'pairs' not in sections(page)
    (job.path / 'pairs/dpo_annotations.json').unlink()
    assert 'pairs' not in sections(page_of(job))


def test_a_killed_run_left_half_a_line_and_a_second_attempt(job_folder):
    job = job_folder()
    first = job.path / 'training/20260101_000000/vis_data/scalars.json'
    first.write_text(first.read_text() + '\n{"train/loss": 0.')
    second = job.path / 'training/20260102_000000/vis_data/scalars.json'
    second.parent.mkdir(parents=True)
    second.write_text('\n'.join(json.dumps({'train/loss': 9.0, 'step': step}) for step in (15, 20, 25)))
    steps, values = Training.read(job.path / 'training').scalars['train/loss']
    assert (steps, values[2:]) == ([5, 10, 15, 20, 25], [9.0, 9.0, 9.0])


def test_settings_that_differ_are_named(job_folder):
    job = job_folder()
    job.identity['settings'].update(num_samples=9, gt_candidate=False, cfg_options=['lr=1e-4'], seed=3)
    page = page_of(job)
    for words in ('--num_samples', '--no-gt-candidate', 'lr=1e-4'):
        assert page.count(words) >= 2, f'{words}: in the table and in the command'


def test_a_job_that_has_not_finished_is_refused(job_folder):
    job = job_folder()
    folder = job.write()
    (folder / 'summary.json').unlink()
    with pytest.raises(InputError, match='summary.json: no such file: this job has not finished'):
        write_page(folder, 'en')
    assert not (folder / 'report.html').exists()


@pytest.mark.parametrize('language', ['en', 'zh'])
def test_names_of_files_are_hostile(job_folder, results, language):
    names = ('a', results.hostile, '$x$ {{ 7*7 }}', 'd')
    job = job_folder(names=names)
    job.identity['settings']['model'] = results.hostile
    page = page_of(job, language)
    assert page.count('<script') == 1 and '<img src=x' not in page and 'onerror=alert(2)&gt;' in page
    assert '{{ 7*7 }}' in page


@pytest.mark.parametrize('language, words', [('en', 'An earlier version of this program'), ('zh', '较早的版本')])
def test_a_job_of_an_earlier_version_is_shown_with_what_is_not_known(job_folder, language, words):
    job = job_folder()
    for name in ('sam_size', 'exported_sam_size', 'seconds', 'train_images'):
        del job.summary[name]
    for name in ('view', 'unlabelled', 'test_prompt', 'sam_size'):
        del job.state[name]
    for name in ('grid', 'unlabelled', 'cfg_options', 'members', 'clicks', 'seed'):
        del job.identity['settings'][name]
    job.identity['settings']['a_flag_of_old'] = 7
    del job.identity['content']['config']
    page = page_of(job, language)
    assert words in page and 'exported_sam_size' in page and 'clicks' in page and 'a_flag_of_old' not in page
    assert sections(page) == ['figures', 'images', 'training', 'pairs', 'repeat'] and 'best_dice_iter_20.pth' in page


def test_every_single_missing_key_is_survived_or_said(job_folder):
    job = job_folder()
    for which in ('summary', 'state', 'identity'):
        content = getattr(job, which) if which != 'identity' else job.identity['settings']
        for name in list(content):
            value = content.pop(name)
            try:
                assert 'An earlier version' in page_of(job), name
            except InputError as error:
                assert f'says nothing of {name}: an earlier version' in str(error)
                assert (which, name) in {('summary', key) for key in ('best_checkpoint', 'exported_hf',
                                                                      'validation_dice')}
            content[name] = value
    assert 'An earlier version' not in page_of(job)
