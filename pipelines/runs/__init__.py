"""Run folders read from outside, and the jobs and worker processes that stages start."""
