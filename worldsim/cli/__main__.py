"""``python -m worldsim.cli`` is the ``worldsim`` command."""

from worldsim.cli import main

main()
