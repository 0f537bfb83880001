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
      input: clips to begin with: files, or bundled ones such as pong:0; all that are bundled by default.
      host: to listen on; any other than this machine's own lets everyone who reaches it play.
      port: to listen on; 0 takes a free one.
      browser: open the page.
    """
    import asyncio

    import worldsim
    from worldsim.checkpoint import bundled_worlds
    from worldsim.play.serving import serve
    from worldsim.worlds import clips as bundled

    if not input and world not in bundled_worlds():
        raise ValueError(f"play: {world} is no bundled world; give --input CLIP to begin with.")
    note(f"loading {world}")
    model = worldsim.load(world)
    clips = [read_input(text, model, resize="pad") for text in input] if input else bundled(world)
    asyncio.run(
        serve(
            model,
            clips,
            name=model.provenance.get("name", world),
            host=host,
            port=port,
            browser=browser,
            say=tell,
        )
    )
