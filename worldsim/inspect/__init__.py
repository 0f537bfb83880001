"""``worldsim inspect``: a world, a dataset or a training at a glance, in the terminal and as one page."""
