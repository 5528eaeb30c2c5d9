"""Built-in data sets: a dancer in a room, and a robot arm that pushes objects."""
