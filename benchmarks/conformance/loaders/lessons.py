"""Lessons from each peer, for the page."""

LESSONS: dict[str, str] = {
    "webdataset": "without an index, a tar that ends at a member is shorter, and nothing notices. This is why ours "
    "compares the size of every shard with the index before the first step. With uneven shards, ranks end at different "
    "steps; its documentation resamples shards instead, which gives up “once per epoch”.",
    "wids": "an index gives random access and equal ranks, but a shuffle over more shards than stay open reads the "
    "index of a tar for nearly every sample. Our shuffle windows have a bound for the same reason, and a cache that is "
    "too small for them is refused at the start. It finds its cache of tars by name, so that a changed tar is "
    "read from the copy.",
    "mosaicml": "the closest to ours: global batches that depend on neither ranks nor workers, from a fixed number of "
    "canonical nodes, as ours are from a fixed number of lanes. A checksum per shard is checked at the download only; "
    "ours is per sample and checked at every read, and that notices a bit that flips later.",
    "litdata": "a state can be resumed at another layout although the order depends on the layout: the state keeps the "
    "first one, and the rest is dealt out again. A function of the position needs no such memory.",
    "grain": "a global shuffle as a pure function of the index, like our windows; it needs random access to all "
    "files. ArrayRecord's hash of each chunk notices a flipped bit; the error would help more if it named the file.",
    "datasets": "a shuffle buffer is state that is not saved, as its documentation says: what it held is lost on a "
    "resume. With a buffer as large as what a rank has left, that is the rest of the epoch. Ours keeps no buffer.",
    "torchdata": "a state of composed nodes is exact, and bound to its nodes: others cannot read it. Ours is "
    "one number.",
    "dali": "its checkpoint is small and resumes with any number of threads. Its buffer shuffles what is near: on a "
    "set that is stored by class, batches have two of ten classes. Our `pack` shuffles once, and `verify` warns of "
    "shards that are in the order of their labels.",
    "spdl": "a sampler that knows the seed and the epoch is enough for equal batches at any ranks and workers. An item "
    "that fails is dropped and the pipeline continues, so after a killed worker most of the epoch is missing. Ours "
    "makes the missing batches again, and limits the share of bad samples.",
    "energon": "slices of shards are dealt out to ranks by samples, so that uneven shards give equal ranks without "
    "repetitions. Its command keeps the offsets of all members, and a shard that has become shorter is an error that "
    "names it. Its order is that of ranks × workers, which has to stay the same; ours depends on neither.",
    "timm": "training counts samples instead of shards, so that each rank has the same number of batches; with uneven "
    "shards, two of five draws are repetitions, and some samples are in neither of two epochs. A sample that cannot be "
    "decoded is a warning that does not name it.",
}
