"""Another decoder to measure against: a GPT in PyTorch that draws one code after the other (extra: rivals).

A GPT-2 of ``transformers`` as large as the dynamics, scaled dot-product attention, keys and values cached,
``inference_mode``, one thread. A frame is its action and then its codes in raster order, each drawn from
the softmax of what the one before it led to. The cache holds the window's frames and is cut back to them
after each frame: to slide it costs the rival nothing here, where in use it must be filled anew.
"""

from __future__ import annotations

import importlib
from typing import Any

from worldsim.config import WorldConfig

MISSING = "{} is not installed: pip install 'worldsim[rivals]'"
CACHES = ("dynamic", "static")
"""How ``transformers`` keeps keys and values; the faster one counts."""


class Raster:
    """A GPT that draws so many frames whenever it is called.

    Attributes:
      kept: its cache of keys and values.
    """

    def __init__(self, config: WorldConfig, *, cache: str) -> None:
        """Fill the window.

        Args:
          config: of the world whose sizes it takes.
          cache: one of ``CACHES``.

        Raises:
          ModuleNotFoundError: PyTorch or ``transformers`` is missing, and how to get it.
        """
        try:
            self._torch: Any = importlib.import_module("torch")
            transformers: Any = importlib.import_module("transformers")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(MISSING.format(error.name)) from error
        self._torch.set_num_threads(1)
        self._torch.manual_seed(0)
        sizes, (rows, columns) = config.dynamics, config.tokenizer.grid
        self._codebook, self._actions = config.tokenizer.codebook, sizes.action.size
        self._tokens = 1 + rows * columns
        self._window = sizes.context * self._tokens
        shape = transformers.GPT2Config(
            vocab_size=self._codebook + self._actions,
            n_positions=self._window + self._tokens,
            n_embd=sizes.width,
            n_layer=sizes.layers,
            n_head=sizes.heads,
            n_inner=sizes.mlp,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="sdpa",
        )
        self._model = transformers.GPT2LMHeadModel(shape).eval()
        if cache == "static":
            self.kept = transformers.StaticCache(config=shape, max_cache_len=self._window + self._tokens)
        else:
            self.kept = transformers.DynamicCache(config=shape)
        with self._torch.inference_mode():
            self._read(self._torch.randint(self._codebook, (1, self._window)), 0)

    def __call__(self, frames: int) -> None:
        torch = self._torch
        with torch.inference_mode():
            for frame in range(frames):
                code = torch.full((1, 1), self._codebook + frame % self._actions)
                for at in range(self._window, self._window + self._tokens - 1):
                    code = torch.multinomial(torch.softmax(self._read(code, at), -1), 1)
                self._read(code, self._window + self._tokens - 1)
                self._forget()

    def _read(self, ids: Any, at: int) -> Any:
        """The logits of the code after the last of ``ids [1 n]``, whose first stands at a place."""
        places = self._torch.arange(at, at + ids.shape[1])[None]
        how = {"past_key_values": self.kept, "use_cache": True, "logits_to_keep": 1}
        return self._model(ids, position_ids=places, **how).logits[:, -1, : self._codebook]

    def _forget(self) -> None:
        """Cut the cache back to the window."""
        if not self.kept.is_compileable:
            self.kept.crop(-self._tokens)
            return
        for layer in self.kept.layers:
            layer.cumulative_length.fill_(self._window)
