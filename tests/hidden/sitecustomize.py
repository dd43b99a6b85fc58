"""Hides the modules in ``HIDDEN_MODULES`` from all Python processes of ``make test-no-fcntl``."""

import os
import sys


class Hidden:
    """A finder that finds none of some modules."""

    def find_spec(self, name, path=None, target=None):
        if name in os.environ["HIDDEN_MODULES"].split(","):
            raise ModuleNotFoundError(f"{name} is hidden by the tests", name=name)


if os.environ.get("HIDDEN_MODULES"):
    sys.meta_path.insert(0, Hidden())
    for module in os.environ["HIDDEN_MODULES"].split(","):
        sys.modules.pop(module, None)
