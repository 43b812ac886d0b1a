#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""A token and a certificate for one run."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fleet_peer_credentials
short_description: Makes a token and a certificate with which hosts copy checkpoints from each other
description:
  - They are made anew each time and written nowhere. Runs on the controller.
version_added: "0.1.0"
options: {}
attributes:
  check_mode:
    description: The module changes nothing.
    support: full
requirements: [cryptography]
author: l40s-fleet (@l40s-fleet)
"""

EXAMPLES = r"""
- name: Make credentials for this run
  fleet_peer_credentials:
  delegate_to: localhost
  run_once: true
  no_log: true
  register: peer
"""

RETURN = r"""
token:
  description: The token.
  returned: success
  type: str
certificate:
  description: PEM of the certificate.
  returned: success
  type: str
key:
  description: PEM of its key.
  returned: success
  type: str
"""

import datetime
import traceback

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

IMPORT_ERROR = None
try:
    from ansible.module_utils.fleet.fetch_credentials import make_credentials
except ImportError:
    IMPORT_ERROR = traceback.format_exc()


def main():
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    if IMPORT_ERROR is not None:
        module.fail_json(msg=missing_required_lib("cryptography"), exception=IMPORT_ERROR)
    module.exit_json(changed=False, **make_credentials(datetime.datetime.now(datetime.timezone.utc))._asdict())


if __name__ == "__main__":
    main()
