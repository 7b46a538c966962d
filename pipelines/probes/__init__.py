"""Small questions to a machine, each answered in seconds: a job asks them before it trains, a doctor at any time."""
