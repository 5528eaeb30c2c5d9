"""Pictures and video as files: GIF, MP4, PNG, arrays, captioned panels, the course's CSV."""
