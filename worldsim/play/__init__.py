"""``worldsim play``: a world in the browser, stepped by keys, in both directions of time."""
