"""The data loaders: their adapters, and the laws that each of them is measured by."""

SYSTEMS = {  # name of the adapter and its environment → name in the table, in its order
    "ours": "ours",
    "webdataset": "webdataset",
    "wids": "webdataset's wids",
    "mosaicml": "MosaicML streaming",
    "litdata": "LitData",
    "grain": "Grain",
    "datasets": "Hugging Face datasets",
    "torchdata": "torchdata.nodes",
    "dali": "DALI's reader",
    "spdl": "SPDL",
    "energon": "Megatron-Energon",
    "timm": "timm's reader",
}
