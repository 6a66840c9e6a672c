"""A place counts units and iterations over the whole run, and seeds what is drawn there."""

from __future__ import annotations

import torch

from ptmq_lightning.reconstruction.place import Place

START = Place(index=2, count=9, name="layer1.0", offset=20, block=1, seed=3)


def test_iterations_are_counted_over_the_run_and_units_over_all_passes() -> None:
    assert [START.iteration(index) for index in (0, 7)] == [20, 27]
    behind = START.after(3, 8)
    assert (behind.index, behind.offset, behind.iteration(1)) == (5, 44, 45)
    assert behind.at(4, "head.fc") == Place(5, 9, "head.fc", 44, 4, 3)


def test_no_unit_and_no_run_shares_a_seed() -> None:
    places = [Place(index, 9, "unit", 0, 0, seed) for seed in range(3) for index in range(9)]
    assert len({place.unit_seed for place in places}) == len(places)


def test_a_generator_is_that_of_its_unit_unless_it_is_told_another_number() -> None:
    def draws(place: Place, index: int | None = None) -> list[float]:
        found: list[float] = torch.rand(4, generator=place.generator(index)).tolist()
        return found

    assert draws(START) == draws(START) == draws(START, START.index)
    assert draws(START) != draws(START.after(1, 8)) and draws(START, 7) != draws(START)
