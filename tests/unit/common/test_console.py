"""What a command shows on a terminal and in a pipe, and what goes to its log."""
import os
import pty
import re
import subprocess
import sys

import pytest

from sa2va_dpo.common import console

COMMAND = '''
import logging, os, subprocess, sys, time, warnings
from sa2va_dpo.common import console
from sa2va_dpo.common.errors import InputError, cli_main
def main():
    console.begin({verbose})
    logging.getLogger('library').warning('from a logger')
    {body}
cli_main(main)()
'''
NOISE = '''print('from print')
    os.system('echo from below python')
    warnings.warn('from warnings')
    console.log_to(sys.argv[1])
    print('later')
    console.say('for the user')
    console.warn('act on it')
    for _ in console.progress(range(3), desc='counting', unit='thing'): pass
    console.next_step('python tools/test.py CONFIG CHECKPOINT')'''
NOISY = ('from a logger', 'from print', 'from below python', 'from warnings', 'later')


def script(body, verbose=False):
    return [sys.executable, '-c', COMMAND.format(body=body, verbose=verbose)]


def run(body, *argv, verbose=False, **env):
    env = {name: value for name, value in os.environ.items() if name not in (console.VERBOSE, 'RANK')} | env
    return subprocess.run([*script(body, verbose), *map(str, argv)], capture_output=True, text=True, env=env)


def on_terminal(command, columns=80, **settings) -> bytes:
    """What a command writes to a terminal of so many columns."""
    child, fd = pty.fork()
    if not child:
        os.chdir(settings.get('cwd', '.'))
        os.environ.pop(console.VERBOSE, None)
        os.execvp(command[0], list(map(str, command)))
    import fcntl
    import struct
    import termios

    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack('HHHH', 40, columns, 0, 0))
    written = b''
    try:
        while data := os.read(fd, 65536):
            written += data
    except OSError:
        pass  # Linux's end of a terminal whose child has gone
    os.close(fd)
    os.waitpid(child, 0)
    return written


def lines_of(written: bytes) -> list[str]:
    """Every state that a line of the terminal had."""
    text = re.sub(r'\x1b\[[0-9;]*[A-Za-z]', '', written.decode())
    return [line.rstrip() for line in re.split(r'[\r\n]+', text) if line.strip()]


def test_in_a_pipe_plain_lines_and_the_log_has_the_rest(tmp_path):
    done = run(NOISE, tmp_path / 'run' / 'a.log')
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ['for the user', 'warning: act on it',
                                        'next: python tools/test.py CONFIG CHECKPOINT']
    [line] = done.stderr.splitlines()
    assert re.fullmatch(r'counting: 3 of 3 things, .* thing/s, took 00:00', line)
    assert '\r' not in done.stdout + done.stderr and '\x1b' not in done.stdout + done.stderr
    log = (tmp_path / 'run' / 'a.log').read_text()
    for text in (*NOISY, 'for the user', 'warning: act on it', 'next: '):
        assert text in log, text
    assert log.count('for the user') == 1


def test_verbose_and_what_a_parent_was_told_bring_everything_back(tmp_path):
    for done in (run(NOISE, tmp_path / 'a.log', verbose=True), run(NOISE, tmp_path / 'a.log', SA2VA_DPO_VERBOSE='1')):
        for text in (*NOISY, 'for the user', 'act on it'):
            assert text in done.stdout + done.stderr
        assert not (tmp_path / 'a.log').exists()


def test_only_the_first_process_speaks(tmp_path):
    done = run(NOISE, tmp_path / 'a.log', RANK='1')
    assert done.stdout == done.stderr == '' and 'from print' in (tmp_path / 'a.log').read_text()


def test_errors_are_on_the_terminal_and_a_defect_brings_what_was_kept():
    mistake = run("raise InputError('lr: must be a number')")
    assert (mistake.returncode, mistake.stdout, mistake.stderr) == (2, '', 'error: lr: must be a number\n')
    defect = run("print('a hint'); raise RuntimeError('broken')")
    assert defect.returncode == 1 and 'a hint' in defect.stderr and 'RuntimeError: broken' in defect.stderr
    assert 'please report it' in defect.stderr


