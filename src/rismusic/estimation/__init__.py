"""Estimators of the number and the positions of sources, and the parts that they are made of.

They share names and shapes. A ``recording`` has S scenes, stacked (:meth:`rismusic.Recording.stacked`)
in all but the outermost functions. ``positions`` [S, K, 3] are azimuth (rad), elevation (rad) and inverse
range (1/m), float64 and finite everywhere; ``active`` [S, K] tells which are sources. ``sources`` are the
same as :class:`rismusic.Sources`, NaN where there is none. ``count`` [S] is the number of sources,
``noise_variance`` [S] is sigma^2 (``None`` if unknown), ``volume`` the box that bounds the positions,
``grid`` the search grid, ``spec`` the settings. ``scenes`` [B] are numbers of some of the scenes.
"""
