"""`site.yml --check` on nodes that have nothing installed yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleet_lab import Fleet

# Names, sizes and modification times of all that a role could write, and the installed packages.
SNAPSHOT = (
    "find /etc /opt /usr/local /var/lib -xdev -path /var/lib/systemd -prune -o -printf '%p %s %T@ %m %u\\n' | sort;"
    " dpkg-query -W; systemctl list-unit-files --no-legend"
)


def test_check_mode_completes_and_changes_nothing(lab: Fleet) -> None:
    before = {name: node.sh(SNAPSHOT) for name, node in lab.nodes.items()}
    run = lab.run("--check", "--diff")
    print(f"{run.seconds:.1f} s, tasks {run.tasks()}")
    after = {name: node.sh(SNAPSHOT) for name, node in lab.nodes.items()}
    for name in lab.nodes:
        assert after[name].splitlines() == before[name].splitlines()
    assert not lab.plan_path.exists()
    assert max(run.changed().values()) > 0, "check mode on a bare host has to foretell changes"
