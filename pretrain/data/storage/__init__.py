"""Where samples are stored: shard index, transports, node cache, data set card."""
