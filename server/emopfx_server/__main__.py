"""``python -m emopfx_server`` starts the server, like the ``emopfx-server`` command."""

from emopfx_server.app import main

if __name__ == "__main__":
    main()
