"""The pieces of the synthetic set: a room, a person, and how both are drawn."""
