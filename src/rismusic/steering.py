"""Temporary: the old name of rismusic.wave."""

from rismusic.wave import *  # noqa
from rismusic.wave import Wave, direction, path_difference, steering, steering_with_derivatives  # noqa
