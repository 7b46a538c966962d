"""Optimisers and learning-rate schedules: one model each, one file per family.

``choice.py`` lists the optimisers, ``schedules.py`` the schedules.
"""
