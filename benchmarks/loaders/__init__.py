"""One loader each: ours and its peers, for benchmarks/loader.py. Each runs in a process of its own."""
