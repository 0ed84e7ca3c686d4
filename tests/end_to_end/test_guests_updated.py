"""Updates on the finished lab: what waits is said, and what the site asks for is done.

These tests run after those of `test_guests_change`.
"""

from __future__ import annotations

import pytest
from tests.end_to_end.test_guests_change import changed, run
from tests.whole_lab import Site

GUEST = "domu1"
REPLACED = "file=$(readlink -f /usr/sbin/cron); cp -p $file $file.new; mv $file.new $file"
"""cron's program is another file from now on; the daemon runs the one that is gone."""


def test_without_a_word_in_the_site_it_only_looks(site: Site) -> None:
    ended = run(site, site.parameters, "17")
    assert set(ended.values()) == {"ok"}, ended


@pytest.mark.parametrize("domain", ["", GUEST], ids=["dom0", GUEST])
def test_a_service_that_runs_what_was_replaced_is_restarted_if_asked(
    site: Site, domain: str
) -> None:
    before = site.ssh(domain, "pidof", "cron")
    site.ssh(domain, REPLACED)
    assert changed(run(site, site.parameters, "17")) == []
    assert site.ssh(domain, "pidof", "cron") == before
    ended = run(site, site.changed(updates=["dom0", GUEST]), "17")
    # the index, or a package that its mirror has since brought, may be fetched as well
    assert "17.5" in changed(ended)
    assert site.ssh(domain, "pidof", "cron") != before
    assert "17.5" not in changed(run(site, site.changed(updates=["dom0", GUEST]), "17"))
