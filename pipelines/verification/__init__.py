"""What is looked at to trust a set of shards: index against tars, checksums, decoding, reading by webdataset, order."""
