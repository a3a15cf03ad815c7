"""``python -m cag_daemon`` is ``cag-daemon``."""

from cag_daemon.cli import main

if __name__ == "__main__":
    main()
