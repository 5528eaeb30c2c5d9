"""The dance layout: frames and label images in folders, cut into clips."""
