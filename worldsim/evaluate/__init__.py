"""How good a world is: figures on held-out episodes, as JSON, plots and one page."""
