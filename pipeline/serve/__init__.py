"""`pipeline serve`: a local web page to try a model, and the same function over HTTP."""
