"""Spatial views: edge weights by hand, distances against known cities, planted towns, and what is refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data.catalog import Catalog
from llmrec.views.spatial import (
    EARTH_RADIUS_KM,
    FARTHEST,
    STEPS,
    coordinates,
    embed,
    geographic_view,
    near,
    nearest,
    smooth,
    spatial_view,
    visits,
)
from tests.views.test_views_hold_out import catalog_of, without_held_out

NAN = float("nan")
DEGREE_KM = EARTH_RADIUS_KM * np.pi / 180


def placed(catalog: Catalog, lat: list[float | None], lon: list[float | None]) -> Catalog:
    """The catalogue with coordinates of its items."""
    for name, values in (("lat", lat), ("lon", lon)):
        catalog.items = catalog.items.append_column(name, pa.array(values, pa.float64()))
    return catalog


def at(lat: list[float | None], lon: list[float | None], train: tuple = ()) -> Catalog:
    return placed(catalog_of([list(sequence) for sequence in train], len(lat)), lat, lon)


def towns(seed: int = 0) -> tuple[list[float], list[float]]:
    """15 places within some 2 km of each of 4 centres that are 20 to 40 km apart."""
    rng = np.random.default_rng(seed)
    centres = np.array([[50.0, 8.0], [50.2, 8.3], [50.0, 8.5], [50.3, 8.0]])
    places = centres[np.arange(60) % 4] + rng.normal(scale=0.01, size=(60, 2))
    return places[:, 0].tolist(), places[:, 1].tolist()


def similarities(vectors: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of the pairs within a group, and of those between two."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    same = groups[:, None] == groups
    pairs = ~np.eye(len(groups), dtype=bool)
    return (unit @ unit.T)[same & pairs], (unit @ unit.T)[~same]


def test_edge_weights_of_four_places_by_hand():
    # On the equator at 0, 1, 3 and 7 degrees; nearest neighbours 0-1, 1-0, 2-1 and 3-2 are 1, 1, 2 and 4 degrees away.
    places = np.array([[0, 0], [0, 1], [0, 3], [0, 7]], float)
    sigma = 1.5
    expected = np.zeros((4, 4))
    for left, right, degrees in ((0, 1, 1), (1, 2, 2), (2, 3, 4)):
        expected[left, right] = expected[right, left] = np.exp(-degrees / sigma)
    np.testing.assert_allclose(near(places, 1).toarray(), expected, rtol=1e-9)


def test_visits_weigh_the_log_of_one_plus_their_count_in_either_order():
    # 0-1 three times, 1-2 once, 2-2 is no edge; items 0 and 2 are two steps apart.
    graph = visits(catalog_of([[0, 1, 0], [0, 1, 2, 2]], 4)).toarray()
    expected = np.zeros((4, 4))
    expected[0, 1] = expected[1, 0] = np.log(4)
    expected[1, 2] = expected[2, 1] = np.log(2)
    np.testing.assert_allclose(graph, expected)


def test_an_edge_of_both_kinds_has_both_weights():
    # Items 0 and 1 are places one sigma apart, visited in turn once; 2 and 3 are visited in turn alone.
    catalog = at([0, 0, None, None], [0, 1, None, None], train=[(0, 1), (2, 3)])
    graph = (near(coordinates(catalog), 10) + visits(catalog)).toarray()
    assert graph[0, 1] == pytest.approx(np.exp(-1) + np.log(2)) and graph[2, 3] == pytest.approx(np.log(2))


def test_distances_of_known_cities():
    berlin, paris, sydney = (52.52, 13.405), (48.8566, 2.3522), (-33.8688, 151.2093)
    found, km = nearest(np.array([berlin, paris, sydney]), 10)
    assert found.tolist() == [[1, 2], [0, 2], [0, 1]]
    assert km[0, 0] == pytest.approx(878, rel=0.01) and km[1, 0] == km[0, 0]
    assert km[0, 1] == pytest.approx(16_090, rel=0.01)


def test_neighbours_across_the_antimeridian():
    found, km = nearest(np.array([[0, 179.9], [0, -179.9], [0, 170], [0, -170]]), 1)
    assert found.ravel().tolist() == [1, 0, 0, 1]
    assert km[0, 0] == pytest.approx(0.2 * DEGREE_KM)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-90, 90), st.floats(-180, 180)), min_size=2, max_size=12), st.integers(1, 14))
def test_neighbours_are_those_of_the_chord_between_points_on_a_sphere(points, neighbours):
    lat, lon = np.radians(np.array(points)).T
    sphere = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    chords = np.linalg.norm(sphere[:, None] - sphere, axis=2)
    arcs = 2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(chords / 2, 1))
    found, km = nearest(np.array(points), neighbours)
    k = min(neighbours, len(points) - 1)
    assert km.shape == (len(points), k) and (found != np.arange(len(points))[:, None]).all()
    np.fill_diagonal(arcs, np.inf)
    np.testing.assert_allclose(km, np.sort(arcs, axis=1)[:, :k], rtol=1e-5, atol=0.01)


def test_a_far_place_weighs_as_one_at_the_limit():
    graph = near(np.array([[0, 0], [0, 1e-3], [0, 2e-3], [60, 0]]), 1)
    assert graph[3].toarray().max() == pytest.approx(np.exp(-FARTHEST))


def test_places_on_one_spot_have_full_weight():
    # Of six distances five are 0; the last place is at sigma, the median of those that are not.
    graph = near(np.array([[1, 1]] * 5 + [[1, 2]], float), 1).toarray()
    assert graph[5].max() == pytest.approx(np.exp(-1)) and set(graph[:5, :5].ravel()) == {0.0, 1.0}
    assert near(np.ones((3, 2)), 10).toarray().tolist() == (np.ones((3, 3)) - np.eye(3)).tolist()


def test_two_nodes_by_hand():
    # PMI log(w 2w / w w) = log 2 off the diagonal: both singular values log 2, vectors orthogonal, of length
    # sqrt(log 2). A step swaps the two; of steps 0 to 3 the odd ones swap, so both end at the mean of the two.
    graph = near(np.array([[0, 0], [0, 1]], float), 1)
    vectors = embed(graph, 2, seed=0)
    np.testing.assert_allclose(vectors @ vectors.T, np.full((2, 2), np.log(2) / 2), atol=1e-9)


def test_smoothing_against_dense_algebra():
    rng = np.random.default_rng(0)
    graph = near(rng.uniform(-60, 60, (8, 2)), 3)
    scale = np.diag(graph.toarray().sum(axis=1) ** -0.5)
    step, start = scale @ graph.toarray() @ scale, rng.normal(size=(8, 3))
    expected = sum(np.linalg.matrix_power(step, power) for power in range(STEPS + 1)) @ start / (STEPS + 1)
    np.testing.assert_allclose(smooth(start, graph), expected, atol=1e-12)


def test_planted_towns_are_nearer_within_than_between():
    view = spatial_view(at(*towns()), 8, 10, 0)
    within, between = similarities(view.vectors, np.arange(60) % 4)
    assert within.min() > between.max() + 0.3 and not view.missing.any()


def test_the_visit_graph_alone_separates_two_tastes():
    rng = np.random.default_rng(0)
    catalog = catalog_of([(rng.permutation(5)[:4] + 5 * (user % 2)).tolist() for user in range(60)])
    view = spatial_view(catalog, 4, 10, 0)
    assert view.missing.nonzero()[0].tolist() == [10, 11] and not view.vectors[10:].any()
    within, between = similarities(view.vectors[:10], np.arange(10) // 5)
    assert within.min() > between.max() + 0.3


def test_missing_are_the_items_with_neither_place_nor_neighbour_in_a_sequence():
    # 0 and 1 are places; 2 follows 3 and has half a place; 4 was visited alone, 5 twice in a row, 6 never.
    catalog = at([1, 2, 3, None, NAN, None, None], [1, 2, None, None, 5, None, None], train=[(2, 3), (4,), (5, 5)])
    assert spatial_view(catalog, 2, 10, 0).missing.nonzero()[0].tolist() == [4, 5, 6]
    view = geographic_view(catalog, 16)
    assert view.missing.nonzero()[0].tolist() == [2, 3, 4, 5, 6] and not view.vectors[2:].any()


def test_sinusoids_by_hand():
    # Frequencies 1 and 2 of latitude 90 and longitude -180: sines of both, then cosines of both.
    view = geographic_view(at([90], [-180]), 2)
    np.testing.assert_allclose(view.vectors[0], np.array([1, 0, 0, 0, 0, -1, -1, 1]) / 2, atol=1e-7)


def test_sinusoids_are_unit_vectors_that_part_with_distance():
    metres = np.array([0, 0, 1, 10, 50, 100, 200, 400, 600])
    east = geographic_view(at([40.7] * 9, (-74 + metres / DEGREE_KM / 1000).tolist()), 16).vectors
    north = geographic_view(at((40.7 + metres / DEGREE_KM / 1000).tolist(), [-74] * 9), 16).vectors
    for vectors in (east, north):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
        apart = np.linalg.norm(vectors - vectors[0], axis=1)
        assert vectors.shape == (9, 64) and apart[1] == 0 and (np.diff(apart[1:]) > 0).all()


def test_sinusoids_have_no_seam_at_the_antimeridian():
    vectors = geographic_view(at([10, 10, 10], [180, -180, 0]), 16).vectors
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    assert np.linalg.norm(vectors[0] - vectors[2]) == pytest.approx(np.sqrt(4 / 32), rel=1e-5)  # one cosine, 1 and -1


@pytest.mark.parametrize("build", [lambda c: spatial_view(c, 2, 10, 0), lambda c: geographic_view(c, 16)])
@pytest.mark.parametrize(
    ("lat", "lon", "message"),
    [
        ([35.7, 139.7], [51.4, 35.7], "1 items outside the globe, first item_id 'item-1' with lat 139.7 and lon 35.7.*"
         "look swapped: exchange lat and lon, and run `llmrec prepare`"),
        ([1, 2], [200, 3], "'item-0' with lat 1 and lon 200.*Correct them, or leave both empty, and run"),
        ([139.7, 1], [35.7, 100], "'item-0' with lat 139.7.*Correct them"),
        ([1, -float("inf")], [2, 3], "'item-1' with lat -inf.*Correct them"),
    ],
    ids=["swapped", "longitude", "one of them", "infinity"],
)  # fmt: skip
def test_coordinates_outside_the_globe_are_refused(build, lat, lon, message):
    with pytest.raises(ValueError, match=message):
        build(at(lat, lon))


def test_the_corners_of_the_globe_are_places():
    assert coordinates(at([90, -90, 0], [180, -180, 0])).tolist() == [[90, 180], [-90, -180], [0, 0]]


def test_nothing_to_go_by_is_refused():
    with pytest.raises(ValueError, match="1 items with lat and lon, and no two items follow each other in its 2 train"):
        spatial_view(at([1, None], [1, None], train=[(0,), (1, 1)]), 2, 10, 0)
    with pytest.raises(ValueError, match="0 items with lat and lon"):
        spatial_view(catalog_of([], 3, test=[[0, 1]]), 2, 10, 0)
    with pytest.raises(ValueError, match="No item of 'catalog' has lat and lon; add them"):
        geographic_view(catalog_of([[0, 1]], 3), 16)
    lonely = catalog_of([[0, 1]], 3)
    lonely.items = lonely.items.append_column("lat", pa.array([1.0, 2.0, 3.0]))
    for build in (lambda: spatial_view(lonely, 2, 10, 0), lambda: geographic_view(lonely, 16)):
        with pytest.raises(ValueError, match="has the column lat alone"):
            build()


def test_fewer_items_than_neighbours_and_dimensions(capsys):
    view = spatial_view(at([1, 2, 4], [1, 2, 4]), 64, 10, 0)
    assert view.vectors.shape == (3, 3) and "3 items of the graph allow 3 spatial dimensions, not 64" in " ".join(
        capsys.readouterr().err.split()
    )
    assert view.provenance["dim"] == "3"


def test_law_1_and_the_same_seed():
    train = np.random.default_rng(1).integers(12, size=(20, 6)).tolist()
    lat, lon = (values[:12] for values in towns())
    blind = placed(without_held_out(train), lat, lon)
    one, other = (spatial_view(placed(catalog, lat, lon), 4, 5, 3) for catalog in (
        catalog_of(train, valid=[[0, 7]], test=[[3, 11]]), catalog_of(train, valid=[[8, 9, 1]], test=[[0, 2]]),
    ))  # fmt: skip
    assert one.vectors.tobytes() == other.vectors.tobytes() == spatial_view(blind, 4, 5, 3).vectors.tobytes()
    assert one.provenance == other.provenance
    assert geographic_view(blind, 16).vectors.any()
    alike = spatial_view(placed(catalog_of(train[:10]), lat, lon), 4, 5, 3)
    assert not np.allclose(one.vectors, alike.vectors)  # training rows do count


def test_provenance_says_how_to_build_them_again():
    catalog = at(*towns())
    assert {"view": "spatial", "neighbours": "5", "steps": "3", "farthest": "5.0", "dim": "8", "seed": "3"}.items() <= (
        spatial_view(catalog, 8, 5, 3).provenance.items()
    )
    assert {"view": "geographic", "frequencies": "16"}.items() <= geographic_view(catalog, 16).provenance.items()
