"""A page to try a model on one's own machine (`pipeline serve`), and the same over HTTP."""
