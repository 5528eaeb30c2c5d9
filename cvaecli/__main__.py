"""``python -m cvaecli``: the same as the console command ``cvae``."""

from .cli import main

if __name__ == "__main__":
    main()
