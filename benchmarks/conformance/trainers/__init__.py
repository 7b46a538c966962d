"""The trainers: their adapters, and the laws that each of them is measured by."""

SYSTEMS = {  # name of the adapter, and of its environment → name in the table, in its order
    "ours": "ours",
    "deepspeed": "DeepSpeed, ZeRO 2",
    "accelerate": "Accelerate, DDP",
    "torch_fsdp2": "PyTorch FSDP2 and DCP",
    "lightning": "Lightning, DDP",
}
INSTALLED = ("ours", "deepspeed", "accelerate", "torch_fsdp2")  # with the project
