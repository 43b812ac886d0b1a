"""Nodes of another Debian release, for the scenario of the driver."""

from __future__ import annotations

import pytest
from lab_code import lab_image

LISTING = (
    "http://m/debian bookworm main\nhttp://m/debian bookworm-updates main\nhttp://s/security bookworm-security main\n"
)


@pytest.mark.parametrize("release", lab_image.RELEASES)
def test_sources_of_a_release_come_from_the_mirrors_of_this_machine(release: str) -> None:
    assert lab_image.sources_for_nodes(LISTING, "bookworm", release) == [
        f"deb http://m/debian {release} main",
        f"deb http://m/debian {release}-updates main",
        f"deb http://s/security {release}-security main",
    ]


def test_packages_have_the_names_of_their_release() -> None:
    bookworm, trixie = lab_image._packages("bookworm"), lab_image._packages("trixie")
    assert set(bookworm) - set(trixie) == {"libpython3.11"}
    assert set(trixie) - set(bookworm) == {"libpython3.13"}


def test_a_release_has_an_image_of_its_own() -> None:
    keys = {lab_image._content_key(release, ["systemd"], [], []) for release in lab_image.RELEASES}
    assert len(keys) == len(lab_image.RELEASES)
