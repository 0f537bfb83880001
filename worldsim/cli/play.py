"""The verb that opens a world in the browser."""

from __future__ import annotations

from typing import Annotated

from worldsim.cli.options import WORLD, note, positional, read_input, tell


def play(
    world: Annotated[str, *positional("WORLD", WORLD)],
    input: tuple[str, ...] = (),
    host: str = "127.0.0.1",
    port: int = 8765,
    browser: bool = False,
) -> None:
    """Play a world in the browser: keys are actions, and time runs both ways (extra: play).

    Example: worldsim play pong

    Args:
      input: clips to begin with: files, or bundled ones such as pong:0; by default all that are
        bundled, or one of the data that the world was not trained on.
      host: to listen on; any other than this machine's own lets everyone who reaches it play.
      port: to listen on; 0 takes a free one.
      browser: open the page.
    """
    import asyncio

    import worldsim
    from worldsim.checkpoint import bundled_worlds
    from worldsim.inspect.played import held_out_clip
    from worldsim.play.serving import listen, serve
    from worldsim.worlds import clips as bundled

    with listen(host, port) as listening:
        note(f"loading {world}")
        model = worldsim.load(world)
        if input:
            clips = [read_input(text, model, resize="pad") for text in input]
        elif world in bundled_worlds():
            clips = bundled(world)
        elif (found := held_out_clip(model.provenance)) is not None:
            clips = [found[0]]
            note(f"beginning with {found[1]}")
        else:
            raise ValueError(
                f"play: {world} is no bundled world, and the data held out of its training is not here; give "
                "--input CLIP to begin with."
            )
        note("compiling, about a minute")
        name = model.provenance.get("name", world)
        shown = {"name": name, "host": host, "listening": listening, "browser": browser}
        asyncio.run(serve(model, clips, **shown, say=tell))
