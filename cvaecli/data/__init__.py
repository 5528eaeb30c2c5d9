"""Data: every source is converted once into uint8 clips in a memory-mapped cache.

`loading.load` opens a data set, `loading.check` reports its faults. The kinds of data set are declared in
`kinds`.
"""
