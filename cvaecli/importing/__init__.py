"""Other people's video as a data set: a film, or a folder of pictures, with labels in the dance layout.

`importer` reads the film once and writes the set. Labels come from keypoint files (`keypoints`), a detector
(`detector`) or the pictures themselves (`textures`). `preview` shows a set before it is trained on.
"""
