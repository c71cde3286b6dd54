"""The report of a test, with and without a 'before', on few images and on many."""
import json
import re
import shutil

import pytest

from sa2va_dpo.commands.report import main
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.reporting.tested import check_before, write_page


def read(folder, language='en'):
    return write_page(folder, language).read_text(encoding='utf-8')


def test_without_a_before(tested_folder):
    page = read(tested_folder())
    verdict = re.search('<h1 class="verdict plain">(.*?)</h1>', page)[1]
    assert verdict.startswith('Dice 0.') and 'on 4 images' in verdict
    assert 'No earlier test to compare with' in page and '<th scope="col">Change</th>' not in page
    assert page.count('data-name="Ground truth"') == 4 and 'data-name="Before"' not in page
    assert '--before FOLDER_OF_THE_OTHER_TEST' in page


def test_with_a_before(tested_folder):
    before = tested_folder(quality=lambda i: 0.4, folder='before')
    page = read(tested_folder(quality=lambda i: 0.8, before=str(before)))
    assert '4 of 4 images improved' in page and 'No earlier test' not in page
    assert page.count('data-name="Difference"') == 4 and page.count('data-open="case-') == 4


def test_one_image_is_no_evidence(tested_folder):
    before = tested_folder(names=['a'], quality=lambda i: 0.4, folder='before')
    page = read(tested_folder(names=['a'], quality=lambda i: 0.8, before=str(before)))
    assert 'No clear change' in page and '<td data-label="p">–</td>' in page


def test_a_before_of_other_images_is_refused(tested_folder):
    before = tested_folder(names=('a', 'x'), folder='before')
    with pytest.raises(InputError, match='test both on the same images'):
        read(tested_folder(names=('a', 'b'), before=str(before)))
    shutil.rmtree(before)
    with pytest.raises(InputError, match='--before .*: holds no per_image.csv'):
        check_before(before)


def test_images_that_have_gone_are_named(tested_folder):
    folder = tested_folder()
    shutil.rmtree(folder.parent / 'data/images')
    page = read(folder)
    assert 'There are no pictures: ' in page and 'data/images' in page and '<section id="figures"' in page


def test_images_that_chose_the_checkpoint_are_called_so(tested_folder):
    assert 'the figures are too good' in read(tested_folder(chose=True))


def test_a_big_test_set_stays_small(tested_folder):
    names = [f'case_{i:04d}' for i in range(1000)]
    before = tested_folder(names=names, quality=lambda i: 0.3 + (i % 17) / 40, folder='before')
    folder = tested_folder(names=names, quality=lambda i: 0.3 + (i % 29) / 50, before=str(before))
    page = read(folder)
    assert (folder / 'report.html').stat().st_size < 2_000_000
    assert page.count('<article class="case"') == 12 and page.count('case_0') >= 1000, 'every image is a point'


def test_the_command_finds_jobs_and_tests(tested_folder, job_folder, tmp_path, capsys):
    assert main([str(tested_folder()), '--lang', 'zh']) == 0
    assert '<html lang="zh-CN">' in (tmp_path / 'eval/report.html').read_text(encoding='utf-8')
    assert main([str(job_folder().write())]) == 0
    assert f'report: {tmp_path}/job/report.html' in capsys.readouterr().out
    with pytest.raises(InputError, match='holds neither a job'):
        main([str(tmp_path)])


def test_a_damaged_table_of_scores_is_named(tested_folder):
    folder = tested_folder()
    for content in ('image_id,dice\na,x\n', 'nonsense', 'image_id,dice\na,nan\n', ''):
        (folder / 'per_image.csv').write_text(content)
        with pytest.raises(InputError, match='per_image.csv: is no table of scores'):
            read(folder)
    (folder / 'per_image.csv').unlink()
    with pytest.raises(InputError, match='per_image.csv: missing'):
        read(folder)
    (folder / 'test.json').write_text(json.dumps([]))
    with pytest.raises(InputError, match='test.json: holds a list'):
        read(folder)


def test_two_images_of_one_name_show_no_picture_of_the_wrong_one(tested_folder):
    folder = tested_folder()
    text = (folder / 'per_image.csv').read_text()
    (folder / 'per_image.csv').write_text(text.replace('\nb,', '\na,'))
    page = read(folder)
    assert page.count('2 images are called a') == 2 and page.count('data-open="case-') == 2
