"""The boundary: a user's mistake is one line and exit code 2, a defect of ours is a traceback and asks for a report."""
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from sa2va_dpo.common import errors
from sa2va_dpo.common.errors import InputError, setting

RUN = '''
import sys
from sa2va_dpo.common.errors import InputError, cli_main, log_tracebacks_to, setting
from sa2va_dpo.common import signals
def main(argv=None):
    {body}
cli_main(main)()
'''


def command(body, *argv, env=None):
    body = '\n    '.join(body.splitlines())
    return subprocess.run([sys.executable, '-c', RUN.format(body=body), *argv], capture_output=True, text=True,
                          env={**os.environ, 'SA2VA_DPO_DEBUG': '', **(env or {})})


@pytest.mark.parametrize(
    'raising, words',
    [
        (lambda: torch.device('gpu:x'), 'x: .*device'),
        (lambda: int('seven'), "x: .*'seven'"),
        (lambda: torch.optim.AdamW([torch.zeros(1)], lr=-1), 'x: Invalid learning rate'),
        (lambda: {}['name'], "x: unknown name 'name'"),
        (lambda: torch.optim.AdamW([torch.zeros(1)], lrr=1), 'x: .*lrr'),
        (lambda: torch.ones(2) @ torch.ones(3), 'x: '),
        (lambda: open('no/such/file'), 'x: .*no/such/file'),
        (lambda: 'ü'.encode('ascii'), 'x: .*ascii'),
    ],
)
def test_what_libraries_say_about_a_value_becomes_one_line(raising, words):
    with pytest.raises(InputError, match=words) as caught, setting('x', 'mend it'):
        raising()
    assert str(caught.value).endswith(': mend it') and '\n' not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_defect_of_ours_stays_a_defect():
    from sa2va_dpo.common import files

    with pytest.raises(AttributeError), setting('x'):
        files.parse_json(None)  # raised in our own code
    with pytest.raises(InputError, match='x: .*half a surrogate'), setting('x'):
        files.parse_json(r'"\ud800"')  # on purpose: a ValueError is about the value


def test_an_input_error_passes_as_it_is():
    with pytest.raises(InputError, match='^inner: do this$'), setting('outer'), setting('between'):
        raise InputError('inner: do this')


def test_a_users_mistake_is_one_line_exit_code_2_and_the_traceback_is_in_the_log(tmp_path):
    body = f'log_tracebacks_to({str(tmp_path)!r})\nwith setting("lr"):\n    float("fast")'
    done = command(body)
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.splitlines() == [
        "error: lr: could not convert string to float: 'fast': correct it, or leave it out for its default"
    ]
    log = (tmp_path / 'error.log').read_text()
    assert 'Traceback' in log and 'float("fast")' not in done.stderr and 'ValueError' in log
    for argv, env in ((['--debug'], None), ([], dict(SA2VA_DPO_DEBUG='1'))):
        shown = command(body, *argv, env=env)
        assert (
            shown.returncode == 2
            and 'Traceback' in shown.stderr
            and shown.stderr.splitlines()[-1].startswith('error: lr')
        )


def test_debug_is_taken_from_the_command_line_before_the_command_reads_it():
    assert command('print(sys.argv[1:])', '--a', '--debug', 'b').stdout == "['--a', 'b']\n"


def test_a_defect_shows_its_traceback_and_asks_for_a_report():
    done = command('None.x')
    assert done.returncode == 1 and 'Traceback' in done.stderr and 'please report it' in done.stderr.splitlines()[-1]


def test_exit_codes_of_main_pass():
    assert command('return 3').returncode == 3 and command('pass').returncode == 0


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_the_command_with_a_line_that_says_how_to_go_on(number, code):
    body = f'''
signals.go_on('say it again')
import os, time
try:
    os.kill(os.getpid(), {int(number)})
    time.sleep(30)
finally:
    print('cleaned up')
'''
    done = command(body)
    assert done.returncode == code and done.stdout == 'cleaned up\n'
    assert done.stderr == 'interrupted: say it again\n'


def test_a_signal_waits_for_files_that_belong_together():
    body = f'''
import os, time
with signals.deferred():
    with signals.deferred():
        os.kill(os.getpid(), {int(signal.SIGTERM)})
        time.sleep(.1)
    print('both', flush=True)
print('not reached')
'''
    done = command(body)
    assert done.returncode == 143 and done.stdout == 'both\n'


def test_another_signal_after_a_while_ends_at_once():
    body = f'''
import os, time
signals._IMPATIENCE_S = .2
with signals.deferred():
    for _ in range(3):
        os.kill(os.getpid(), {int(signal.SIGINT)})
        time.sleep(.15)
    time.sleep(30)
'''
    begun = time.monotonic()
    assert command(body).returncode == 130 and time.monotonic() - begun < 20


def test_errors_after_a_signal_are_its_echo():
    done = command(
        f'import os\nwith signals.deferred():\n    os.kill(os.getpid(), {int(signal.SIGTERM)})\n    raise '
        f'RuntimeError("peer gone")'
    )
    assert done.returncode == 143 and 'Traceback' not in done.stderr


@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_child_ends_with_its_parent_however_that_ends(tmp_path, number, code):
    child = f'''
import os, pathlib, sys, time
from sa2va_dpo.common.errors import cli_main
def main():
    pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))
    try:
        print('ready', flush=True)
        time.sleep(60)
    finally:
        pathlib.Path({str(tmp_path / 'ended')!r}).touch()
cli_main(main)()
'''
    parent = subprocess.Popen(
        [sys.executable, '-c', RUN.format(body=f'return signals.run_child([sys.executable, "-c", {child!r}])')],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert parent.stdout.readline() == 'ready\n'
        parent.send_signal(number)
        assert parent.wait(20) == code
        for _ in range(100):
            if (tmp_path / 'ended').exists():
                break
            time.sleep(.1)
        assert (tmp_path / 'ended').exists(), 'the child went on'
    finally:
        parent.kill()
        parent.communicate()


def test_exit_codes_of_a_child():
    from sa2va_dpo.common.signals import run_child

    assert run_child([sys.executable, '-c', 'raise SystemExit(3)']) == 3
    assert run_child([sys.executable, '-c', 'import os; os.kill(os.getpid(), 15)']) == 143


def test_one_line_is_short():
    assert errors.one_line(ValueError('a\n  b')) == 'a b' and errors.one_line(ValueError()) == 'ValueError'
    assert len(errors.one_line(ValueError('x' * 1000))) == 300
