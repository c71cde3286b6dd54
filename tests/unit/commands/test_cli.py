"""One door to every command, in both spellings of every flag, before anything heavy is imported."""
from __future__ import annotations

import argparse
import subprocess
import sys
from importlib import import_module

import pytest

import sa2va_dpo
from sa2va_dpo.commands import cli
from sa2va_dpo.common.errors import InputError

HEAVY = ('torch', 'transformers', 'mmengine', 'numpy', 'cv2', 'peft', 'scipy', 'xtuner', 'deepspeed')


@pytest.mark.parametrize('name', [None, *cli.available()])
def test_help_imports_nothing_heavy(name, repo_root):
    arguments = ['--help'] if name is None else [name, '--help']
    code = ('import sys, time\nstart = time.perf_counter()\n'
            'from sa2va_dpo.commands import cli\n'
            f'try:\n    cli.main({arguments!r})\nexcept SystemExit as end:\n    assert end.code == 0\n'
            'print("seconds", time.perf_counter() - start)\n'
            f'print("heavy", [name for name in {HEAVY!r} if name in sys.modules])\n')
    done = subprocess.run([sys.executable, '-c', code], cwd=repo_root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'heavy []' in done.stdout, done.stdout


def test_the_nine_commands_of_the_contract_are_there():
    wanted = {'job', 'pairs', 'train', 'test', 'export', 'review', 'convert', 'parity', 'predict'}
    assert wanted <= set(cli.available())


def test_listed_modules_have_a_main():
    for command in cli.available().values():
        assert callable(import_module(f'sa2va_dpo.commands.{command.module}').main)


def test_unknown_command_names_the_nearest(monkeypatch):
    with pytest.raises(InputError, match='no such command: did you mean export-pairs'):
        cli.main(['export-pears'])
    with pytest.raises(InputError, match='there are job, pairs'):
        cli.main(['zzz'])


def test_version_and_empty_call(capsys):
    assert cli.main(['--version']) == 0
    assert capsys.readouterr().out.strip() == sa2va_dpo.__version__
    assert cli.main([]) == 2
    assert 'commands:' in capsys.readouterr().out


def test_usage_errors_name_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['sa2va-dpo', 'convert'])
    with pytest.raises(SystemExit) as end:
        cli.main(['convert'])
    assert end.value.code == 2
    assert 'sa2va-dpo convert' in capsys.readouterr().err


def test_every_flag_of_every_command_is_taken_in_both_spellings(monkeypatch):
    """Each flag is given in the other spelling to the parser that its command builds."""
    from sa2va_dpo.common.arguments import ArgumentParser

    built: list[ArgumentParser] = []

    def stop(self, args=None, namespace=None):
        built.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', stop)
    flags = 0
    for name in cli.available():
        built.clear()
        monkeypatch.setattr(sys, 'argv', [])
        with pytest.raises(KeyboardInterrupt):
            cli.main([name])
        parser, = built
        assert isinstance(parser, ArgumentParser), name
        for action in parser._actions:
            for option in action.option_strings:
                if not option.startswith('--'):
                    continue
                words = option[2:]
                for other in {words.replace('_', '-'), words.replace('-', '_')}:
                    flags += 1
                    assert parser._as_declared([f'--{other}=1'])[0].split('=')[0] in action.option_strings, (
                        name,
                        other,
                    )
    assert flags > 60


@pytest.mark.parametrize('command', ['job', 'pairs', 'test'])
def test_run_as_a_module(command, repo_root):
    done = subprocess.run(
        [sys.executable, '-m', 'sa2va_dpo', command, '--help'], cwd=repo_root, capture_output=True, text=True
    )
    assert done.returncode == 0 and 'usage:' in done.stdout
    bad = subprocess.run(
        [sys.executable, '-m', 'sa2va_dpo', command + 'x'], cwd=repo_root, capture_output=True, text=True
    )
    assert bad.returncode == 2 and bad.stderr.startswith('error: ') and bad.stderr.count('\n') == 1
