"""A unit's place says which iteration of the run this is, and which seed its draws come from."""

from __future__ import annotations

from ptmq_lightning.reconstruction.place import Place

PLACE = Place(index=2, count=5, name="layer1", offset=10, block=1, seed=3)


def test_iterations_are_counted_over_the_run() -> None:
    assert [PLACE.iteration(index) for index in (0, 1, 4)] == [10, 11, 14]
    behind = PLACE.after(2, 4)
    assert behind == Place(index=4, count=5, name="layer1", offset=18, block=1, seed=3)
    assert behind.iteration(1) == 19


def test_another_name_in_another_block_is_the_same_place() -> None:
    assert PLACE.at(3, "fc") == Place(index=2, count=5, name="fc", offset=10, block=3, seed=3)


def test_every_unit_of_every_seed_draws_from_a_seed_of_its_own() -> None:
    # The numbers are pinned: a seeded run of today must be repeated by the next version.
    assert PLACE.unit_seed == 3 * 1_000_003 + 2 == PLACE.generator().initial_seed()
    assert PLACE.generator(0).initial_seed() == 3 * 1_000_003
    assert Place(0, 1, "", 0).unit_seed == 0
