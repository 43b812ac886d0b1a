"""Loads what every task needs before the first of them, so that the process that Ansible forks for a task need not.

Ansible forks for every task and host, and what a child imports is gone with it: filters, tests, action, connection and
become plugins, hundreds of times a run. Nothing else changes: what cannot be loaded here is loaded, or reported, where
it is used.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ansible.plugins.callback import CallbackBase
from ansible.plugins.loader import (
    action_loader,
    become_loader,
    connection_loader,
    filter_loader,
    lookup_loader,
    shell_loader,
    test_loader,
)

if TYPE_CHECKING:
    from ansible.playbook import Playbook

DOCUMENTATION = """
name: preload
type: aggregate
short_description: Loads what every task needs before the first of them
description:
  - Ansible forks for every task and host. What is loaded before is there in each fork.
"""

ACTIONS = (
    "assert",
    "command",
    "copy",
    "debug",
    "fail",
    "gather_facts",
    "normal",
    "package",
    "service",
    "set_fact",
    "template",
    "validate_argument_spec",
)


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Prints nothing."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "preload"

    def v2_playbook_on_start(self, playbook: Playbook) -> None:
        """Load them."""
        # The first that is asked for brings every filter, or test, that is in no collection.
        for loader, name in ((filter_loader, "bool"), (test_loader, "defined")):
            with contextlib.suppress(Exception):
                loader.get(name)
        for loader, names in (
            (action_loader, ACTIONS),
            (become_loader, ("sudo",)),
            (connection_loader, ("local", "ssh")),
            (lookup_loader, ("env", "file", "template")),
            (shell_loader, ("sh",)),
        ):
            for name in names:
                with contextlib.suppress(Exception):
                    loader.get(name, class_only=True)
