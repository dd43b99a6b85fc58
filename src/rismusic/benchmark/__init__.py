"""Compare methods on the same simulated scenes.

:mod:`~rismusic.benchmark.spec` holds the settings and names of methods, :mod:`~rismusic.benchmark.run` the
function :func:`~rismusic.benchmark.run.bench`, :mod:`~rismusic.benchmark.summary` stored results and rows,
:mod:`~rismusic.benchmark.plots` the plots, and :mod:`~rismusic.benchmark.planning` the Cramer-Rao bound
as a table. The package imports nothing, so that the settings can be read without torch.
"""
