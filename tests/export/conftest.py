"""Every test of exports also runs as on a processor without VNNI."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ptmq_lightning.export import session


@pytest.fixture(scope="session", autouse=True, params=["own", pytest.param("without_vnni", marks=pytest.mark.slow)])
def processor(request: pytest.FixtureRequest) -> Iterator[str]:
    """own: the integer arithmetic of this machine. without_vnni: the form that saturates nowhere, which old processors
    get."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "without_vnni":
            patch.setattr(session, "saturates", lambda backend: True)
        yield request.param
