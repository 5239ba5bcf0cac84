"""Speed, memory and error of the ops of slm_kernels, beside plain torch, torch.compile and Liger-Kernel.

`cases` says what is measured (one function per op), `peers` who takes part, `timing` how a piece of work is timed, `table` makes rows of it.
"""
