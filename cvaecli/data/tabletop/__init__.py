"""The table of the synthetic pushing set: `world` moves arm and objects, `paint` draws them on `ground`."""
