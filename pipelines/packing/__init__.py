"""The steps of packing: choose and order the items, write one shard, finish a split."""
