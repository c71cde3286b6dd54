"""What masks measure, against numbers counted by hand on small drawings."""
from __future__ import annotations

import numpy as np
import pytest

from sa2va_dpo.evaluation.measures import vessel_measures

ROOT = 2 ** 0.5


def drawn(*rows: str) -> np.ndarray:
    return np.array([[pixel == '#' for pixel in row] for row in rows])


# The drawings are one pixel thin, so that the skeleton is the drawing (but for corners).
CASES = dict(
    # (pixels, length, branch points, end points, components)
    line=(drawn('.......', '.#####.', '.......'), (5, 4, 0, 2, 1)),
    diagonal=(drawn('#....', '.#...', '..#..', '...#.', '....#'), (5, 4 * ROOT, 0, 2, 1)),
    # A skeleton cuts the corner: one step down, a diagonal one, two to the right.
    corner=(drawn('#...', '#...', '####'), (6, 3 + ROOT, 0, 2, 1)),
    tee=(drawn('.......', '.#####.', '...#...', '...#...', '...#...'), (8, 7, 1, 3, 1)),
    cross=(drawn('...#...', '...#...', '...#...', '#######', '...#...', '...#...', '...#...'), (13, 12, 1, 4, 1)),
    # Two arms that meet a stem diagonally: 2 + 2 diagonal steps, 3 straight ones.
    wye=(drawn('#...#', '.#.#.', '..#..', '..#..', '..#..', '..#..'), (8, 4 * ROOT + 3, 1, 3, 1)),
    # A ring of 8 pixels: 4 corners off the square, so 4 diagonal steps and 4 straight ones; no end.
    ring=(drawn('......', '..##..', '.#..#.', '.#..#.', '..##..', '......'), (8, 4 + 4 * ROOT, 0, 0, 1)),
    dot=(drawn('...', '.#.', '...'), (1, 0, 0, 0, 1)),
    two=(drawn('####..', '......', '..####'), (8, 6, 0, 4, 2)),
    nothing=(drawn('....', '....'), (0, 0, 0, 0, 0)),
)


@pytest.mark.parametrize('name', CASES)
def test_measures_counted_by_hand(name):
    mask, (pixels, length, branches, ends, components) = CASES[name]
    found = vessel_measures(mask)
    assert (found.vessel_px, found.branch_points, found.end_points, found.components) == (
        pixels, branches, ends, components)
    assert found.skeleton_length_px == pytest.approx(length)
    assert found.vessel_share == pytest.approx(pixels / mask.size)


@pytest.mark.parametrize('name', CASES)
def test_turning_and_mirroring_changes_nothing(name):
    mask, _ = CASES[name]
    expected = vessel_measures(mask)
    for turned in (mask[::-1], mask[:, ::-1], mask.T, np.rot90(mask)):
        found = vessel_measures(np.ascontiguousarray(turned))
        assert found.skeleton_length_px == pytest.approx(expected.skeleton_length_px)
        assert (found.branch_points, found.end_points) == (expected.branch_points, expected.end_points)


def test_thick_vessels_are_measured_along_their_middle():
    mask = np.zeros((60, 200), bool)
    mask[20:29, 10:190] = True
    found = vessel_measures(mask)
    # A bar of 180 x 9 pixels: its centreline is as long as the bar less about half its width at either end.
    assert found.vessel_px == 180 * 9 and found.components == 1
    assert 168 <= found.skeleton_length_px <= 182 and found.branch_points == 0 and found.end_points == 2


def test_against_a_graph_library():
    """Length and end points as networkx counts them on the graph of pixels, on drawn lines."""
    networkx = pytest.importorskip('networkx')
    import cv2
    from skimage.morphology import skeletonize

    rng = np.random.default_rng(3)
    mask = np.zeros((120, 160), np.uint8)
    for _ in range(6):
        cv2.polylines(mask, [rng.integers(0, 120, (4, 2)).astype(np.int32)], False, 1, 3)
    skeleton = skeletonize(mask > 0)
    points = set(map(tuple, np.argwhere(skeleton).tolist()))
    graph = networkx.Graph()
    graph.add_nodes_from(points)
    for y, x in points:
        for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
            if (y + dy, x + dx) in points and not (dy and dx and {(y + dy, x), (y, x + dx)} & points):
                graph.add_edge((y, x), (y + dy, x + dx), length=(dy * dy + dx * dx) ** 0.5)
    found = vessel_measures(mask > 0)
    assert found.skeleton_length_px == pytest.approx(graph.size('length'))
    assert found.end_points == sum(degree == 1 for _, degree in graph.degree)
    crossings = graph.subgraph(node for node, degree in graph.degree if degree >= 3)
    # Neighbours of a meeting count as one, diagonal ones too.
    touching = networkx.Graph()
    touching.add_nodes_from(crossings)
    touching.add_edges_from((a, b) for a in crossings for b in crossings
                            if a < b and max(abs(a[0] - b[0]), abs(a[1] - b[1])) == 1)
    assert found.branch_points == networkx.number_connected_components(touching) > 3


@pytest.mark.parametrize('mask', [np.zeros((3, 3)), np.zeros(4, bool), np.zeros((0, 4), bool)])
def test_no_mask_is_refused(mask):
    with pytest.raises(ValueError, match='a mask must be'):
        vessel_measures(mask)
