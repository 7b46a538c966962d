"""Everything inside one training process: model, data stream, optimiser, engine, telemetry."""

__version__ = "0.1.0"
