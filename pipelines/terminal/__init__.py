"""Progress bars, durations and tables in the terminal."""
