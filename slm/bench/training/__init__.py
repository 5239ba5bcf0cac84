"""The trainer beside other trainers: one shape, the same rows, the same steps, each in a process of its own.

`job` says what is trained, `ours`, `plain`, `with_transformers` and `with_litgpt` train it, `overhead` takes our loop apart.
Every trainer is a function ``train(job) -> report``; the clock in it is a `Stopwatch` that leaves the first steps out.
"""
