"""Two at once in one folder: one is refused in a line that says who holds it since when; nothing is mixed."""
import pytest

from .harness import LONG, Bench

pytestmark = pytest.mark.integration
POINTS = dict(generating=12, training=8, working=5, merging=12, picking=8) if LONG else dict(
    generating=3, training=2, working=1, merging=4, picking=2)


@pytest.mark.parametrize('name', list(POINTS))
def test_two_at_once(zygote, request, tmp_path, name):
    bench = Bench(zygote, request.getfixturevalue(name), tmp_path / 'case')
    # The first operations are those around the lock.
    early = range(1, 7 if LONG or name == 'generating' else 3)
    bench.race(sorted({0, *early, *(round((k + 0.5) * bench.count / POINTS[name]) for k in range(POINTS[name]))}))


def test_a_generator_with_other_settings_is_refused(zygote, generating, tmp_path):
    """The first one is stopped early, in the middle of its masks, and as the last thing before it lets go."""
    bench = Bench(zygote, generating, tmp_path / 'case')
    released = 1 + max(k for k, said in enumerate(bench.operations) if '.owner.lock' in said and ' unlink ' in said)
    for at in (7, bench.count // 2, released):
        bench.fresh()
        other = bench.spec(mode=0)
        other['argv'] = [*other['argv'], '--seed', 5]
        first, second = zygote.run(bench.spec(mode=5, at=at), other)
        assert (first.code, second.code) == (0, 2) and 'is being written by process' in second.text, second.text
        assert generating.outcome(bench.folder) == bench.whole
