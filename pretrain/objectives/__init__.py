"""Training objectives: functions of a model and a micro-batch that return a loss."""
