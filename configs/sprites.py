"""The sprite world at 32x32 with five actions, sized for two CPU cores.

    worldsim data make sprites --out data/sprites
    worldsim train configs/sprites.py --workdir runs/sprites

Cost with ``--mesh data=2`` on two CPU cores, where nothing else runs: 2 minutes for the tokenizer, 4 for the
refinement, and for the dynamics 0.28 seconds a step of short sequences and 0.55 of long ones. The bundled
world ``sprites`` is this run; beside other work it took 88 minutes in all.
