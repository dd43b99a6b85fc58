"""Compare methods on the same simulated scenes.

:mod:`~rismusic.benchmark.spec` holds the settings (:class:`~rismusic.benchmark.spec.BenchSpec`),
:mod:`~rismusic.benchmark.methods` the names of methods, :mod:`~rismusic.benchmark.run` the functions
:func:`~rismusic.benchmark.run.bench` and :func:`~rismusic.benchmark.run.merge_benchmarks`,
:mod:`~rismusic.benchmark.summary` the rows, :func:`~rismusic.benchmark.summary.read_table` and
:func:`~rismusic.benchmark.summary.groups`, :mod:`~rismusic.benchmark.plots` the plots, and
:mod:`~rismusic.benchmark.bound_table` the Cramer-Rao bound as a table. The package imports nothing itself, so
that the settings can be read without torch.
"""