def test_a_bar_that_an_error_ends_leaves_the_line_to_the_error():
    body = "bar = console.progress(total=9, desc='x', unit='y'); bar.update(2); raise InputError('no room')"
    assert lines_of(on_terminal(script(body)))[-1] == 'error: no room'
    assert run(body).stderr.splitlines()[-1] == 'error: no room'


def test_on_a_terminal_of_80_columns_nothing_is_longer(tmp_path):
    body = f'''console.log_to({str(tmp_path / "a.log")!r})
    console.say('a sentence about what was found ' * 8)
    bar = console.progress(total=40, desc='training', unit='step')
    for step in range(40):
        time.sleep(0.01)
        bar.set_postfix_str('loss 0.981, acc 0.812, Dice 0.5894', refresh=False)
        bar.update()
        if step == 20: console.say('in between')
    bar.close()
    console.next_step('python tools/test.py projects/sa2va/configs/sa2va_dpo_vessel.py work_dirs/run/best_iter_20.pth')
'''
    written = on_terminal(script(body))
    lines = lines_of(written)
    assert max(map(len, lines)) <= 80 and b'\r' in written
    assert 'in between' in lines and any(line.startswith('training 40/40') for line in lines)
    assert any('loss 0.981, acc 0.812, Dice 0.5894' in line for line in lines)
    # The command can be copied: the shell joins what a backslash divides.
    at = next(i for i, line in enumerate(lines) if line.startswith('next: '))
    joined = ' '.join(line.rstrip('\\').strip() for line in lines[at:])
    assert joined == ('next: python tools/test.py projects/sa2va/configs/sa2va_dpo_vessel.py '
                      'work_dirs/run/best_iter_20.pth')


def test_a_nested_bar_goes_and_the_outer_one_stays():
    body = '''outer = console.progress(total=2, desc='outer', unit='x')
    for _ in range(2):
        for _ in console.progress(range(2), desc='inner', unit='y'): pass
        outer.update()
    outer.close()'''
    lines = lines_of(on_terminal(script(body)))
    assert any(line.startswith('inner') for line in lines) and lines[-1].startswith('outer 2/2')


def test_an_aside_stands_above_the_bar_on_standard_error():
    body = ("bar = console.progress(total=2, desc='x', unit='y'); bar.update(); console.aside('left out: a.png'); "
            'bar.update(); bar.close()')
    lines = lines_of(on_terminal(script(body)))
    assert 'left out: a.png' in lines and lines[-1].startswith('x 2/2')
    done = run(body)
    assert done.stdout == '' and done.stderr.splitlines()[0] == 'left out: a.png'
    assert run("console.aside('x')", RANK='1').stderr == ''


def test_a_stage_of_a_job_leaves_the_next_step_to_the_job(capsys, monkeypatch):
    console.next_step('x')
    monkeypatch.setenv(console.PART, 'train')
    console.next_step('y')
    assert capsys.readouterr().out == 'next: x\n'


def test_this_process_s_own_streams_are_left_alone_where_somebody_reads_them(capfd, monkeypatch):
    monkeypatch.delenv(console.VERBOSE, raising=False)
    monkeypatch.setattr(console, '_quiet', False)
    with console.entry():
        console.begin()
    print('still here')
    assert console.is_quiet() and capfd.readouterr().out == 'still here\n'


@pytest.mark.parametrize('width', [40, 80])
def test_words_stay_whole(width, monkeypatch):
    monkeypatch.setattr(console, 'columns', lambda stream: width)
    path = 'work_dirs/' + 'x' * 90
    lines = console.fitted(f'    log {path} and more words that have to go to another line of this terminal',
                           sys.stdout).split('\n')
    assert any(line.strip() == path for line in lines)
    assert all(len(line) <= width or line.strip() == path for line in lines)


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full, which refuses every write, on this system')
def test_a_log_without_room_stops_nobody():
    done = run("console.log_to('/dev/full')\n    console.say('one')\n    console.say('two')")
    assert (done.returncode, done.stdout, done.stderr) == (0, 'one\ntwo\n', '')
