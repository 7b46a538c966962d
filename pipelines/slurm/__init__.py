"""What a Slurm job asks before and after its step: how many ranks, may it train, start again or end. No torch."""
