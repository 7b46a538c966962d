"""The experiment as typed, strict models, one file per section; ``experiment.py`` combines them.

Each field's description is its documentation (and the JSON schema's). Settings that decide the result are at the top
level; the others (number of GPUs, micro-batch size, sharding) are under ``cluster``. An unknown key is an error, and so
is a setting that would be ignored.
"""
