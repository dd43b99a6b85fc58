"""Hyperparameter search over the settings of training and inference, with Optuna.

============= ==========================================================================
``spec``      settings of a search
``space``     the search space, read from TOML
``objective`` one trial: training, inference settings, cost; the final trainings
``storage``   the SQLite file or the database that holds a study
``study``     the queue of trials, the loop of a worker, and :func:`~rismusic.tuning.study.tune`
``results``   final evaluation, comparison with the default, and the files of a search
``report``    plots and the HTML report
============= ==========================================================================
"""
