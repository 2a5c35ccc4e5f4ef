"""How a step is run: eagerly, as a graph, compiled, or on parameter servers."""
