"""One order of draws for a whole run."""
import pickle
from itertools import islice

import pytest

from sa2va_dpo.datasets.draws import Draw, choose_in_turn, rng_of
from sa2va_dpo.engine.sampling import DrawSampler


class Mixed(list):
    parts = [(4, 0.3), (20, 0.7)]


def take(sampler, count):
    return [(int(draw), draw.number, draw.visit) for draw in islice(sampler, count)]


def ranked(rank, world_size, size=10, seed=1):
    sampler = DrawSampler(range(size), seed=seed)
    sampler.rank, sampler.world_size = rank, world_size
    return sampler


def test_two_processes_visit_what_one_visits():
    alone = take(ranked(0, 1), 24)
    shared = [take(ranked(rank, 2), 12) for rank in (0, 1)]
    assert [draw for pair in zip(*shared) for draw in pair] == alone
    assert len(ranked(0, 1)) == 10 and len(ranked(0, 3)) == 4


def test_every_pass_is_whole_in_another_order_and_depends_on_the_seed():
    draws = take(ranked(0, 1), 30)
    orders = [tuple(index for index, _, visit in draws if visit == v) for v in range(3)]
    assert all(sorted(order) == list(range(10)) for order in orders) and len(set(orders)) == 3
    assert take(ranked(0, 1, seed=2), 30) != draws


def test_parts_keep_their_shares_at_any_time():
    sampler = DrawSampler(Mixed(range(24)), seed=0)
    seen = [0, 0]
    visits = {}
    for number, draw in enumerate(islice(sampler, 400), 1):
        seen[draw >= 4] += 1
        assert abs(seen[0] - 0.3 * number) < 1
        assert draw.visit == visits.get(int(draw), 0)
        visits[int(draw)] = draw.visit + 1
    assert seen == [120, 280]
    assert {visits[i] for i in range(4)} == {30} and {visits[i] for i in range(4, 24)} == {14}


@pytest.mark.parametrize(
    'parts', [[(4, 0.5)], [(4, 0.2), (20, 0.7)], [(0, 0.5), (24, 0.5)], [(4, 0.2), (4, 0.2), (16, 0.6)]]
)
def test_parts_that_make_no_sense(parts):
    data = Mixed(range(24))
    data.parts = parts
    with pytest.raises(ValueError, match='adding up to 1'):
        DrawSampler(data, seed=0)


def test_without_shuffling_items_come_by_index():
    assert [index for index, _, _ in take(DrawSampler(range(3), shuffle=False, seed=0), 7)] == [0, 1, 2, 0, 1, 2, 0]


def test_a_draw_survives_the_way_to_a_worker():
    draw = pickle.loads(pickle.dumps(Draw(3, number=17, visit=2, seed=9)))
    assert (int(draw), draw.number, draw.visit, draw.seed) == (3, 17, 2, 9) and ['a', 'b', 'c', 'd'][draw] == 'd'


def test_random_numbers_belong_to_the_draw():
    def value(seed, index):
        return rng_of(seed, index).random()

    assert value(0, Draw(1, 5)) == value(0, Draw(1, 5)) != value(0, Draw(1, 6))
    assert value(0, Draw(1, 5)) != value(1, Draw(1, 5)) and value(0, Draw(1, 5)) != value(0, Draw(1, 5, seed=1))
    assert value(0, 1) == value(0, 1) != value(0, 2)


def test_all_have_their_turn_equally_often():
    counts = [0] * 5
    for visit in range(5):
        chosen = choose_in_turn(5, 3, 0, Draw(0, 7 * visit, visit), 'image')
        assert len(set(chosen)) == 3 and chosen == sorted(chosen)
        for index in chosen:
            counts[index] += 1
    assert counts == [3] * 5
    assert choose_in_turn(2, 4, 0, 0, 'image') == [0, 1]
    assert {tuple(choose_in_turn(9, 2, seed, 0, 'image')) for seed in range(9)} != {
        tuple(choose_in_turn(9, 2, 0, 0, 'image'))
    }
