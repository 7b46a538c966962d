"""The experiment as typed, strict models, one file per section; ``experiment.py`` is the whole.

Each field's description is its documentation (and the JSON schema's). What decides the result is at the top level;
what does not (how many GPUs, how the batch is cut, how the state is sharded) is under ``cluster``. A key that is
not here is an error; so is a setting that would be ignored.
"""
