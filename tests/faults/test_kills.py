"""Killed at any file operation and started again, a command ends as one that was never disturbed."""
import signal

import pytest

from .harness import KILL, SIGNAL, Bench

pytestmark = pytest.mark.integration
# How many points of each command the short form takes.
KILLS = dict(generating=9, training=7, working=5, merging=12, picking=8)
# In the long form the job, which is the other commands one after the other, is killed at every tenth operation.
STRIDES = dict(working=10)
SIGNALS = dict(generating=3, training=3, working=2, merging=3, picking=2)


@pytest.fixture(scope='module', params=list(KILLS))
def bench(request, zygote, tmp_path_factory):
    return Bench(zygote, request.getfixturevalue(request.param), tmp_path_factory.mktemp(request.param) / 'case')


def test_a_kill_loses_nothing(bench, request):
    bench.disturb('kills', bench.points(KILLS[_name(request)], STRIDES.get(_name(request), 1)), [-signal.SIGKILL], KILL)


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_loses_nothing_and_says_how_to_go_on(bench, request, number, code):
    """At the end of the operation that it came in, or of what belongs together."""
    points = bench.points(SIGNALS[_name(request)], 20)[number == signal.SIGTERM::2]
    # A signal at the very end finds nothing left to interrupt.
    bench.disturb('signals', points, [code, bench.scenario.code], SIGNAL, number)


def _name(request):
    return request.node.callspec.params['bench']
