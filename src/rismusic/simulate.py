"""Temporary: the old name of rismusic.simulator."""

from rismusic.simulator import *  # noqa
from rismusic.simulator import SystemSpec, simulate, Simulator  # noqa
