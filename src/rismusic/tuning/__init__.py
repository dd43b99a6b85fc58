"""Hyperparameter search over the settings of training and inference, with Optuna.

============= ==========================================================================
``spec``      settings of a search, and the search space, read from TOML
``objective`` one trial: training, inference settings, cost; the final trainings
``storage``   the SQLite file or the database that holds a study
``worker``    the queue of trials, and the loop of a worker
``results``   final evaluation, comparison with the default, plots and files of a search
``study``     :func:`~rismusic.tuning.study.tune`
============= ==========================================================================
"""
