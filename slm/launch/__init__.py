"""Starting a training run on several devices: processes of one machine, or a Slurm job over many.

It starts commands and passes signals on; what is trained, and whether the recipe is right, is settled before.
"""
